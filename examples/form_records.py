"""Turns documents with true values into training data: a question and its answer per value.

    python examples/form_records.py forms/forms.jsonl --schema prescription --out forms/train.jsonl

Reads the lines that `paligemma eval --schema` reads, {"file": ..., "fields": ...}, and writes lines
that `paligemma train` reads, with the questions of `paligemma extract`. An absent value (null) is
answered by "unanswerable"; a field that a line leaves out is not asked for. The files must be
images. The data of docs/own-forms.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paligemma.extraction import list_questions

ABSENT = "unanswerable"


def questions_and_answers(
    questions: list[tuple[str, str]], fields: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Every prompt about one document, with its answer."""
    for path, prompt in questions:
        name, in_list, key = path.partition("[].")
        if name not in fields:
            continue
        if not in_list:
            yield prompt, answer_of(fields[name])
            continue
        for item in fields[name] or ():
            if key in item:
                # The item's own text stands in the question: "What is the dose of {name}?"
                yield text_of(item).join(re.split(r"\{\w+\}", prompt)), answer_of(item[key])


def answer_of(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(text_of(item) for item in value) or ABSENT
    return ABSENT if value is None else str(value)


def text_of(item: Any) -> str:
    """An item of a list, or the first value of one with several: a medicine's name."""
    return str(next(iter(item.values())) if isinstance(item, dict) else item)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("forms", type=Path, help="JSON Lines of documents with true values")
    parser.add_argument("--schema", required=True, help="as for `paligemma extract`")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines to write")
    arguments = parser.parse_args()
    schema: Any = arguments.schema
    if schema.endswith(".json"):
        schema = json.loads(Path(schema).read_text(encoding="utf-8"))
    questions = list_questions(schema)
    lines = []
    for line in arguments.forms.read_text(encoding="utf-8").splitlines():
        form = json.loads(line)
        image = os.path.relpath(arguments.forms.parent / form["file"], arguments.out.parent)
        for prompt, answer in questions_and_answers(questions, form["fields"]):
            lines.append({"image": image, "prefix": prompt, "suffix": answer})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    arguments.out.write_text(text, encoding="utf-8")
    print(f"Wrote {arguments.out}: {len(lines)} questions with answers")


if __name__ == "__main__":
    main()
