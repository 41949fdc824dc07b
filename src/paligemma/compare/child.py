"""The process of one contestant: the program that answers the questions into a journal.

    python -m paligemma.compare.child < job.json

Each contestant has a process of its own, so that its memory can be measured, and that a crash costs
nobody else an answer. What is finished is in its journal; started again, it answers the rest.
Progress is written to the standard output, as lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from paligemma.batch.journal import Entry, Journal
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.compare.contestants import Contestant
from paligemma.compare.options import CompareOptions, answer_settings
from paligemma.compare.questions import Questions, fingerprint, read_questions
from paligemma.compare.reply import Reply
from paligemma.data.record import Record
from paligemma.errors import PaliGemmaError
from paligemma.process_memory import peak_bytes

RUN_KEY = "run"
"""The entry with what is known of the model, and what its last run took."""
_WATCH_SECONDS = 0.2

Report = Callable[[dict[str, Any]], None]


class Model(Protocol):
    """Anybody who answers."""

    info: dict[str, Any]
    load_seconds: float | None

    def answer(self, records: Sequence[Record]) -> list[tuple[Reply | PaliGemmaError, float]]:
        """An answer or an error for each record, with its seconds."""
        ...

    def warm_up(self, record: Record) -> None:
        """What the first answer would take longer for than later ones."""
        ...

    @property
    def peak_gpu_bytes(self) -> int | None: ...


def key_of(record: Record) -> str:
    """Of the entry with the answer to a record."""
    return f"question {record.record_id}"


def journal_settings(contestant: Contestant, options: CompareOptions) -> dict[str, Any]:
    """What must not change while a journal is continued."""
    return {**contestant.settings(), **answer_settings(options)}


def run(job: dict[str, Any], report: Report) -> None:
    """Answer what is not answered yet. Raises PaliGemmaError where the contestant cannot start."""
    contestant = Contestant(**job["contestant"])
    options = CompareOptions.from_dict(job["options"])
    questions = read_questions(job["sources"], options, left_out=job["left_out"])
    with Journal.open(Path(job["folder"]), journal_settings(contestant, options)) as journal:
        model, trained_on = _open_model(contestant, questions, options)
        records = list(questions.asked_of(trained_on).records)
        todo = unanswered(records, journal, retry_failed=options.retry_failed)
        if records:
            model.warm_up((todo or records)[0])
        num_done = len(records) - len(todo)
        report({"done": num_done, "total": len(records)})
        size = 1 if contestant.is_remote else options.batch_size
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            answers = model.answer(part)
            journal.add([_entry(r, *answer) for r, answer in zip(part, answers, strict=True)])
            report({"done": num_done + start + len(part), "total": len(records)})
        took = {
            "info": model.info,
            "load_seconds": model.load_seconds,
            "peak_bytes": None if contestant.is_remote else peak_bytes(),
            "peak_gpu_bytes": model.peak_gpu_bytes,
            "trained_on": None if trained_on is None else asdict(trained_on),
        }
        journal.add([Entry(key=RUN_KEY, fingerprint="", result=took, error=None, seconds=None)])


def unanswered(records: Sequence[Record], journal: Journal, *, retry_failed: bool) -> list[Record]:
    """The records to ask: those without an answer to the question as it is now."""
    known = dict(journal.done()) if retry_failed else {**journal.failed(), **journal.done()}
    return [record for record in records if known.get(key_of(record)) != fingerprint(record)]


def _open_model(
    contestant: Contestant, questions: Questions, options: CompareOptions
) -> tuple[Model, TrainedOn | None]:
    """The model, and how it was asked in its training."""
    if contestant.kind == "checkpoint":
        from paligemma.compare.checkpoint_model import CheckpointModel

        checkpoint = CheckpointModel(contestant, questions, options)
        return checkpoint, checkpoint.trained_on
    questions = Questions(data=questions.asked_of(None), options=options)
    if contestant.kind == "transformers":
        from paligemma.compare.transformers_model import TransformersModel

        return TransformersModel(contestant, questions, options), None
    from paligemma.compare.endpoint import Endpoint

    return Endpoint(contestant, questions, options), None


def _entry(record: Record, answer: Reply | PaliGemmaError, seconds: float) -> Entry:
    is_error = isinstance(answer, PaliGemmaError)
    return Entry(
        key=key_of(record),
        fingerprint=fingerprint(record),
        result=None if isinstance(answer, PaliGemmaError) else answer.to_dict(),
        error=str(answer) if is_error else None,
        seconds=seconds,
    )


def main() -> None:
    """Do the job on the standard input."""
    job = json.loads(sys.stdin.buffer.read())
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # nothing can be asked of the user
    os.dup2(2, 1)  # what a library prints is no line of ours

    def report(message: dict[str, Any]) -> None:
        output.write(json.dumps(message) + "\n")
        output.flush()

    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        run(job, report)
        report({"finished": True})
    except PaliGemmaError as error:
        report({"error": str(error)})


def _end_with_parent(parent: int) -> None:
    """A comparison that was killed must not leave a model behind."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
