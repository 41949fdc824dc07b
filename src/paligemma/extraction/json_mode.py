"""Fields from models that write JSON themselves: one prompt per page, the schema as the grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paligemma.answering import ImageQuery, Query
from paligemma.errors import DocumentError, ImageError, NumericalError, PaliGemmaError
from paligemma.extraction.assemble import Keys
from paligemma.extraction.questions import Question
from paligemma.extraction.schema import Group, Leaf, List, Node
from paligemma.extraction.values import read_value
from paligemma.extraction.views import View
from paligemma.results import JsonAnswer, JsonLeaf
from paligemma.tasks.field import JsonTask

if TYPE_CHECKING:
    from paligemma.extraction.asking import Run

MAX_NEW_TOKENS = 1536
_INTEGER = 10**12


def grammar_of(node: Node) -> dict[str, Any]:
    """The JSON schema that answers are held to: every value may be null, and nothing is open."""
    match node:
        case Group():
            return {
                "type": "object",
                "properties": {str(child.keys[-1]): grammar_of(child) for child in node.children},
                "required": [str(child.keys[-1]) for child in node.children if child.is_required],
                "additionalProperties": False,
            }
        case List():
            return {"type": "array", "items": grammar_of(node.item), "maxItems": node.max_items}
    return {"anyOf": [*_forms(node), {"type": "null"}]}


def _forms(leaf: Leaf) -> list[dict[str, Any]]:
    text = {"type": "string", "maxLength": leaf.max_length if leaf.kind == "text" else 40}
    match leaf.kind:
        case "choice":
            return [{"enum": list(leaf.choices)}]
        case "boolean":
            return [{"type": "boolean"}]
        case "integer":
            return [{"type": "integer", "minimum": -_INTEGER, "maximum": _INTEGER}]
        case "number" | "amount":
            # As printed, too: "1.234,50".
            return [{"type": "number", "minimum": -_INTEGER, "maximum": _INTEGER}, text]
    return [text]


def ask_for_json(run: Run) -> None:
    """Ask about each page once, and take the values in the answers as candidates."""
    task = JsonTask(text=run.options.json_prompt, schema=grammar_of(run.schema.root))
    queries = (
        ImageQuery(
            images=(run.views.reader(view),),
            query=Query(task=task, max_new_tokens=MAX_NEW_TOKENS),
        )
        for view in run.views.wholes
    )
    leaves: dict[Keys, list[tuple[View, JsonLeaf]]] = {}
    num_answers = 0
    for view, answer in zip(run.views.wholes, run.replies(queries), strict=True):
        if isinstance(answer, DocumentError | ImageError | NumericalError):
            run.views.fail(view.page_index, answer)
            continue
        if isinstance(answer, PaliGemmaError):
            raise answer
        num_answers += 1
        _collect(run, view, answer, leaves)
    if run.views.errors and not num_answers:
        raise run.views.errors[0]
    _take(run, run.schema.root, (), leaves)


def _collect(
    run: Run, view: View, answer: JsonAnswer, leaves: dict[Keys, list[tuple[View, JsonLeaf]]]
) -> None:
    """Add the values of a page. The items of its lists follow those of earlier pages."""
    if answer.is_cut:
        run.views.notes.append(
            f"The JSON about page {run.views.number(view)} was cut off at {MAX_NEW_TOKENS} tokens."
        )
    earlier = dict(run.lengths)
    for leaf in answer.leaves:
        keys: Keys = leaf.keys
        first = next((n for n, key in enumerate(keys) if isinstance(key, int)), None)
        if first is not None:
            number = int(keys[first]) + earlier.get(keys[:first], 0)
            keys = (*keys[:first], number, *keys[first + 1 :])
        for position, key in enumerate(keys):
            if isinstance(key, int):
                owner = keys[:position]
                run.lengths[owner] = max(run.lengths.get(owner, 0), key + 1)
        leaves.setdefault(keys, []).append((view, leaf))


def _take(
    run: Run, node: Node, keys: Keys, leaves: Mapping[Keys, list[tuple[View, JsonLeaf]]]
) -> None:
    """Make the fields of a node and of all that is in it."""
    if isinstance(node, Group):
        for child in node.children:
            _take(run, child, (*keys, child.keys[-1]), leaves)
        return
    question = Question(node=node, keys=keys, text=run.options.json_prompt)
    if isinstance(node, Leaf):
        run.take_value(
            question,
            node,
            [_candidate(run, node, view, leaf) for view, leaf in leaves.get(keys, ())],
        )
        return
    length = min(run.lengths.get(keys, 0), node.max_items)
    run.lengths[keys] = length
    for number in range(length):
        _take(run, node.item, (*keys, number), leaves)
    if not length:
        run.take_nothing(question, node)


def _candidate(run: Run, node: Leaf, view: View, leaf: JsonLeaf) -> Any:
    from paligemma.extraction.asking import Candidate

    text = leaf.value if isinstance(leaf.value, str) else json.dumps(leaf.value)
    return Candidate(
        view=view,
        text=text,
        score=leaf.score,
        held=leaf.held,
        reading=read_value(node, text, run.formats),
    )
