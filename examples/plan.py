"""The most blocks that a bound on perplexity allows: python plan.py score.json --max-ppl-ratio 1.5"""

from argparse import ArgumentParser

from llama_skip import plan_blocks, read_score, write_plan


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("score", help="what score.py wrote")
    parser.add_argument("--max-ppl-ratio", metavar="R", type=float, default=1.5, help="to the full model's")
    parser.add_argument("-o", "--output", metavar="FILE", default="plan.json", help="the plan file")
    args = parser.parse_args()
    score = read_score(args.score)
    plan = plan_blocks(score, max_ppl_ratio=args.max_ppl_ratio)
    if not plan.skip_layers:
        raise SystemExit(f"no block can go for {args.max_ppl_ratio:g} times the perplexity")
    write_plan(args.output, plan)
    print(f"--skip-layers {plan.skip_layers}, or --skip-layers @{args.output}")


if __name__ == "__main__":
    main()
