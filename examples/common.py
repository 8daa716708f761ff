"""The arguments that the examples share."""

from argparse import ArgumentParser, Namespace
from typing import Any

from llama_skip import Llama
from llama_skip.smollm2 import smollm2


def parser(description: str | None) -> ArgumentParser:
    """Return a parser of a model, a skip set and a length; without a model, SmolLM2-135M is taken."""
    made = ArgumentParser(description=description)
    made.add_argument("model", nargs="?", help="a GGUF file (default: SmolLM2-135M)")
    made.add_argument("--skip-layers", metavar="SPEC", help="blocks to leave out, such as 13-14,25")
    made.add_argument("-n", "--max-tokens", metavar="N", type=int, default=64, help="tokens to write at most")
    return made


def load(args: Namespace, **options: Any) -> Llama:
    """Load the model that the arguments name."""
    return Llama(args.model or smollm2(), skip_layers=args.skip_layers, verbose=False, **options)
