"""A job: what is asked of which images, the folder that holds its journal, and what becomes of it.

out/journal.jsonl                  the journal, from which everything else is derived
out/shards/3-of-16/journal.jsonl   the same for a job that runs in parts
out/results.jsonl, coco.json, ...  the files asked for
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paligemma import mini
from paligemma.batch.journal import JOURNAL_FILE, Entry, Journal
from paligemma.batch.lock import locked
from paligemma.batch.outputs.rows import Content, filtered, replacing
from paligemma.batch.outputs.write import OutputOptions, write_file
from paligemma.batch.process import Row
from paligemma.batch.runner import Progress, Runner
from paligemma.batch.source import Item, SourceOptions, find_items
from paligemma.batch.tasks import BatchTask
from paligemma.errors import OptionError

LOCAL_WORKER = "paligemma.batch.worker:BatchWorker"
PLAN_FILE = "plan.json"
_SHARDS = "shards"
_EDGE = 65536  # bytes at each end of a file that tell it from others


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended."""

    done: int
    """Items of the source with a result."""
    failed: tuple[tuple[str, str], ...]
    """Key and error of the items of the source without one."""
    left: int
    """Items that are still to do."""
    files: tuple[Path, ...]
    """The files written."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task about all images of some sources. `run` begins it, or goes on with it.

    >>> job = Job(sources=("photos",), task=BatchTask(name="caption"), out=Path("captions"))
    >>> job.run().done
    2000
    """

    sources: tuple[str, ...]
    """Folders, patterns, lists, tables, shards and documents; see `find_items`."""
    task: BatchTask
    out: Path
    """The job's folder."""
    model: Mapping[str, Any] = field(default_factory=lambda: {"model": "mini"})
    """Arguments of `paligemma.load`, as JSON holds them; see `BatchWorker`."""
    source: SourceOptions = field(default_factory=SourceOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)
    batch_size: int | None = None
    """Images that the model computes together."""
    retry_failed: bool = False
    """Do items again that have an error."""
    worker: str = LOCAL_WORKER
    """The class that computes, as "module:Class"."""

    @property
    def folder(self) -> Path:
        """Where the journal of this process is."""
        if self.source.shard is None:
            return self.out
        number, count = self.source.shard
        return self.out / _SHARDS / f"{number}-of-{count}"

    def worker_options(self, items: Sequence[Item]) -> dict[str, Any]:
        """The arguments of the worker for these items, as JSON holds them."""
        rows_ask = {"rows_ask": True} if any(item.asks for item in items) else {}
        return {
            "task": self.task.to_dict(),
            "model": dict(self.model),
            "batch_size": self.batch_size,
            "allow_urls": self.source.allow_urls,
            **rows_ask,
        }

    def settings(self) -> dict[str, Any]:
        """What results depend on, as far as it is known before the model is loaded."""
        names = ("threads", "device", "offline", "verify")  # which do not change what is asked
        model = {key: value for key, value in self.model.items() if key not in names}
        contents = {
            f"content of {name}": _digest(Path(os.path.expanduser(str(value))))
            for name in ("model", "adapter", "mask_codec")
            if (value := model.get(name)) is not None
        }
        task = asdict(self.task)
        options = {f"{name} of the task": task[name] for name in task if name != "name"}
        return {
            "task": self.task.name,
            **options,
            **{name: None if value is None else str(value) for name, value in model.items()},
            **contents,
            "check": self.source.check,
        }

    def items(self, say: Callable[[str], object] = lambda text: None) -> list[Item]:
        """The items of the sources, after a check that each is asked something, and that their
        outputs can be written. `say` is told what of the sources is not used.

        Raises OptionError.
        """
        items = find_items(self.sources, self.source, text_column=self.task.text_column, say=say)
        self.task.check_items(items)
        self.outputs.check(items, self.task.name)
        self.outputs.sidecars(self.out).check(items, self.task.name)
        return items

    def run(
        self,
        *,
        items: Sequence[Item] | None = None,
        report: Callable[[Progress], object] = lambda progress: None,
        say: Callable[[str], object] = lambda text: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> JobResult:
        """Compute what is missing, and write the files.

        `items`: what `items()` returned. `report` and `say` are told how it goes; `should_stop` is
        asked before each batch. Raises OptionError before anything is computed for settings that
        differ from those that the folder was made with, and what loading the model raises.
        """
        items = self.items(say) if items is None else items
        options = self.worker_options(items)
        runner = Runner(worker=self.worker, options=options, say=say, should_stop=should_stop)
        try:
            return self.run_with(runner.run, items=items, report=report)
        finally:
            runner.close()

    def run_with(
        self,
        compute: Callable[[Sequence[Item]], Iterator[tuple[dict[str, Any], list[Row]]]],
        *,
        items: Sequence[Item] | None = None,
        report: Callable[[Progress], object] = lambda progress: None,
    ) -> JobResult:
        """As `run`, with another way to compute: items -> the worker's `info`, and the results of
        some of the items, in any order."""
        items = self.items() if items is None else items
        self.check()
        if todo := self.todo(items):
            self._record(compute(todo), todo, items, report)
        files = self.write(items)
        done, pending, failed = self.split(items)
        return JobResult(
            done=len(done), failed=self._errors(failed), left=len(pending), files=files
        )

    def _record(
        self,
        computed: Iterator[tuple[dict[str, Any], list[Row]]],
        todo: Sequence[Item],
        items: Sequence[Item],
        report: Callable[[Progress], object],
    ) -> None:
        """Add results to the journal as they come."""
        by_key = {item.key: item for item in todo}
        failed = sum(item.key not in by_key for item in self.split(items)[2])
        journal: Journal | None = None
        num_now = 0
        started = time.monotonic()
        try:
            for info, rows in computed:
                if journal is None:
                    journal = self._open_journal(info, todo, items)
                    started = time.monotonic() if not rows else started
                if not rows:
                    continue
                journal.add([_entry(by_key[row["key"]], row) for row in rows])
                num_now += len(rows)
                failed += sum(row["error"] is not None for row in rows)
                report(
                    Progress(
                        finished=len(items) - len(todo) + num_now,
                        failed=failed,
                        total=len(items),
                        now=num_now,
                        seconds=time.monotonic() - started,
                    )
                )
        finally:
            if journal is not None:
                journal.close()

    def measure(self, items: Sequence[Item]) -> float:
        """Seconds that an item takes, measured on the first ones; nothing is kept."""
        runner = Runner(worker=self.worker, options=self.worker_options(items))
        try:
            return runner.seconds_per_row(items)
        finally:
            runner.close()

    def todo(self, items: Sequence[Item]) -> list[Item]:
        """The items to compute, sorted by key: those that are missing or have changed, and with
        `retry_failed` those that failed."""
        _, pending, failed = self.split(items)
        if not self.retry_failed:
            return pending
        return sorted((*pending, *failed), key=lambda item: item.key)

    def _errors(self, items: Sequence[Item]) -> tuple[tuple[str, str], ...]:
        keys = {item.key for item in items}
        if not keys:
            return ()
        entries = Journal.read(self.folder).entries()
        return tuple((e.key, e.error or "") for e in entries if e.key in keys)

    def check(self) -> None:
        """Raises OptionError where the folder is that of another job."""
        _check_parts(self.out, self.source.shard)
        Journal.check(self.folder, self.settings())
        if Journal.is_open(self.folder):
            raise OptionError(
                f"Another process is working in {str(self.folder)!r}. Wait until it has ended, or "
                "use another folder."
            )

    def split(self, items: Sequence[Item]) -> tuple[list[Item], list[Item], list[Item]]:
        """The items that are done, that are to do, and that have failed."""
        if not (self.folder / JOURNAL_FILE).is_file():
            return [], list(items), []
        journal = Journal.read(self.folder)
        done, failed = journal.done(), journal.failed()
        parts: tuple[list[Item], list[Item], list[Item]] = [], [], []
        for item in items:
            if done.get(item.key) == item.fingerprint:
                parts[0].append(item)
            elif failed.get(item.key) == item.fingerprint:
                parts[2].append(item)
            else:
                parts[1].append(item)
        return parts

    def _open_journal(
        self, info: Mapping[str, Any], todo: Sequence[Item], items: Sequence[Item]
    ) -> Journal:
        loaded = {f"loaded {name}": value for name, value in info.items()}
        journal = Journal.open(self.folder, {**self.settings(), **loaded})
        try:
            if self.todo(items) != todo:
                raise OptionError(
                    f"Another process has worked in {str(self.folder)!r} meanwhile. Run the "
                    "command again."
                )
            with replacing(self.folder / PLAN_FILE) as unfinished:
                plan = json.dumps({"total": len(items)})
                unfinished.write_text(plan + "\n", encoding="utf-8")
        except BaseException:
            journal.close()
            raise
        return journal

    def write(self, items: Sequence[Item]) -> tuple[Path, ...]:
        """Derive the files from the journals of all parts."""
        self.out.mkdir(parents=True, exist_ok=True)  # for a part without any item
        with locked(self.out / "outputs.lock"):
            content = self.content()
            files = [write_file(content, name, self.out) for name in self.outputs.formats]
            sidecars = self.outputs.sidecars(self.out)
            if sidecars.kinds:
                sidecars.check(items, self.task.name)
                sidecars.write(content, items)
        return tuple(files)

    def content(self) -> Content:
        """The results of all parts, as outputs take them."""

        def entries() -> Iterator[Entry]:
            return (filtered(entry, self.outputs.min_score) for entry in read_entries(self.out))

        return Content(entries=entries, model=str(self.model.get("model")), task=self.task.name)


def _entry(item: Item, row: Row) -> Entry:
    """The line of the journal for what a worker answered."""
    return Entry(fingerprint=item.fingerprint, asks=item.asks, **row)


def journals_of(out: Path) -> list[Journal]:
    """The journals of a job's folder, one for each of its parts; [] where there is none."""
    folders = [out] if (out / JOURNAL_FILE).is_file() else []
    folders += sorted(path.parent for path in out.glob(f"{_SHARDS}/*/{JOURNAL_FILE}"))
    return [Journal.read(folder) for folder in folders]


def read_entries(out: Path) -> Iterator[Entry]:
    """The entries of all parts of a job, sorted by key, each key once."""
    last_key = None
    merged = heapq.merge(*(j.entries() for j in journals_of(out)), key=lambda entry: entry.key)
    for entry in merged:
        if entry.key != last_key:
            yield entry
        last_key = entry.key


def _check_parts(out: Path, shard: tuple[int, int] | None) -> None:
    """Raises OptionError where the folder is that of a job in other parts."""
    counts = {
        int(m[1]) for p in out.glob(f"{_SHARDS}/*-of-*") if (m := re.search(r"(\d+)$", p.name))
    }
    if (out / JOURNAL_FILE).is_file():
        counts.add(1)
    given = 1 if shard is None else shard[1]
    if shard is not None and (out / JOURNAL_FILE).is_file():
        made = "as a whole, without --shard"
    elif counts - {given} or (shard is None and counts - {1}):
        made = f"in {max(counts)} parts (--shard)"
    else:
        return
    raise OptionError(
        f"The job in {str(out)!r} was started {made}. Go on in the same way, or use another folder."
    )


def _digest(path: Path) -> str | None:
    """What tells the files of a model from those of another; None for what is no path.

    Of each file its name, its size and both ends: a whole model is read in no time.
    """
    if path == Path("mini"):
        path = Path(mini.__file__).parent / "model"
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        name = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name}\0{size}\0".encode("utf-8", errors="surrogateescape"))
        with file.open("rb") as opened:
            digest.update(opened.read(_EDGE))
            if size > 2 * _EDGE:
                opened.seek(-_EDGE, os.SEEK_END)
            digest.update(opened.read())
    return digest.hexdigest()[:16]
