"""What one asks about papers and what is answered: the questions of `paligemma extract`.

The first wording of each question is that of the package's own schemas; the others are trained too,
so that other people's wordings are understood to a degree.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mini.examples import TEXT_PROMPT, text_suffix
from mini.paper import Paper, PaperKind, printed_words
from mini.scene import SceneWord
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import format_box
from paligemma.tasks.text import AnswerTask, OcrTask

UNANSWERABLE = "unanswerable"

_DATE = "What is the date?"
QUESTIONS: Mapping[PaperKind, Mapping[str, tuple[str, ...]]] = {
    "prescription": {
        "patient": (
            "What is the name of the patient?",
            "Who is the patient?",
            "What is the patient?",
            "What is the patient name?",
        ),
        "prescriber": (
            "What is the name of the doctor?",
            "Who is the doctor?",
            "What is the doctor?",
            "What is the name of the prescriber?",
            "What is the prescriber?",
        ),
        "date": ("What is the date of the prescription?", "What is the prescription date?", _DATE),
        "medicines.name": (
            "Which medicines are mentioned in the prescription?",
            "Which medicines are advised in the prescription?",
            "What are the medicines?",
            "What are the names of the medicines?",
        ),
        "medicines.dose": ("What is the dose of {}?", "{} dose?"),
        "medicines.frequency": (
            "How often is {} taken?",
            "What is the frequency of {}?",
            "{} frequency?",
        ),
        "medicines.duration": ("How long is {} taken?", "What is the duration of {}?"),
        "diseases": (
            "Which diseases are mentioned in the prescription?",
            "What are the diseases?",
            "What is the diagnosis?",
            "What is the disease?",
        ),
    },
    "invoice": {
        "invoice_number": (
            "What is the invoice number?",
            "What is the number of the invoice?",
            "What is the number?",
        ),
        "invoice_date": ("What is the invoice date?", "What is the date of the invoice?", _DATE),
        "due_date": ("What is the due date?",),
        "seller": (
            "What is the name of the seller?",
            "Who is the seller?",
            "What is the seller?",
            "What is the name of the supplier?",
            "What is the vendor?",
        ),
        "seller_vat": ("What is the VAT number of the seller?",),
        "buyer": (
            "What is the name of the buyer?",
            "Who is the buyer?",
            "What is the buyer?",
            "What is the name of the customer?",
            "What is the customer?",
        ),
        "currency": ("What is the currency?",),
        "net_total": ("What is the total without tax?",),
        "discount": ("What is the discount?",),
        "tax": ("What is the total tax?", "What is the tax?", "What is the VAT?"),
        "shipping": ("What is the cost of shipping?",),
        "total": ("What is the total amount?", "What is the total?", "What is the sum?"),
        "iban": ("What is the IBAN?",),
        "items.description": (
            "Which items are on the invoice?",
            "Which items are mentioned in the invoice?",
            "What are the items?",
            "What are the names of the items?",
        ),
        "items.quantity": ("What is the quantity of {}?",),
        "items.unit_price": ("What is the unit price of {}?",),
        "items.amount": ("What is the amount of {}?", "What is the price of {}?"),
    },
    "receipt": {
        "merchant": (
            "What is the name of the shop?",
            "What is the name of the merchant?",
            "What is the merchant?",
            "What is the shop?",
            "What is the name of the store?",
        ),
        "date": ("What is the date of the receipt?", "What is the receipt date?", _DATE),
        "time": ("What is the time of the receipt?",),
        "currency": ("What is the currency?",),
        "subtotal": ("What is the subtotal?",),
        "tax": ("What is the tax?", "What is the total tax?", "What is the VAT?"),
        "total": ("What is the total?", "What is the total amount?", "What is the sum?"),
        "paid_by": (
            "What is the method of payment?",
            "What is the payment method?",
            "How was it paid?",
        ),
        "items.name": (
            "Which items are on the receipt?",
            "Which items are mentioned in the receipt?",
            "What are the items?",
            "What are the names of the items?",
        ),
        "items.quantity": ("What is the quantity of {}?",),
        "items.price": ("What is the price of {}?", "What is the amount of {}?"),
    },
    "id-card": {
        "surname": ("What is the surname?", "What is the last name?", "What is the name?"),
        "given_names": (
            "What is the given names?",
            "What is the first name?",
            "What is the given name?",
        ),
        "document_number": (
            "What is the number of the document?",
            "What is the document number?",
            "What is the card number?",
            "What is the number?",
        ),
        "date_of_birth": (
            "What is the date of birth?",
            "What is the birth date?",
            "When was the holder born?",
        ),
        "place_of_birth": ("What is the place of birth?",),
        "nationality": ("What is the nationality?",),
        "sex": ("What is the sex?",),
        "date_of_issue": ("What is the date of issue?",),
        "date_of_expiry": (
            "What is the date of expiry?",
            "What is the expiry date?",
            "What is the expiration date?",
        ),
        "authority": ("What is the authority that issued the document?",),
    },
}
"""By kind and path without indices: the wordings of a question; {} is the name of an entry."""
LABELS = ("Which labels are on the form?", "What are the labels?")
NEXT_TO = ("What is written next to {}?", "What is the {}?", "{}")


@dataclass(frozen=True, kw_only=True)
class PaperExample:
    """A prompt, its true answer, and the printed words that the answer repeats, in its order."""

    prefix: str
    suffix: str
    words: tuple[SceneWord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PaperQuestion:
    """A question about a field of a paper (or all entries of a list) and its true answer."""

    path: str
    """Without indices: "medicines.dose"."""
    wordings: tuple[str, ...]
    answer: str
    words: tuple[SceneWord, ...] = ()


def paper_questions(paper: Paper) -> list[PaperQuestion]:
    """Everything the kind's schema asks about a paper; what is absent is "unanswerable"."""
    questions = []
    names = [field for field in paper.fields if field.path.endswith((".name", ".description"))]
    for path, wordings in QUESTIONS[paper.kind].items():
        if "{}" in wordings[0]:
            for name in names:
                wanted = f"{name.path.split('.')[0]}.{path.split('.')[1]}"
                texts = tuple(wording.format(name.value) for wording in wordings)
                questions.append(_question(paper, path, texts, [wanted]))
        else:
            wanted_paths = [field.path for field in paper.fields if _plain(field.path) == path]
            questions.append(_question(paper, path, wordings, wanted_paths))
    return questions


def form_questions(paper: Paper) -> list[PaperQuestion]:
    """What the schema of any form asks: for the labels, and what is next to each."""
    lines = [paper.lines[i] for i in paper.labels]
    if not lines:
        return []
    labels = tuple(line[0] for line in lines)
    questions = [
        PaperQuestion(
            path="label",
            wordings=LABELS,
            answer=", ".join(label.text for label in labels),
            words=labels,
        )
    ]
    for label, value in lines:
        wordings = tuple(wording.format(label.text) for wording in NEXT_TO)
        question = PaperQuestion(path="value", wordings=wordings, answer=value.text, words=(value,))
        questions.append(question)
    return questions


def draw_paper_example(paper: Paper, rng: random.Random) -> PaperExample:
    """An example that is true of the paper: mostly a question, or all that it says."""
    chance = rng.random()
    if chance < 0.35:
        return PaperExample(prefix=OcrTask().prompt(), suffix=paper.text, words=paper.words)
    if chance < 0.38:
        return PaperExample(prefix=TEXT_PROMPT, suffix=text_suffix(paper.words), words=paper.words)
    if chance < 0.5 and paper.fields:
        return _draw_place(paper, rng)
    question = _draw_question(paper, rng)
    task = AnswerTask(
        question=rng.choice(question.wordings) if rng.random() < 0.5 else question.wordings[0],
        language="en" if rng.random() < 0.7 else None,
    )
    return PaperExample(prefix=task.prompt(), suffix=question.answer, words=question.words)


def _draw_question(paper: Paper, rng: random.Random) -> PaperQuestion:
    """Mostly one that the paper answers; else one that it does not, maybe of another kind."""
    on_forms = form_questions(paper)
    if on_forms and rng.random() < 0.15:
        return rng.choice(on_forms)
    questions = paper_questions(paper)
    answered = [question for question in questions if question.answer != UNANSWERABLE]
    absent = [question for question in questions if question.answer == UNANSWERABLE]
    if answered and rng.random() < 0.76:
        return rng.choice(answered)
    if absent and rng.random() < 0.7:
        return rng.choice(absent)
    asked = {wording for question in questions for wording in question.wordings}
    others = [
        (path, wordings)
        for kinds in QUESTIONS.values()
        for path, wordings in kinds.items()
        if "{}" not in wordings[0] and not asked & set(wordings)
    ]
    path, wordings = rng.choice(others)
    return PaperQuestion(path=path, wordings=wordings[:1], answer=UNANSWERABLE)


def _draw_place(paper: Paper, rng: random.Random) -> PaperExample:
    """`detect` and a value: its box, or nothing where it is not printed."""
    texts = [field.value for field in paper.fields]
    field = rng.choice(paper.fields)
    value, suffix = field.value, f"{format_box(field.box_xyxy)} {field.value}"
    words = _words_of(paper, [field.path])
    if rng.random() < 0.12:
        value, suffix, words = rng.choice(printed_words()), "", ()
    if texts.count(value) > (suffix != ""):
        return PaperExample(prefix=OcrTask().prompt(), suffix=paper.text, words=paper.words)
    return PaperExample(prefix=DetectTask.of([value]).prompt(), suffix=suffix, words=words)


def _plain(path: str) -> str:
    """
    >>> _plain("medicines[0].dose"), _plain("diseases[1]")
    ('medicines.dose', 'diseases')
    """
    return re.sub(r"\[[0-9]+\]", "", path)


def _question(
    paper: Paper, path: str, wordings: tuple[str, ...], wanted: Sequence[str]
) -> PaperQuestion:
    values = [field.value for field in paper.fields if field.path in wanted]
    return PaperQuestion(
        path=path,
        wordings=wordings,
        answer=", ".join(values) or UNANSWERABLE,
        words=_words_of(paper, wanted),
    )


def _words_of(paper: Paper, paths: Sequence[str]) -> tuple[SceneWord, ...]:
    """The printed words of fields, in the order of the paths."""
    boxes = [field.box_xyxy for path in paths for field in paper.fields if field.path == path]
    return tuple(
        word
        for x0, y0, x1, y1 in boxes
        for word in paper.words
        if x0 <= word.box_xyxy[0] and word.box_xyxy[2] <= x1
        if y0 <= word.box_xyxy[1] and word.box_xyxy[3] <= y1
    )
