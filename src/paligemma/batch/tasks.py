"""What a job asks about each image: from the name of a task and its options to its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from paligemma.errors import OptionError, check_choice, check_whole

if TYPE_CHECKING:
    from paligemma.answering import Query
    from paligemma.batch.source import Item
    from paligemma.checkpoints.trained_on import TrainedOn

TaskName = Literal[
    "caption", "describe", "ask", "ocr", "detect", "segment", "read", "extract", "embed"
]
WITH_OBJECTS = ("detect", "segment")
TEXT_COLUMNS = {"ask": "question", "detect": "names", "segment": "names"}
"""Tasks with a text of the user's, and the column of tables that has it for each row."""


@dataclass(frozen=True, kw_only=True)
class BatchTask:
    """The task of a job. Raises OptionError, or PromptError, for what no image could be asked."""

    name: TaskName
    text: str | None = None
    """The question of `ask`, or the names of objects for `detect` and `segment`. None: each row has
    its own, or, for objects, what the model was trained on."""
    language: str = "en"
    max_new_tokens: int | None = None
    max_objects: int | None = None
    """None: 100."""
    any_label: bool = False
    separate: bool | None = None
    """Ask for each object by itself; None: where one is missing or has another name."""
    schema: str | dict[str, Any] | None = None
    """For `extract`: the name of a built-in schema, or a JSON schema."""

    def __post_init__(self) -> None:
        check_choice("The task", self.name, TaskName)
        if self.max_new_tokens is not None:
            check_whole("max_new_tokens", self.max_new_tokens)
        if self.max_objects is not None:
            check_whole("max_objects", self.max_objects)
        if self.text is not None and self.text_column is None:
            raise OptionError(f"{self.name} takes no text, but got {self.text!r}.")
        if self.schema is None and self.name == "extract":
            raise OptionError(
                "extract needs a schema: the name of a built-in one, such as invoice, or a JSON "
                "schema."
            )
        if self.schema is not None and self.name != "extract":
            raise OptionError(f"{self.name} takes no schema; only extract does.")
        if self.name == "extract":
            from paligemma.extraction.schema import read_schema

            read_schema(self.schema)  # type: ignore[arg-type]
        elif self.name == "ask" and self.text is None:
            from paligemma.tasks.task import check_language

            check_language(self.language or "en")
        elif self.is_query and not (self.name in WITH_OBJECTS and self.text is None):
            from paligemma.answering import check_control_words

            check_control_words(self.query(None).text)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> BatchTask:
        """The task that `to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON holds it."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    @property
    def text_column(self) -> str | None:
        """The column of a table, or the entry of a row, that has the text; None for no text."""
        return TEXT_COLUMNS.get(self.name)

    def check_items(self, items: Sequence[Item]) -> None:
        """Raises OptionError unless all items get the text of the task, or all have their own."""
        own = next((item for item in items if item.asks), None)
        without = next((item for item in items if not item.asks), None)
        column = self.text_column
        if own is not None and self.text is not None:
            raise OptionError(
                f'{own.place} has a "{column}" of its own, {own.asks[str(column)]!r}, and the task '
                f"has {self.text!r} for all. Leave out one of them: the text of the task, or the "
                f'column "{column}".'
            )
        if without is None or self.text is not None or (own is None and self.name != "ask"):
            return
        if own is None and not without.place:
            raise OptionError(
                'ask needs a question: ask "how many people are there?"; or a table (.jsonl, '
                '.parquet) with a column "question".'
            )
        others = "" if own is None else f", but {own.place} has one"
        every = "" if self.name != "ask" else ", or ask one question of all: ask QUESTION"
        raise OptionError(
            f'{without.place or repr(without.key)} has no "{column}"{others}. Give each row one'
            f"{every}."
        )

    def of_row(self, row: Mapping[str, Any]) -> BatchTask:
        """The task as a row asks it, such as {"image": "a.jpg", "question": "how many?"}.

        Raises OptionError, or PromptError, for a row without a question, or with a text that the
        task does not take.
        """
        texts = {name: row[name] for name in TEXT_COLUMNS.values() if row.get(name) is not None}
        text = texts.pop(str(self.text_column), None)
        if texts:
            raise OptionError(
                f'The row has "{next(iter(texts))}", which {self.name} does not take.'
            )
        if text is None:
            if self.name == "ask" and self.text is None:
                raise OptionError('The row has no "question", and the task has none for all.')
            return self
        if self.text is not None:
            raise OptionError(
                f'The row has a "{self.text_column}" of its own, {text!r}, and the task has '
                f"{self.text!r} for all. Leave out one of them."
            )
        return replace(self, text=text)

    @property
    def is_query(self) -> bool:
        """Whether it is one question about one image, so that many are answered together."""
        return self.name in _QUERIES or self.name in WITH_OBJECTS

    def query(self, trained_on: TrainedOn | None) -> Query:
        """Of a task that `is_query`; `trained_on` is for objects that are not named."""
        from paligemma.answering import Query

        if self.name in WITH_OBJECTS:
            query = self._query_for_objects(trained_on)
        else:
            query = Query(task=_QUERIES[self.name](self))
        return replace(query, max_new_tokens=self.max_new_tokens)

    def _query_for_objects(self, trained_on: TrainedOn | None) -> Query:
        from paligemma.answering import Query
        from paligemma.predictor import asked_for
        from paligemma.tasks.detect import DetectTask
        from paligemma.tasks.segment import SegmentTask

        asked = asked_for(
            self.name,
            self.text,
            trained_on,
            labels="any" if self.any_label else "asked",
            separate=self.separate,
        )
        limit = {} if self.max_objects is None else {"max_objects": self.max_objects}
        kind = DetectTask if self.name == "detect" else SegmentTask
        task = kind(phrases=asked.phrases, labels=asked.labels, **limit)
        return Query(task=task, separate=asked.separate, notes=asked.notes)


def _caption(task: BatchTask) -> Any:
    from paligemma.tasks.text import CaptionTask

    style: Literal["caption", "describe"] = "describe" if task.name == "describe" else "caption"
    return CaptionTask(language=task.language, style=style)


def _answer(task: BatchTask) -> Any:
    from paligemma.tasks.text import AnswerTask

    return AnswerTask(question=task.text or "", language=task.language or None)


def _ocr(task: BatchTask) -> Any:
    from paligemma.tasks.text import OcrTask

    return OcrTask()


_QUERIES: dict[str, Callable[[BatchTask], Any]] = {
    "caption": _caption,
    "describe": _caption,
    "ask": _answer,
    "ocr": _ocr,
}
