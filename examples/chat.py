"""A conversation in the terminal: python chat.py [model.gguf] [--skip-layers 13-14]"""

from common import load, parser


def main() -> None:
    args = parser(__doc__).parse_args()
    messages: list[dict[str, str]] = []
    with load(args, n_ctx=2048) as llm:
        while True:
            try:
                question = input("> ")
            except (EOFError, KeyboardInterrupt):
                return
            messages.append({"role": "user", "content": question})
            answer = llm.create_chat_completion(messages, max_tokens=args.max_tokens)["choices"][0]["message"]
            messages.append(answer)
            print(answer["content"])


if __name__ == "__main__":
    main()
