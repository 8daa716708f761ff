"""An answer of a given form: python json_schema.py [model.gguf] [--skip-layers 13-14]"""

import json

from common import load, parser

SCHEMA = {
    "type": "object",
    "properties": {
        "town": {"type": "string", "maxLength": 20},
        "country": {"type": "string", "maxLength": 20},
    },
    "required": ["town", "country"],
    "additionalProperties": False,
}


def main() -> None:
    args = parser(__doc__).parse_args()
    with load(args) as llm:
        answer = llm.create_chat_completion(
            [{"role": "user", "content": "Name a town by the sea, as JSON."}],
            response_format={"type": "json_schema", "json_schema": {"name": "town", "schema": SCHEMA}},
            max_tokens=args.max_tokens,
        )
    print(json.dumps(json.loads(answer["choices"][0]["message"]["content"]), indent=2))


if __name__ == "__main__":
    main()
