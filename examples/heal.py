"""What healing brings back: python heal.py [model.gguf] --plan plan.json -f text.txt --judge other.txt

The gaps of the plan are fitted on one text and judged on another.
"""

from common import model_of, text_parser
from llama_skip import evaluate, heal_plan


def main() -> None:
    parser = text_parser(__doc__)
    parser.add_argument("--plan", metavar="FILE", required=True, help="what plan.py wrote")
    parser.add_argument("--judge", metavar="TEXT", required=True, help="another text")
    parser.add_argument("-o", "--output", metavar="FILE", default="healed.gguf", help="the healed plan")
    args = parser.parse_args()
    model = model_of(args)
    heal_plan(
        model, plan=args.plan, text=args.file, output=args.output, n_tokens=args.tokens, n_ctx=args.ctx_size
    )
    plans = [args.plan, args.output]
    found = evaluate(model, plans=plans, text=args.judge, n_ctx=args.ctx_size, speed=False)
    for name, row in zip(["the full model", *plans], found.rows, strict=True):
        print(f"{name}: perplexity {row.perplexity:.2f}, KL divergence {row.kld:.3f}")


if __name__ == "__main__":
    main()
