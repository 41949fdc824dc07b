"""Read a chart in an image: its labels and values, in the forms that models write.

    TITLE | Opinion <0x0A> Year | For | Against <0x0A> 2004 | 68.1% | 31.9%     DePlot
    CAT 3 ; A 5                                                                 mini
    A: 28, B: 55, C: 43                                                         plain answers

A line break may stand for `<0x0A>`. The score of a point is the probability of its label and its
value, each with what ends it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from paligemma.charts import Chart, ChartKind, Point, Series
from paligemma.errors import counted
from paligemma.processor.image import ImageTransform
from paligemma.results import Problem, one_line
from paligemma.tasks.answer_text import generation_of_text
from paligemma.tasks.objects import TokenReader
from paligemma.tasks.scored_text import LOCATION, ScoredText
from paligemma.tasks.task import AnswerKind, Generated, TaskContext

CHART_PROMPT = "chart"
MAX_POINTS = 10_000
_LINE = re.compile(r"\n|<0x0A>")
_ENTRY_END = re.compile(r"\n|<0x0A>|;|,(?!\d)|(?<!\d),|(?<=[\d%])\s+and\s+")
_CURRENCY = r"(?:[$€£¥₹]|USD|EUR|GBP|CHF|JPY|INR|CNY)"
_DIGITS = r"(?:[0-9](?:[0-9.,'’\u00a0\u202f ]{0,40}[0-9])?|[.,][0-9]{1,40})"
_NUMBER = re.compile(
    rf"{_CURRENCY}?\s?(?P<open>\()?(?P<sign>[+\-−–]?)\s?{_CURRENCY}?\s?(?P<digits>{_DIGITS})"
    r"(?P<exponent>[eE][+\-]?[0-9]{1,3})?\s?(?P<unit>[^\s\d()][^\d()]{0,23})?\)?"
)
_SCALES = {
    "k": 1e3, "K": 1e3, "thousand": 1e3, "M": 1e6, "mn": 1e6, "million": 1e6, "B": 1e9, "bn": 1e9,
    "billion": 1e9, "trillion": 1e12, "thousands": 1e3, "millions": 1e6, "billions": 1e9,
    "tsd": 1e3, "mio": 1e6, "millionen": 1e6, "mrd": 1e9, "milliarden": 1e9, "milliers": 1e3,
    "milliard": 1e9, "milliards": 1e9, "millones": 1e6, "mld": 1e9, "milioni": 1e6, "miliardi": 1e9,
}  # fmt: skip
"""English, and abbreviations and words of German, French, Spanish and Italian charts."""
# What ends an entry: a number with a sign, currency and unit, or a word for no value.
_VALUE_AT_END = re.compile(
    r"(?:[\s:=(]|[-–—]\s)*(?:\b(?:is|was|has|at|with)\s+)?"
    rf"([+\-−–]?{_CURRENCY}?\s?[+\-−–]?(?:[0-9][0-9.,'’\u00a0\u202f]*|[.][0-9]+)"
    r"(?:[eE][+\-]?[0-9]{1,3})?\s?"
    r"(?:%|‰|°[CF]?|[€$£¥₹][^\W\d]{0,3}|[^\W\d]{1,12}(?:\.?\s?[€$£¥₹])?)?"
    r"|n/?a|none|unanswerable)[.)]?\Z",
    re.IGNORECASE,
)
_LONGEST_ENTRY = 300
_KINDS: tuple[tuple[str, ChartKind], ...] = (
    ("bars?|columns?|histogram", "bar"),
    ("pie|donut|doughnut", "pie"),
    ("scatter|bubble", "scatter"),
    ("area", "area"),
    ("lines?", "line"),
)
_RULE = re.compile(r":?-{2,}:?")  # of a table in Markdown
_YEAR = re.compile(r"(1[89]|20)[0-9]{2}")
_LONGEST_NUMBER = 100
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class ChartTask:
    """Read the chart in the image; for checkpoints tuned for it, and for mini.

    >>> ChartTask().prompt()
    'chart'
    """

    answer_kind: ClassVar[AnswerKind] = "chart"

    def prompt(self) -> str:
        return CHART_PROMPT

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Chart:
        answer = ScoredText.of(generated, tokenizer)
        reader = _Reader(answer=answer)
        reader.read()
        if generated.stop_reason == "length":
            end = len(answer.text)
            detail = (
                f"the chart ended at the limit of {len(generated.token_ids)} tokens; points are "
                "missing. Ask again with a larger max_new_tokens"
            )
            reader.problem("cut", detail, end, end)
        return Chart(
            series=tuple(Series(name=n, points=tuple(p)) for n, p in reader.series),
            title=reader.title,
            x_title=reader.x_title,
            kind=kind_in(reader.title),
            problems=tuple(reader.problems),
            size_wh=context.transform.source_wh,
            text=answer.text.replace(LOCATION, "").strip(),
            stop_reason=generated.stop_reason,
        )


def parse_chart(text: str, size_wh: tuple[int, int] = (1, 1)) -> Chart:
    """Read the chart in an answer that another program got from a model. Scores are NaN.

    >>> parse_chart("CAT 3 ; A 5").values
    {'': {'CAT': 3.0, 'A': 5.0}}
    """
    generated, tokenizer = generation_of_text(text)
    transform = ImageTransform(source_wh=size_wh, resolution=224)
    return ChartTask().parse(generated, tokenizer, TaskContext(transform=transform))


def kind_in(text: str) -> ChartKind | None:
    """The kind of chart that a text names.

    >>> kind_in("a stacked bar graph"), kind_in("sales")
    ('bar', None)
    """
    for words, kind in _KINDS:
        pattern = rf"\b(?:{words})\s?(?:chart|graph|plot|diagram)"
        if re.search(pattern, text, re.I) or re.fullmatch(words, text.strip(" ."), re.I):
            return kind
    return None


def number_in(text: str) -> float | None:
    """The number that a text is, without its unit; None where it is no number.

    With both marks, the last one is the decimal one. A single comma with three digits after it
    separates thousands. "(5)" is -5; "1.2M", "1.2 M€" and "1,2 Mio. €" are 1,200,000.

    >>> number_in("45.0 %"), number_in("$1,234.5"), number_in("1.234,5 €"), number_in("Total")
    (45.0, 1234.5, 1234.5, None)
    """
    text = text.strip()
    if len(text) > _LONGEST_NUMBER:
        return None
    match = _NUMBER.fullmatch("".join(_ascii_digit(character) for character in text))
    number = None if match is None else _plain_number(re.sub(r"['’\s]", "", match["digits"]))
    if match is None or number is None:
        return None
    value = float(f"{number}{match['exponent'] or ''}")
    value *= scale_of(match["unit"] or "")
    if match["open"] or match["sign"] in ("-", "−", "–"):
        value = -value
    return value if math.isfinite(value) else None


def scale_of(unit: str) -> float:
    """What a number is multiplied by for its unit, such as "M", "k€" and "Mio. €"; else 1.

    >>> scale_of("k€"), scale_of("Mio. EUR"), scale_of("kg")
    (1000.0, 1000000.0, 1.0)
    """
    word = re.split(r"\s", unit, maxsplit=1)[0].rstrip(".")
    word = re.sub(rf"^{_CURRENCY}|{_CURRENCY}$", "", word)
    return _SCALES.get(word, _SCALES.get(word.casefold(), 1.0) if len(word) > 1 else 1.0)


def value_in(text: str) -> str | None:
    """The value at the end of a plain answer, with its unit; None where there is none.

    >>> value_in("The value is $1,200."), value_in("unanswerable")
    ('$1,200', None)
    """
    text = text.strip()
    match = None if len(text) > _LONGEST_ENTRY else _VALUE_AT_END.search(text)
    return match[1] if match is not None and re.search(r"\d", match[1]) else None


def _ascii_digit(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    return character if digit is None else str(digit)


def _plain_number(digits: str) -> str | None:
    """The digits with a decimal point, if any, and without separators of thousands.

    >>> _plain_number("1,234"), _plain_number("1,5"), _plain_number("1.234.567")
    ('1234', '1.5', '1234567')
    """
    marks = [c for c in digits if c in ".,"]
    decimal = ""
    if len(set(marks)) == 2:
        decimal = marks[-1]
        if marks.count(decimal) > 1:
            return None
    elif len(marks) == 1:
        after = digits.split(marks[0])[1]
        is_thousands = marks[0] == "," and len(after) == 3 and not digits.startswith((",", "0,"))
        decimal = "" if is_thousands else marks[0]
    whole, _, fraction = digits.partition(decimal) if decimal else (digits, "", "")
    groups = re.split("[.,]", whole)
    if len(groups) > 1 and any(len(group) != 3 for group in groups[1:]):
        return None
    return f"{''.join(groups) or '0'}.{fraction}" if decimal else "".join(groups)


class _Part(NamedTuple):
    """A piece of the answer: text[start:end], stripped."""

    start: int
    end: int
    text: str


@dataclass(kw_only=True)
class _Reader:
    answer: ScoredText
    series: list[tuple[str, list[Point]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    title: str = ""
    x_title: str = ""
    _num_points: int = 0

    def problem(self, kind: str, detail: str, start: int, end: int) -> None:
        span = self.answer.tokens(start, end) if end > start else (len(self.answer.starts),) * 2
        self.problems.append(Problem(kind=kind, detail=detail, token_span=span))  # type: ignore[arg-type]

    def read(self) -> None:
        """Fill `series` and `problems`."""
        text = self.answer.text
        if "|" in text:
            self._read_rows()
        else:
            self._read_entries()
        if not self._num_points and not self.problems:
            self.problem("malformed", f"The answer has no values: {text[:_SHOWN]!r}.", 0, len(text))
        if self._num_points > MAX_POINTS:
            detail = f"the chart has more than {MAX_POINTS} points; the rest was left out"
            self.problem("cut", detail, len(text), len(text))

    # DePlot: a table in lines

    def _read_rows(self) -> None:
        rows = [self._cells(line) for line in self._parts(_LINE, 0, len(self.answer.text))]
        rows = [row for row in rows if not all(_RULE.fullmatch(cell.text) for cell in row)]
        has_title = bool(rows) and rows[0][0].text.upper() == "TITLE"
        if has_title:
            self.title = " | ".join(cell.text for cell in rows.pop(0)[1:])
        if rows and (has_title or _is_heading(rows)):
            heading = rows.pop(0)
            self.x_title = heading[0].text
            self.series = [(cell.text, []) for cell in heading[1:]]
            self._note_repeated(heading[1:])
        for row in rows:
            self._read_row(row)

    def _note_repeated(self, names: list[_Part]) -> None:
        seen: set[str] = set()
        for name in names:
            if name.text in seen:
                detail = f"several series are called {name.text[:_SHOWN]!r}"
                self.problem("repeated", detail, name.start, name.end)
            seen.add(name.text)

    def _cells(self, line: _Part) -> list[_Part]:
        cells = list(self._parts(re.compile(r"\|"), line.start, line.end, keep_empty=True))
        while cells and not cells[-1].text:
            cells.pop()
        if len(cells) > 1 and not cells[0].text and line.text.startswith("|"):
            cells.pop(0)  # lines of Markdown begin with a bar
        return cells

    def _read_row(self, row: list[_Part]) -> None:
        label, *values = row
        if not self.series:
            self.series = [("", []) for _ in values[:1]]
        if len(values) != len(self.series):
            detail = (
                f"The row {label.text[:_SHOWN]!r} has {counted(len(values), 'value')}; expected "
                f"{len(self.series)}."
            )
            self.problem("malformed", detail, label.start, row[-1].end)
        for (_, points), value in zip(self.series, values, strict=False):
            if value.text:
                self._add(points, label, value)

    # Lists of labels and values

    def _read_entries(self) -> None:
        points: list[Point] = []
        for entry in self._parts(_ENTRY_END, 0, len(self.answer.text)):
            is_long = len(entry.text) > _LONGEST_ENTRY
            match = None if is_long else _VALUE_AT_END.search(entry.text)
            if match is None:
                detail = f"Not a label and a value: {entry.text[:_SHOWN]!r}."
                self.problem("malformed", detail, entry.start, entry.end)
                continue
            middle = entry.start + match.start(1)
            label = _Part(entry.start, entry.start + match.start(), entry.text[: match.start()])
            self._add(points, label, _Part(middle, entry.start + match.end(1), match[1]))
        if points:
            self.series = [("", points)]

    # Both

    def _add(self, points: list[Point], label: _Part, value: _Part) -> None:
        self._num_points += 1
        if self._num_points > MAX_POINTS:
            return
        y = number_in(value.text)
        if y is None:
            name, text = label.text[:_SHOWN], value.text[:_SHOWN]
            detail = f"The value of {name!r} is not a number: {text!r}."
            self.problem("malformed", detail, value.start, value.end)
        score = self.answer.probability(value.start, value.end + 1)
        if label.text:
            score *= self.answer.probability(label.start, label.end + 1)
        points.append(Point(x=one_line(label.text), y=y, raw=one_line(value.text), score=score))

    def _parts(
        self, separator: re.Pattern[str], start: int, end: int, *, keep_empty: bool = False
    ) -> Iterator[_Part]:
        """What is between the separators, without white space around it."""
        text = self.answer.text
        begin = start
        ends = [(m.start(), m.end()) for m in separator.finditer(text, start, end)]
        for stop, following in (*ends, (end, end)):
            piece = text[begin:stop]
            stripped = piece.strip()
            if stripped or keep_empty:
                first = begin + len(piece) - len(piece.lstrip())
                yield _Part(first, first + len(stripped), stripped.replace(LOCATION, ""))
            begin = following


def _is_heading(rows: list[list[_Part]]) -> bool:
    """Whether the first row names the columns: its values are no numbers, or years."""
    values = [cell.text for cell in rows[0][1:]]
    if not values or len(rows) == 1:
        return bool(values) and all(number_in(value) is None for value in values)
    is_years = len(values) > 1 and all(_YEAR.fullmatch(value) for value in values)
    return is_years or any(value and number_in(value) is None for value in values)
