"""The index as an SQLite file: a row per picture, and FTS5 over its words.

Searching opens the file read-only. Rows are written in transactions, so that a reader, or a run
that resumes after being killed, sees whole batches.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import OptionError, PaliGemmaError, changed_settings
from paligemma.escaping import visible
from paligemma.results import one_line

FIELDS = ("caption", "text", "labels")
"""What is searched, in the order of the columns."""
_APPLICATION = 0x50474958  # "PGIX"
_VERSION = 1
_WAIT_SECONDS = 30.0
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL,
    caption TEXT NOT NULL,
    text TEXT NOT NULL,
    labels TEXT NOT NULL,
    scores TEXT NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5(
    caption, text, labels, content='pictures', content_rowid='id', tokenize="{tokenizer}"
);
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the index knows of a picture."""

    path: str
    """Below the folder, with "/"."""
    fingerprint: str
    caption: str = ""
    text: str = ""
    labels: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None
    """Of caption and text: the mean probability of a token."""


class Store:
    """An index file that is open."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection

    @classmethod
    def read(cls, path: Path) -> Store:
        """Open an index read-only. Raises OptionError for a file that is none."""
        if not path.is_file():
            raise OptionError(
                f"The index {str(path)!r} does not exist. Make it with: paligemma index FOLDER "
                f"--out {path.name}"
            )
        with said_as_option_error(path):
            connection = _connect(f"{path.absolute().as_uri()}?mode=ro")
            store = cls(path, connection)
            try:
                store._check()
            except BaseException:
                connection.close()
                raise
            return store

    @classmethod
    def write(cls, path: Path, settings: Mapping[str, Any], tokenizer: str) -> Store:
        """Open an index to add to it, or make one.

        Raises OptionError for another file, for an index that was made with other settings, and
        where it cannot be written.
        """
        with said_as_option_error(path):
            connection = _connect(path.absolute().as_uri())
            store = cls(path, connection)
            try:
                connection.execute("BEGIN IMMEDIATE")
                if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                    store._make(settings, tokenizer)
                store._check()
                store._check_settings(settings)
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            return store

    def settings(self) -> dict[str, Any]:
        """What the index was made with."""
        row = self.connection.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
        return dict(json.loads(row[0]))

    def fingerprints(self) -> dict[str, str]:
        """Path -> fingerprint of every picture."""
        rows = self.connection.execute("SELECT path, fingerprint FROM pictures")
        return {os.fsdecode(path): fingerprint for path, fingerprint in rows}

    def change(self, added: Iterable[Picture] = (), removed: Iterable[str] = ()) -> None:
        """Add pictures, in place of those of the same paths, and remove others: all or nothing."""
        with said_as_option_error(self.path), self._transaction():
            for path in removed:
                self._remove(path)
            for picture in added:
                self._remove(picture.path)
                self._add(picture)

    def _add(self, picture: Picture) -> None:
        words = (
            _storable(picture.caption),
            _storable(picture.text, keep="\n"),
            _storable(" ; ".join(picture.labels)),
        )
        row = (
            os.fsencode(picture.path),
            picture.fingerprint,
            json.dumps(dict(picture.scores or {})),
        )
        row_id = self.connection.execute(
            "INSERT INTO pictures (path, fingerprint, scores, caption, text, labels) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (*row, *words),
        ).lastrowid
        self.connection.execute(
            "INSERT INTO words (rowid, caption, text, labels) VALUES (?, ?, ?, ?)", (row_id, *words)
        )

    def _remove(self, path: str) -> None:
        row = self.connection.execute(
            "SELECT id, caption, text, labels FROM pictures WHERE path = ?", (os.fsencode(path),)
        ).fetchone()
        if row is not None:
            # As FTS5 has no copy of the words, it needs them to forget them.
            self.connection.execute(
                "INSERT INTO words (words, rowid, caption, text, labels) "
                "VALUES ('delete', ?, ?, ?, ?)",
                row,
            )
            self.connection.execute("DELETE FROM pictures WHERE id = ?", row[:1])

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise

    def _make(self, settings: Mapping[str, Any], tokenizer: str) -> None:
        self.connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        self.connection.execute(f"PRAGMA user_version = {_VERSION}")
        for statement in _statements(_TABLES.format(tokenizer=tokenizer)):
            self.connection.execute(statement)
        self._set("settings", settings)

    def _check(self) -> None:
        values = [
            self.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        ]
        if values != [_APPLICATION, _VERSION]:
            raise OptionError(
                f"{str(self.path)!r} is not an index of `paligemma index`, or is one of another "
                "version. Choose another file."
            )
        # Views and triggers of a stranger's file could compute for ever.
        if self.connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type IN ('view', 'trigger')"
        ).fetchone():
            raise OptionError(
                f"{str(self.path)!r} has views or triggers, which `paligemma index` never makes. "
                "Choose another file."
            )

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        made = self.settings()
        given = json.loads(json.dumps(dict(settings)))
        if not Path(made["folder"]).is_dir():  # it was moved: paths count from the new place
            made["folder"] = given["folder"]
            self._set("settings", made)
        if different := changed_settings(made, given):
            raise OptionError(
                f"The index {str(self.path)!r} was made in another way: {'; '.join(different)}. "
                "Use the same settings, or another file."
            )

    def _set(self, key: str, value: Mapping[str, Any]) -> None:
        # ASCII, as names of folders may be no UTF-8, which only "\\udce9" can say.
        self.connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(dict(value)))
        )


def _connect(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        address, uri=True, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
    )
    # The file may be a stranger's: no function with side effects runs in its views and triggers.
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _storable(text: str, *, keep: str = "") -> str:
    """Text without control characters, with which results mark what matched."""
    return visible(text if keep else one_line(text), keep=keep)


@contextmanager
def said_as_option_error(path: Path) -> Iterator[None]:
    """What SQLite says about a file, in words."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            reason = "another process is writing it. Wait until it has ended"
        elif code == "SQLITE_READONLY_ROLLBACK":
            reason = "the process that wrote it was killed. Run `paligemma index` again"
        elif code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            reason = "it is not an index, or is damaged. Make it again"
        else:
            reason = str(error)
        raise OptionError(f"The index {str(path)!r} cannot be used: {reason}.") from error
    except PaliGemmaError:
        raise
    except (ValueError, TypeError, KeyError) as error:  # of values that no index has
        raise OptionError(
            f"The index {str(path)!r} cannot be used: it is damaged. Make it again."
        ) from error
