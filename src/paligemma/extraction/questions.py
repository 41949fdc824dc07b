"""The questions of a schema: one short question per value, as the model is asked.

    invoice_number                                     What is the invoice number?
    date, "date of the prescription"                   What is the date of the prescription?
    seller.name                                        What is the name of the seller?
    medicines                                          Which medicines are mentioned in the
                                                       prescription?
    medicines[].dose                                   What is the dose of Vyvanse?

A description that ends with a question mark is the question, and `question` in the schema is always
taken as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paligemma.extraction.schema import Leaf, List, Schema, path_of, words_of_name
from paligemma.results import one_line

_ASKING: dict[str, tuple[str, str, str, str]] = {
    # What is X; X of Y; which X are in the document; X or not
    "en": (
        "What is the {x}?",
        "{x} of {y}",
        "Which {x} are mentioned in the {document}?",
        "{x}: yes or no?",
    ),
    "de": ("Was steht unter {x}?", "{x} von {y}", "Welche {x} sind genannt?", "{x}: ja oder nein?"),
    "es": ("¿Qué dice en {x}?", "{x} de {y}", "¿Qué {x} se mencionan?", "{x}: ¿sí o no?"),
    "fr": (
        "Qu'est-ce qui est indiqué pour {x} ?",
        "{x} de {y}",
        "Quels {x} sont mentionnés ?",
        "{x} : oui ou non ?",
    ),
    "it": ("Che cosa è indicato per {x}?", "{x} di {y}", "Quali {x} sono citati?", "{x}: sì o no?"),
    "nl": ("Wat staat er bij {x}?", "{x} van {y}", "Welke {x} worden genoemd?", "{x}: ja of nee?"),
    "pt": ("O que consta em {x}?", "{x} de {y}", "Que {x} são mencionados?", "{x}: sim ou não?"),
}

ITEM_LENGTH = 60
"""Characters of an item's text in the questions about it."""

_MARKUP = re.compile(r"<(?=(?:loc|seg)[0-9]|/?[a-z_]+>)")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about one value or list of the object."""

    node: Leaf | List
    keys: tuple[str | int, ...]
    """Where its answer goes: keys, and numbers of items."""
    text: str
    second_text: str | None = None
    """The schema's own second formulation."""


def question_for(
    node: Leaf | List,
    keys: tuple[str | int, ...],
    schema: Schema[Any],
    language: str = "en",
    items: Mapping[str, str] | None = None,
) -> Question:
    """Return the question about a node, in the language of the schema.

    `items` has what is known of the item that the node is in, by the name of the value, such as
    {"name": "Vyvanse"}; "" is the item's own text.
    """
    known = {name: in_question(text) for name, text in (items or {}).items()}
    text = node.question or _usual_question(node, schema, language, known)
    second = node.second_question
    return Question(
        node=node,
        keys=keys,
        text=_filled(text, known),
        second_text=None if second is None else _filled(second, known),
    )


def in_question(text: str) -> str:
    """Return a text of the document as it can stand in a question: one line, no control words."""
    line = _MARKUP.sub("< ", one_line(re.sub(r"[\x00-\x1f\x7f]", " ", text)))
    return line if len(line) <= ITEM_LENGTH else line[:ITEM_LENGTH].rsplit(" ", 1)[0]


def _usual_question(
    node: Leaf | List, schema: Schema[Any], language: str, known: Mapping[str, str]
) -> str:
    what, of, which, yes_or_no = _ASKING[language]
    described = (node.description or "").strip().rstrip(".")
    if described.endswith("?"):
        return described
    keys = node.keys[: -1 if node.keys[-1:] == ("[]",) else None]
    inside = max((n + 1 for n, key in enumerate(keys) if key == "[]"), default=0)
    *parents, name = keys[inside:] or ("value",)
    subject = re.sub(r"^(the|an?) ", "", described, flags=re.IGNORECASE)
    subject = subject or words_of_name(name) or "value"
    if isinstance(node, List):
        subject = re.sub(r"^list of (the )?", "", subject)
    for parent in reversed(parents):  # a model that is used twice, such as seller and buyer
        if (words := words_of_name(parent)).casefold() not in subject.casefold():
            subject = of.format(x=subject, y=f"the {words}" if of == "{x} of {y}" else words)
    item = known.get("")
    if isinstance(node, List):
        text = which.format(x=subject, document=schema.document)
        return text if not item else f"{text[:-1].rstrip()}: {{}}?"
    if node.kind == "boolean":
        subject = re.sub(r"^(is|has|whether) ", "", subject)
        return _capital(yes_or_no.format(x=of.format(x=subject, y="{}") if item else subject))
    if item and not re.search(r"\{\w*\}", subject):
        subject = of.format(x=subject, y="{}")
    return what.format(x=subject)


def same_questions(schema: Schema[Any], language: str = "en") -> tuple[str, ...]:
    """A note for each question that would be asked for several values."""
    paths: dict[str, list[str]] = {}
    for node in schema.nodes():
        if isinstance(node, Leaf | List) and node.keys[-1:] != ("[]",):
            inside = path_of(node.keys).rpartition("[]")[0]
            known = {"": inside} if inside else {}
            text = question_for(node, tuple(node.keys), schema, language, known).text
            paths.setdefault(text, []).append(node.path)
    return tuple(
        f"The same question is asked for {', '.join(same)}: {text} Describe them differently."
        for text, same in paths.items()
        if len(same) > 1
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _filled(text: str, known: Mapping[str, str]) -> str:
    """The question with {name} replaced by what is known; other braces stay as they are."""
    return one_line(re.sub(r"\{(\w*)\}", lambda m: known.get(m[1], known.get("", "")), text))
