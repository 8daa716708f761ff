"""Text as it is written: python stream.py [model.gguf] [--skip-layers 13-14]"""

from common import load, parser


def main() -> None:
    args = parser(__doc__).parse_args()
    with load(args) as llm:
        for chunk in llm.create_completion("Once upon a time,", max_tokens=args.max_tokens, stream=True):
            print(chunk["choices"][0]["text"], end="", flush=True)
    print()


if __name__ == "__main__":
    main()
