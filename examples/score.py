"""What each block costs, and the order in which blocks go: python score.py [model.gguf] -f text.txt

It takes minutes, and goes on where it was stopped.
"""

from common import model_of, text_parser
from llama_skip import score_model


def main() -> None:
    parser = text_parser(__doc__)
    parser.add_argument("-o", "--output", metavar="FILE", default="score.json", help="the score file")
    parser.add_argument("--blocks", metavar="K", type=int, default=3, help="how many blocks go at most")
    args = parser.parse_args()
    score = score_model(
        model_of(args),
        text=args.file,
        output=args.output,
        n_tokens=args.tokens,
        n_ctx=args.ctx_size,
        n_path=args.blocks,
    )
    print(f"nothing left out: perplexity {score.perplexity:.2f}")
    for step in score.path:
        print(f"without {step.block} too: perplexity {step.perplexity:.2f}, KL divergence {step.kld:.3f}")


if __name__ == "__main__":
    main()
