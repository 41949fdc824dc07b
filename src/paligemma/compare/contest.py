"""Let the contestants answer, one after the other, each in a process of its own; then read them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from paligemma.batch.journal import JOURNAL_FILE, Journal
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.compare.child import RUN_KEY, journal_settings, key_of, unanswered
from paligemma.compare.contestants import Contestant
from paligemma.compare.questions import Questions, fingerprint
from paligemma.compare.recorded import read_recorded
from paligemma.compare.reply import Reply
from paligemma.errors import OptionError
from paligemma.evals.evaluation import EvalSet

ANSWERS_FOLDER = "answers"
_NO_NETWORK = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_MAX_TAIL = 600  # characters of what a process printed before it died

Progress = Callable[[str, int, int], None]
"""Called with the contestant's name, the number of answers and that of questions."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one contestant answered."""

    contestant: Contestant
    data: EvalSet
    """The records as they were asked."""
    replies: Mapping[str, Reply]
    """By record id."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Record id -> why there is no answer."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the model, and what it took."""
    failure: str | None = None
    """Why the contestant could not answer, or not to the end."""


def hold_contest(
    contestants: Sequence[Contestant],
    questions: Questions,
    sources: Sequence[str],
    sizes: Mapping[str, tuple[int, int]],
    folder: Path,
    on_progress: Progress | None = None,
) -> list[Answers]:
    """The answers of all contestants: those of an earlier run, and new ones.

    A contestant who fails has a `failure`, and the others go on. Raises OptionError for answers of
    other settings in the folder, and DataError for a file of answers that cannot be read, before
    anybody is asked.
    """
    asked = replace(questions, data=questions.asked_of(None))
    recorded = {
        contestant.name: read_recorded(Path(contestant.model), asked, sizes)
        for contestant in contestants
        if contestant.kind == "recorded"
    }
    for contestant in contestants:
        _check_settings(contestant, questions, folder)
    return [
        _recorded(contestant, asked.data, recorded[contestant.name])
        if contestant.kind == "recorded"
        else _answers(contestant, questions, sources, folder, on_progress)
        for contestant in contestants
    ]


def _check_settings(contestant: Contestant, questions: Questions, folder: Path) -> None:
    _ = contestant.key  # raises where it is named and missing
    own = folder / ANSWERS_FOLDER / contestant.folder_name()
    if not (own / JOURNAL_FILE).exists():
        return
    made = Journal.read(own).settings
    given = json.loads(json.dumps(journal_settings(contestant, questions.options)))
    if not made or made == given:
        return
    names = [name for name in given if made.get(name) != given[name]]
    what = "its files" if names == ["files"] else ", ".join(names)
    raise OptionError(
        f"{own} has answers of {contestant.name} from before a change of {what}. Choose another "
        "--out, or delete that folder to ask again."
    )


def _recorded(
    contestant: Contestant, data: EvalSet, found: Mapping[str, tuple[Reply, float | None]]
) -> Answers:
    return Answers(
        contestant=contestant,
        data=data,
        replies={record_id: reply for record_id, (reply, _) in found.items()},
        errors={
            record.record_id: "The file has no answer to it."
            for record in data.records
            if record.record_id not in found
        },
        seconds={
            record_id: seconds for record_id, (_, seconds) in found.items() if seconds is not None
        },
    )


def _answers(
    contestant: Contestant,
    questions: Questions,
    sources: Sequence[str],
    folder: Path,
    on_progress: Progress | None,
) -> Answers:
    own = folder / ANSWERS_FOLDER / contestant.folder_name()
    failure = None
    found = _read(contestant, questions, own)
    if found is None:
        job = {
            "contestant": asdict(contestant),
            "options": questions.options.to_dict(),
            "sources": list(sources),
            "left_out": [bad.record_id for bad in questions.bad],
            "folder": str(own),
        }
        failure = _run_child(job, contestant.name, on_progress)
        found = _read(contestant, questions, own, is_partial=True)
        assert found is not None
    return replace(found, failure=failure)


def _read(
    contestant: Contestant, questions: Questions, own: Path, *, is_partial: bool = False
) -> Answers | None:
    """What the journal holds; None where something is left to answer, unless `is_partial`."""
    if not (own / JOURNAL_FILE).exists():
        if not is_partial:
            return None
        data = questions.asked_of(None)
        missing = {record.record_id: "Not answered." for record in data.records}
        return Answers(contestant=contestant, data=data, replies={}, errors=missing)
    journal = Journal.read(own)
    entries = {entry.key: entry for entry in journal.entries()}
    last = entries.get(RUN_KEY)
    took = last.result or {} if last is not None else {}
    if last is None and not is_partial:
        return None
    trained_on = took.get("trained_on")
    if trained_on is not None:
        trained_on = TrainedOn(**{**trained_on, "class_names": tuple(trained_on["class_names"])})
    data = questions.asked_of(trained_on)
    if not is_partial and unanswered(
        data.records, journal, retry_failed=questions.options.retry_failed
    ):
        return None
    replies, errors, seconds = {}, {}, {}
    for record in data.records:
        entry = entries.get(key_of(record))
        if entry is None or entry.fingerprint != fingerprint(record):
            errors[record.record_id] = "Not answered."
        elif entry.result is None:
            errors[record.record_id] = entry.error or "Not answered."
        else:
            replies[record.record_id] = Reply.from_dict(entry.result)
            if entry.seconds is not None:
                seconds[record.record_id] = entry.seconds
    return Answers(
        contestant=contestant,
        data=data,
        replies=replies,
        errors=errors,
        seconds=seconds,
        run=took,
    )


def _run_child(job: dict[str, Any], name: str, on_progress: Progress | None) -> str | None:
    """Let a process do the job; returns why it did not, or None."""
    failure: str | None = None
    is_finished = False
    kind = job["contestant"]["kind"]
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "paligemma.compare.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            env={**os.environ, **_NO_NETWORK} if kind == "transformers" else None,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                stdin.write(json.dumps(job).encode())
            for line in process.stdout:
                message = json.loads(line)
                failure = message.get("error", failure)
                is_finished = is_finished or "finished" in message
                if "done" in message and on_progress is not None:
                    on_progress(name, message["done"], message["total"])
            code = process.wait()
        finally:
            if process.poll() is None:  # interrupted
                process.kill()
                process.wait()
            process.stdout.close()
        if failure is not None or is_finished:
            return failure
        printed.seek(0)
        tail = printed.read().decode("utf-8", errors="replace").strip()[-_MAX_TAIL:]
    return _why_it_died(code, tail)


def _why_it_died(code: int, tail: str) -> str:
    if code < 0:
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = str(-code)
        hint = ", perhaps because memory ran out" if how == "SIGKILL" else ""
        return f"Its process was ended by {how}{hint}. Repeat the command to go on."
    last = tail.splitlines()[-1] if tail else f"exit code {code}"
    return f"Its process ended with an error: {last}"
