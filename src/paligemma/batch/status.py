"""How far a job is, from its folder alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from paligemma.batch.job import PLAN_FILE, journals_of, read_entries
from paligemma.batch.journal import Journal
from paligemma.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the journals of a job say."""

    done: int
    failed: tuple[tuple[str, str], ...]
    """Key and error."""
    total: int
    """Items of all parts that have begun, when they last began."""
    seconds_per_item: float | None
    """Mean of the items that say; of one process."""
    running: int
    """Processes that are working on it now."""
    parts: tuple[tuple[str, int, int], ...]
    """Of a job in parts: name, items finished, items in all."""

    @property
    def left(self) -> int:
        return max(0, self.total - self.done - len(self.failed))

    @property
    def per_second(self) -> float | None:
        """Images per second of one process."""
        return 1 / self.seconds_per_item if self.seconds_per_item else None

    @property
    def seconds_left(self) -> float | None:
        """With the processes that are running, or with one."""
        seconds = self.seconds_per_item
        return None if seconds is None else self.left * seconds / max(1, self.running)


def read_status(out: Path) -> JobStatus:
    """Raises OptionError for a folder that is not that of a job."""
    journals = journals_of(out)
    if not journals:
        Journal.read(out)  # says so
        raise OptionError(f"{str(out)!r} is not the folder of a job.")
    done, failed, seconds, num_timed = 0, [], 0.0, 0
    for entry in read_entries(out):
        if entry.error is None:
            done += 1
        else:
            failed.append((entry.key, entry.error))
        if entry.seconds is not None:
            seconds += entry.seconds
            num_timed += 1
    parts = tuple(
        (journal.folder.name, len(journal.done()) + len(journal.failed()), _total(journal.folder))
        for journal in journals
    )
    return JobStatus(
        done=done,
        failed=tuple(failed),
        total=sum(total for _, _, total in parts),
        seconds_per_item=seconds / num_timed if num_timed else None,
        running=sum(Journal.is_open(journal.folder) for journal in journals),
        parts=parts if len(parts) > 1 else (),
    )


def _total(folder: Path) -> int:
    try:
        plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        return int(plan["total"])
    except (OSError, ValueError, KeyError, TypeError):  # killed before it was written
        return 0
