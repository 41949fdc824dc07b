"""How fields are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from paligemma.errors import OptionError, check_choice
from paligemma.extraction.dates import DateOrder
from paligemma.extraction.result import ValueSource
from paligemma.extraction.values import DecimalMark, Formats
from paligemma.options import Option
from paligemma.tasks.task import check_language

Check = Literal["once", "twice"]
QuestionLanguage = Literal["en", "de", "es", "fr", "it", "nl", "pt"]
Mode = Literal["questions", "json"]


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How the fields of a document are asked for, and how their values are read.

    Raises OptionError for values that are not allowed.
    """

    source: ValueSource = "model"
    """Where the values are from. xml: the XML of an electronic invoice (Factur-X, ZUGFeRD, UBL)
    inside of a PDF file, or as a file of its own, without a model."""
    language: str = "en"
    """Language code of the document, for the prompt and for dates; "" leaves it out of the
    prompt."""
    question_language: QuestionLanguage = "en"
    """Language that the descriptions and names in the schema are written in."""
    pages: Annotated[str | None, Option(shown_default="all")] = None
    """Pages to read, such as 1-3,7."""
    password: Annotated[str | None, Option(shown_default="none")] = None
    """Password of PDF files that need one."""
    date_order: DateOrder = "auto"
    """Order of day, month and year in dates such as 03/04/2026. auto: what may be two dates is
    reported instead of guessed."""
    decimal_mark: DecimalMark = "auto"
    """Decimal mark of amounts. auto: by the separators in each amount."""
    min_score: Annotated[float, Option(least=0, most=1)] = 0.5
    """Fields with lower scores are marked as unsure."""
    check: Check = "once"
    """twice: ask for every value in a second way too, and report where the answers differ."""
    mode: Mode = "questions"
    """questions: a short question per value. json: one prompt per page, for models that were
    fine-tuned to write JSON."""
    json_prompt: str = "extract JSON"
    """Prompt of the mode json."""
    turn: bool = True
    """Turn pages without a text layer upright, by trying which way the model reads best."""
    whole_page_score: Annotated[float, Option(least=0, most=1)] = 0.6
    """Minimum score of an answer about the whole page; below, parts of the page are asked about
    too."""  # measured with mini, for which 0.5 and more are alike: docs/document-benchmarks.md
    detect: Annotated[bool, Option()] = True
    """Find the place of each value that the file's text layer does not have."""
    min_box_score: Annotated[float, Option(least=0, most=1)] = 0.5
    """Minimum score of a box found so; below, the part of the page that was asked about is given
    as the place."""  # a choice, more likely right than wrong: mini finds no texts to measure it

    max_questions: Annotated[int | None, Option(least=1, shown_default="no limit")] = None
    """Most questions to ask about a document, those for places included; one that needs more is
    an error."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of questions to answer at a time."""

    def __post_init__(self) -> None:
        if self.language:
            check_language(self.language)
        check_choice("question_language", self.question_language, QuestionLanguage)
        check_choice("source", self.source, ValueSource)
        check_choice("check", self.check, Check)
        check_choice("mode", self.mode, Mode)
        self.formats  # noqa: B018 - raises for a wrong order of dates or decimal mark
        if self.mode == "json" and self.check == "twice":
            raise OptionError("check='twice' needs mode='questions'. Leave one of them out.")
        if self.source == "xml" and (self.mode == "json" or self.check == "twice"):
            raise OptionError(
                "source='xml' asks no model. Leave out mode='json' and check='twice'."
            )
        for name in ("min_score", "whole_page_score", "min_box_score"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise OptionError(f"{name} is {value!r}; it must be a number from 0 to 1.")

    @property
    def formats(self) -> Formats:
        """How dates and amounts are read."""
        return Formats(
            date_order=self.date_order,
            decimal_mark=self.decimal_mark,
            language=self.language[:2] or None,
        )
