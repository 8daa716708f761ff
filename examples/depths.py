"""Several depths of one model side by side: python depths.py [model.gguf]

The model is loaded once. set_mask() leaves blocks out from one prompt to the next.
"""

from common import load, parser

PROMPT = "The capital of France is"


def main() -> None:
    args = parser(__doc__).parse_args()
    with load(args) as llm:
        middle = llm.n_layer() // 2
        for n_out in range(4):
            llm.set_mask(range(middle, middle + n_out))
            text = llm(PROMPT, max_tokens=args.max_tokens, temperature=0)["choices"][0]["text"]
            n_kept = llm.n_layer() - len(llm.mask)
            print(f"{n_kept} blocks: {PROMPT}{text!r}")


if __name__ == "__main__":
    main()
