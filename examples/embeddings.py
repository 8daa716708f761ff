"""Which text is nearest to a question: python embeddings.py [model.gguf] [--skip-layers 13-14]"""

import numpy as np
from common import load, parser

TEXTS = ["The ferry leaves at noon.", "Bake the bread for an hour.", "The train is late again."]
QUESTION = "When does the boat sail?"
MEAN = 1  # LLAMA_POOLING_TYPE_MEAN


def main() -> None:
    args = parser(__doc__).parse_args()
    with load(args, embedding=True, pooling_type=MEAN) as llm:
        question, *texts = np.array(llm.embed([QUESTION, *TEXTS], normalize=True))
    for similarity, text in sorted(zip(np.array(texts) @ question, TEXTS, strict=True), reverse=True):
        print(f"{similarity:.3f}  {text}")


if __name__ == "__main__":
    main()
