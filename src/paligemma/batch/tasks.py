"""What a job asks about each image: from the name of a task and its options to its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from paligemma.errors import OptionError, check_choice, check_whole

if TYPE_CHECKING:
    from paligemma.answering import Query
    from paligemma.checkpoints.trained_on import TrainedOn

TaskName = Literal[
    "caption", "describe", "ask", "ocr", "detect", "segment", "read", "extract", "embed"
]
WITH_OBJECTS = ("detect", "segment")
WITH_TEXT = ("ask", "detect", "segment")
"""Tasks with a text of the user's: a question, or the names of objects."""


@dataclass(frozen=True, kw_only=True)
class BatchTask:
    """The task of a job. Raises OptionError, or PromptError, for what no image could be asked."""

    name: TaskName
    text: str | None = None
    """The question of `ask`, or the names of objects for `detect` and `segment`; None for what the
    model was trained on."""
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
        if self.text is not None and self.name not in WITH_TEXT:
            raise OptionError(f"{self.name} takes no text, but got {self.text!r}.")
        if self.name == "ask" and not self.text:
            raise OptionError('ask needs a question: ask "how many people are there?"')
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
        elif self.name not in ("read", "embed") and not (
            self.name in WITH_OBJECTS and self.text is None
        ):
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
