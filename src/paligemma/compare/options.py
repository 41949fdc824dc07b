"""CompareOptions: what is asked of all contestants, and how. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

from paligemma.data.source import ReadOptions
from paligemma.evals.options import EvalOptions, TaskName, check_task
from paligemma.options import Option

MAX_SIDE = 1024
TIMEOUT_SECONDS = 120.0
_PATHS = ("images", "class_names")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ReadOptions):
    """What to ask about images; without a question, the records of labeled data are asked."""

    ask: Annotated[tuple[str, ...], Option(shown_default="none")] = ()
    """Question to ask about every image; may be repeated."""
    caption: bool = False
    """Ask for a caption of every image."""
    describe: bool = False
    """Ask for a description of every image in several sentences."""
    ocr: bool = False
    """Ask for the text in every image."""
    detect: Annotated[str | None, Option(shown_default="none")] = None
    """Names of objects to find in every image, separated by " ; "."""
    segment: Annotated[str | None, Option(shown_default="none")] = None
    """Names of objects to find in every image, with masks."""
    prompt: Annotated[tuple[str, ...], Option(shown_default="none")] = ()
    """Prompt to give to every contestant as it stands; may be repeated."""
    language: str = "en"
    """Language code of questions and answers; "" leaves it out of questions."""
    task: Annotated[TaskName | None, Option(shown_default="by the first word of the prefix")] = None
    """Kind of answer that the records of labeled data ask for."""
    metrics: Annotated[tuple[str, ...], Option(flags=("--metric",), shown_default="by task")] = ()
    """Metric to compare by (docs/metrics.md lists them); may be repeated. The first one decides
    what is right and wrong."""
    limit: Annotated[int | None, Option(least=1, shown_default="all")] = None
    """Maximum number of questions."""
    batch_size: Annotated[int, Option(least=1)] = 1
    """Questions that a contestant of this machine answers at a time. With more than one, the
    seconds per answer are those of a batch, divided."""
    max_new_tokens: Annotated[int | None, Option(least=1, shown_default="by task")] = None
    """Maximum length of an answer, in tokens."""
    device: str = "auto"
    """Device for contestants of this machine: auto, cpu, cuda, cuda:1 or mps."""
    threads: Annotated[int | None, Option(least=1, shown_default="as many as CPUs")] = None
    """Number of CPU threads to compute with."""
    offline: bool = False
    """Use only model files that are already downloaded."""
    max_side: Annotated[int, Option(least=32)] = MAX_SIDE
    """Longest side of images sent to endpoints, in pixels; larger ones are scaled down."""
    timeout: Annotated[float, Option(least=1)] = TIMEOUT_SECONDS
    """Seconds in which an endpoint must have answered."""
    retry_failed: bool = False
    """Ask again what ended with an error in an earlier run of the same command."""
    seed: Annotated[int, Option(least=0)] = 0
    """Random seed of the bootstrap samples that give the intervals."""

    def __post_init__(self) -> None:
        ReadOptions.__post_init__(self)
        check_task(self.task)
        EvalOptions(metrics=self.metrics)  # refuses names that do not exist

    @property
    def has_questions(self) -> bool:
        """Whether something is asked about every image, instead of what labeled data ask."""
        words = (self.ask, self.prompt, self.detect, self.segment)
        return any((*words, self.caption, self.describe, self.ocr))

    def eval_options(self) -> EvalOptions:
        """The same for `evals`."""
        return EvalOptions(
            task=self.task,
            metrics=self.metrics,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return values | {name: values[name] and str(values[name]) for name in _PATHS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` made."""
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        paths = {name: Path(values[name]) if values[name] else None for name in _PATHS}
        return cls(**{**values, **paths})


def answer_settings(options: CompareOptions) -> dict[str, Any]:
    """The options on which answers depend; those of the report may change from run to run."""
    left_out = {
        *("metrics", "limit", "batch_size", "threads", "offline", "timeout", "retry_failed"),
        *("seed", "on_bad_record", "max_skipped", "ask", "prompt", "caption", "describe", "ocr"),
        *("detect", "segment"),
    }
    names = [field.name for field in fields(options) if field.name not in left_out]
    return {name: options.to_dict()[name] for name in names}
