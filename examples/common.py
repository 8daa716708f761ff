"""The arguments that the examples share."""

from argparse import ArgumentParser, Namespace
from typing import Any

from llama_skip import Llama
from llama_skip.files.smollm2 import smollm2


def model_parser(description: str | None) -> ArgumentParser:
    """Return a parser of a model; without one, SmolLM2-135M is taken."""
    made = ArgumentParser(description=description)
    made.add_argument("model", nargs="?", help="a GGUF file (default: SmolLM2-135M, fetched once)")
    return made


def text_parser(description: str | None) -> ArgumentParser:
    """Return a parser of a model, and of a text and how much of it is used."""
    made = model_parser(description)
    made.add_argument("-f", "--file", metavar="TEXT", required=True, help="a text like those it is for")
    made.add_argument("-c", "--ctx-size", metavar="N", type=int, default=512, help="tokens in a window")
    made.add_argument("--tokens", metavar="N", type=int, default=4096, help="tokens of TEXT")
    return made


def parser(description: str | None) -> ArgumentParser:
    """Return a parser of a model, a skip set and a length."""
    made = model_parser(description)
    made.add_argument("--skip-layers", metavar="SPEC", help="blocks to leave out, such as 13-14,25")
    made.add_argument("-n", "--max-tokens", metavar="N", type=int, default=64, help="tokens to write at most")
    return made


def model_of(args: Namespace) -> str:
    """Return the path of the model that the arguments name."""
    return str(args.model or smollm2())


def load(args: Namespace, **options: Any) -> Llama:
    """Load the model that the arguments name."""
    return Llama(model_of(args), skip_layers=args.skip_layers, verbose=False, **options)
