"""EvalOptions: what a user chooses for an evaluation. Imports nothing heavy, for a quick --help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from paligemma.data.source import ReadOptions
from paligemma.errors import OptionError
from paligemma.extraction.dates import DateOrder
from paligemma.extraction.options import Mode
from paligemma.extraction.values import DecimalMark
from paligemma.options import Option

TaskName = Literal["caption", "answer", "ocr", "detect", "segment", "read_text", "generate"]
"""read_text: boxes labeled with the text inside. generate: any other text."""
Ask = Literal["dataset", "present", "all classes"]
"""Classes to ask for where records have objects and no prefix; as in training."""


def check_task(task: str | None) -> None:
    """Raises OptionError for a task that does not exist."""
    if task is not None and task not in get_args(TaskName):
        raise OptionError(f"There is no task {task!r}. Tasks: {', '.join(get_args(TaskName))}.")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How `evaluate` asks and scores. None means: chosen by task, model or data set."""

    task: Annotated[TaskName | None, Option(shown_default="by the first word of the prefix")] = None
    """Kind of answer to expect. It decides the answer length and the metrics."""
    ask: Annotated[Ask | None, Option(shown_default="as trained, else dataset")] = None
    """Classes to ask for in records without a prefix: all classes of the data set ("dataset"),
    those in the image ("present"), or the words "all classes". A fine-tuned model or adapter is
    asked as in its training, for the classes that it was trained on."""
    metrics: Annotated[tuple[str, ...], Option(flags=("--metric",), shown_default="by task")] = ()
    """Metric to compute (docs/metrics.md lists them); may be repeated. Rerunning with another
    metric rescores without generating again."""
    limit: Annotated[int | None, Option(least=1, shown_default="all")] = None
    """Maximum number of records to evaluate."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by resolution")] = None
    """Records per batch. It changes the speed, not the answers."""
    max_new_tokens: Annotated[int | None, Option(least=1, shown_default="by task")] = None
    """Maximum number of tokens per answer."""
    num_beams: Annotated[int, Option(least=1)] = 1
    """Number of beams; more than 1 uses beam search."""
    constrained: bool = True
    """Use grammar-constrained decoding for lists of objects."""
    any_label: bool = False
    """Allow labels that were not requested."""
    max_objects: Annotated[int | None, Option(least=1, shown_default="100")] = None
    """Maximum number of objects per image."""
    calibrate: bool = False
    """Calibrate the scores of objects: fit a temperature and a threshold; write calibration.json
    and reliability.svg."""
    seed: Annotated[int, Option(least=0)] = 0
    """Random seed of the bootstrap samples that give the confidence intervals."""

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.metrics:
            # Raises for a name that does not exist, before a model is loaded.
            from paligemma.evals.named_metrics import metric_named

            for name in self.metrics:
                metric_named(name)


@dataclass(frozen=True, kw_only=True)
class EvalRunOptions(EvalOptions, ReadOptions):
    """`paligemma eval`: the data to evaluate on, and how."""

    data: str
    """Labeled images (a file or folder), documents with their true fields (a .jsonl file), or the
    name of a benchmark such as refcoco or cord, whose official files are in --folder."""
    folder: Annotated[Path | None, Option(shown_default="none")] = None
    """Folder with the benchmark's unpacked files."""
    split: Annotated[str | None, Option(shown_default="test, else val; never train")] = None
    """Split to evaluate, if the data has several."""
    schema: Annotated[str | None, Option(shown_default="that of the data")] = None
    """For documents with fields: what to read, as for `paligemma extract`: prescription, invoice,
    receipt, id-card, form, product, schema.json or my.py:Invoice."""
    language: str = "en"
    """For documents with fields: language code of questions and document; "" leaves it out."""
    date_order: DateOrder = "auto"
    """For documents with fields: order of day, month and year in dates such as 03/04/2026."""
    decimal_mark: DecimalMark = "auto"
    """For documents with fields: decimal mark of amounts."""
    mode: Mode = "questions"
    """For documents with fields: a short question per value, or one prompt per page (json), for
    models that were fine-tuned to write JSON."""
    turn: bool = True
    """For documents with fields: turn pages without a text layer upright, by trying which way the
    model reads best; leave it off for pages that are all upright."""

    def __post_init__(self) -> None:
        EvalOptions.__post_init__(self)
        ReadOptions.__post_init__(self)
