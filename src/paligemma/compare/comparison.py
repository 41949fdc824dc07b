"""Compare models on the same images: who answers what, how well, how fast, in how much memory."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paligemma import __version__
from paligemma.compare.agreement import (
    Agreement,
    Majority,
    agreements,
    disagreement,
    majority_of,
)
from paligemma.compare.contest import Answers, Progress, hold_contest
from paligemma.compare.contestants import read_contestants
from paligemma.compare.options import CompareOptions
from paligemma.compare.quality import Difference, Judge, Quality
from paligemma.compare.questions import (
    Questions,
    image_name,
    read_questions,
    truth_of,
    without_unreadable,
)
from paligemma.data.record import BadRecord, Record
from paligemma.data.source import images_in
from paligemma.errors import ImageError, OptionError, counted
from paligemma.evals.metrics.result import ReferenceObject
from paligemma.evals.metrics.texts import edit_distance
from paligemma.evals.options import TaskName
from paligemma.evals.predictions import OBJECT_TASKS, SuffixReader
from paligemma.loading import MINI, load_processor
from paligemma.processor.processor import Processor
from paligemma.tasks.seg_codec import MaskCodec
from paligemma.writing import write_whole

REPORT_FILE = "report.json"
ANSWERS_FILE = "answers.jsonl"
PAGE_FILE = "compare.html"


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of single answers."""

    median: float
    p95: float
    """Of 20 answers, 19 took no longer."""
    total: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one contestant needed."""

    name: str
    kind: str
    num_answered: int
    num_failed: int
    failure: str | None
    """Why it could not answer, or not to the end."""
    first_error: str | None
    """Of the first question without an answer."""
    seconds: Seconds | None
    load_seconds: float | None
    peak_bytes: int | None
    """Peak resident memory of its process; None where it is not visible."""
    peak_gpu_bytes: int | None
    mean_tokens: float | None
    """Tokens of an answer, in the contestant's own vocabulary."""
    mean_bytes_sent: float | None
    num_retries: int
    asked: str
    """The first question as this contestant got it."""
    info: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare_models`."""

    name: str
    rows: tuple[Row, ...]
    qualities: tuple[Quality, ...]
    """Empty where the true answers are not known."""
    differences: tuple[Difference, ...]
    agreements: tuple[Agreement, ...]
    questions: Questions
    answers: tuple[Answers, ...]
    right: Mapping[str, Mapping[str, bool]]
    """Contestant -> record id -> whether the answer is right, where that is known."""
    disagreements: Mapping[str, float]
    """Record id -> 0 where all agree, 1 where no two answers have anything in common."""
    majorities: Mapping[str, Majority]
    true_objects: Mapping[str, tuple[ReferenceObject, ...]]
    sizes: Mapping[str, tuple[int, int]]
    bad: tuple[BadRecord, ...]
    notes: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every contestant answered everything, and every image could be read."""
        return not self.bad and not any(row.failure or row.num_failed for row in self.rows)

    @property
    def bad_note(self) -> str | None:
        """What the user should know of images that could not be used."""
        if not self.bad:
            return None
        images = {record.where for record in self.bad}
        return f"{counted(len(images), 'image')} could not be used. The first: {self.bad[0].reason}"

    @property
    def identity(self) -> str:
        """A short text that is the same for the same questions and contestants, for votes."""
        names = [row.name for row in self.rows]
        ids = [record.record_id for record in self.questions.data.records]
        return hashlib.sha256(json.dumps([names, ids]).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without single answers."""
        return {
            "paligemma_comparison": 1,
            "id": self.identity,
            "data": self.name,
            "num_records": len(self.questions.data.records),
            "num_bad": len(self.bad),
            "options": self.questions.options.to_dict(),
            "contestants": [asdict(row) for row in self.rows],
            "scores": [
                {
                    "contestant": quality.contestant,
                    "task": quality.task,
                    "num_records": quality.num_records,
                    **{k: v for k, v in quality.result.to_dict().items() if k != "per_example"},
                    "interval": _plain(quality.interval),
                }
                for quality in self.qualities
            ],
            "differences": [
                {
                    **asdict(each),
                    "value": _finite(each.value),
                    "mcnemar": None
                    if each.mcnemar is None
                    else {**asdict(each.mcnemar), "p_value": each.mcnemar.p_value},
                }
                for each in self.differences
            ],
            "agreement": [asdict(each) for each in self.agreements],
            "notes": list(self.notes),
            "versions": {"paligemma": __version__},
        }


def compare_models(
    sources: Sequence[str | Path] | str | Path,
    models: Sequence[str],
    out: str | Path,
    options: CompareOptions | None = None,
    *,
    on_progress: Progress | None = None,
) -> Comparison:
    """Let models answer the same questions, and compare the answers.

    `sources`: images (files and folders) where `options` ask something about each of them; else one
    set of labeled data in any format of `open_data`, whose records are asked and scored as by
    `paligemma.evals.evaluate`. `models`: as `--models` of the command line. Into the folder `out`
    go the answers of each contestant, by which an interrupted run continues, and at the end
    report.json, answers.jsonl and compare.html.

    Every contestant answers in a process of its own, one after the other. One who fails has a row
    with the reason. Raises OptionError, DataError, ImageError, CheckpointError or HubError for what
    is wrong before anybody is asked.

    >>> asked = CompareOptions(ask=("how many frogs are there?",))
    >>> compare_models("pictures", ["mini", "mini@int8"], "cmp", asked)     # doctest: +SKIP
    """
    options = options or CompareOptions()
    edit_distance("", "")  # raises where its package is missing
    contestants = read_contestants(models)
    names = _expanded(sources, options)
    questions, sizes = without_unreadable(read_questions(names, options))
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"The folder {str(out)!r} cannot be made: {error.strerror}.") from error
    answers = hold_contest(contestants, questions, names, sizes, folder, on_progress)
    comparison = judge(questions, answers, sizes)
    write_comparison(comparison, folder)
    return comparison


def _expanded(sources: Sequence[str | Path] | str | Path, options: CompareOptions) -> list[str]:
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise OptionError("There is nothing to ask about. Give images, or labeled data.")
    if not options.has_questions:
        return [str(source) for source in given]
    names: list[str] = []
    for source in given:
        path = Path(source)
        if not path.exists():
            raise ImageError(f"The file {str(source)!r} does not exist. Check the path.")
        found = images_in(path) if path.is_dir() else [path]
        if not found:
            raise ImageError(f"The folder {str(source)!r} contains no images. Check the path.")
        names += [str(image) for image in found]
    return names


class _Reader(NamedTuple):
    processor: Processor
    mask_codec: MaskCodec | None


def judge(
    questions: Questions, answers: Sequence[Answers], sizes: Mapping[str, tuple[int, int]]
) -> Comparison:
    """The comparison of these answers. Raises what metrics raise."""
    asked = replace(questions, data=questions.asked_of(None))
    records = asked.data.records
    with_truth = [record for record in records if asked.has_truth(record)]
    notes = [note for note in questions.data.notes if note]
    qualities: tuple[Quality, ...] = ()
    differences: tuple[Difference, ...] = ()
    right: Mapping[str, Mapping[str, bool]] = {}
    true_objects: Mapping[str, tuple[ReferenceObject, ...]] = {}
    if records and len(with_truth) == len(records):
        verdict = Judge(asked, answers, sizes, _readers(asked, answers))
        qualities, differences = verdict.qualities, verdict.differences
        right, true_objects = verdict.right, verdict.true_objects()
    elif with_truth:
        notes.append(
            f"{counted(len(records) - len(with_truth), 'record has', 'records have')} no true "
            "answer, so that quality is not measured. Leave them out of the data to measure it."
        )
    tasks: tuple[TaskName, ...] = tuple(dict.fromkeys(asked.task_of(record) for record in records))
    by_id = {
        record.record_id: [
            None if (reply := each.replies.get(record.record_id)) is None else reply.prediction
            for each in answers
        ]
        for record in records
    }
    majorities = {
        record_id: most
        for record_id, found in by_id.items()
        if (most := majority_of([each for each in found if each is not None])) is not None
    }
    return Comparison(
        name=questions.data.name or "images",
        rows=tuple(_row(each) for each in answers),
        qualities=qualities,
        differences=differences,
        agreements=agreements(answers, tasks) if len(answers) > 1 else (),
        questions=asked,
        answers=tuple(answers),
        right=right,
        disagreements={record_id: disagreement(found) for record_id, found in by_id.items()},
        majorities=majorities,
        true_objects=true_objects,
        sizes=sizes,
        bad=questions.bad,
        notes=tuple(notes),
    )


def _readers(questions: Questions, answers: Sequence[Answers]) -> dict[str, SuffixReader]:
    """What reads true objects in suffixes, where there are any: each checkpoint's own, and for
    others the first."""
    needs_reader = any(
        record.objects is None and questions.task_of(record) in OBJECT_TASKS
        for record in questions.data.records
    )
    if not needs_reader:
        return {}
    own = {
        each.contestant.name: _Reader(*load_processor(each.contestant.model))
        for each in answers
        if each.contestant.kind == "checkpoint" and each.failure is None
    }
    first = next(iter(own.values()), None) or _Reader(*load_processor(MINI))
    return {each.contestant.name: own.get(each.contestant.name, first) for each in answers}


def _row(answers: Answers) -> Row:
    replies = list(answers.replies.values())
    seconds = sorted(answers.seconds.values())
    tokens = [r.prediction.num_tokens for r in replies if r.prediction.num_tokens is not None]
    sent = [reply.num_bytes_sent for reply in replies if reply.num_bytes_sent is not None]
    timed = None
    if seconds:
        timed = Seconds(
            median=statistics.median(seconds),
            p95=float(np.quantile(seconds, 0.95, method="higher")),
            total=sum(seconds),
        )
    run = answers.run
    return Row(
        name=answers.contestant.name,
        kind=answers.contestant.kind,
        num_answered=len(replies),
        num_failed=len(answers.errors),
        failure=answers.failure,
        first_error=next(iter(answers.errors.values()), None),
        seconds=timed,
        load_seconds=run.get("load_seconds"),
        peak_bytes=run.get("peak_bytes"),
        peak_gpu_bytes=run.get("peak_gpu_bytes"),
        mean_tokens=sum(tokens) / len(tokens) if tokens else None,
        mean_bytes_sent=sum(sent) / len(sent) if sent else None,
        num_retries=sum(reply.num_attempts - 1 for reply in replies),
        asked=replies[0].asked if replies else "",
        info=run.get("info") or {},
    )


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write report.json, answers.jsonl and compare.html, each whole or not at all."""
    from paligemma.compare.gallery import render_gallery

    report = json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    lines = "".join(
        json.dumps(_answer_line(comparison, record), ensure_ascii=True, allow_nan=False) + "\n"
        for record in comparison.questions.data.records
    )
    for name, text in (
        (REPORT_FILE, report + "\n"),
        (ANSWERS_FILE, lines),
        (PAGE_FILE, render_gallery(comparison)),
    ):
        write_whole(folder / name, text.encode("utf-8", errors="backslashreplace"))


def _answer_line(comparison: Comparison, record: Record) -> dict[str, Any]:
    record_id = record.record_id
    majority = comparison.majorities.get(record_id)
    return {
        "id": record_id,
        "image": image_name(record),
        "prefix": record.prefix,
        "task": comparison.questions.task_of(record),
        "truth": list(truth_of(comparison.questions, record)),
        "disagreement": round(comparison.disagreements[record_id], 6),
        "majority": None if majority is None else majority.text,
        "answers": {
            each.contestant.name: _one_answer(comparison, each, record_id)
            for each in comparison.answers
        },
    }


def _one_answer(comparison: Comparison, answers: Answers, record_id: str) -> dict[str, Any]:
    reply = answers.replies.get(record_id)
    if reply is None:
        return {"error": answers.errors.get(record_id, "Not asked.")}
    prediction = reply.prediction
    line: dict[str, Any] = {
        "text": prediction.text,
        "score": prediction.score if reply.has_score else None,
        "right": comparison.right.get(answers.contestant.name, {}).get(record_id),
        "seconds": answers.seconds.get(record_id),
        "asked": reply.asked,
    }
    if prediction.task in OBJECT_TASKS:
        line["objects"] = [
            {"label": each.label, "box_xyxy": each.box_xyxy, "score": each.score}
            for each in prediction.objects
        ]
        line["problems"] = list(prediction.problems)
    return line


def _plain(interval: Any) -> dict[str, float] | None:
    return None if interval is None else asdict(interval)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
