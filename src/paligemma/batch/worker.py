"""BatchWorker: loads a model once, and answers rows of images with rows of results.

It is what all runners share: a process of this machine, Ray Data, Daft, or a loop of one's own.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from paligemma.answering import ImageQuery, PreparedImage, Query
from paligemma.batch.process import Row
from paligemma.batch.reading import LocationReader
from paligemma.batch.tasks import BatchTask
from paligemma.checkpoints.hub import Source
from paligemma.errors import (
    DocumentError,
    ImageError,
    InputError,
    MissingExtraError,
    PaliGemmaError,
)
from paligemma.fast.weights import usual_name, weights_name
from paligemma.loading import load
from paligemma.processor.ahead import ReadAhead
from paligemma.threads import set_threads


class BatchWorker:
    """Answers rows such as {"key": "a.jpg", "image": "photos/a.jpg"}; never raises for one of them.

    `task` is a `BatchTask`, or its fields as a dict; `model` holds the arguments of
    `paligemma.load` as JSON has them, or "dtype" and "quantization" in place of "weights", and
    perhaps "revision", "offline", "verify" and "threads".
    The image of a row is a path, an address (if `allow_urls`), the bytes of a file, or a location
    of `paligemma.batch.find_items`. Where the task has no text, a row has its own: "question" for
    `ask`, "names" for `detect` and `segment`. `rows_ask` says that all have, which a model that
    was trained on no objects of its own needs. Other entries of rows are not used.

    Results do not depend on earlier calls: the same rows give the same results again.

    >>> worker = BatchWorker({"name": "caption"}, {"model": "mini"})
    >>> worker([{"key": "a.jpg", "image": "photos/a.jpg"}])
    [{"key": "a.jpg", "result": {"text": "a frog", ...}, "error": None, "seconds": 0.2}]
    """

    def __init__(
        self,
        task: BatchTask | Mapping[str, Any],
        model: Mapping[str, Any] | None = None,
        *,
        batch_size: int | None = None,
        allow_urls: bool = False,
        rows_ask: bool = False,
    ) -> None:
        self.task = task if isinstance(task, BatchTask) else BatchTask.of(task)
        options = dict(model or {})
        set_threads(options.pop("threads", None))
        names = ("revision", "offline", "verify")
        if "dtype" in options or "quantization" in options:
            dtype = usual_name(options.pop("dtype", "auto"))
            options["weights"] = weights_name(dtype, options.pop("quantization", None))
        source = Source(**{name: options.pop(name) for name in names if name in options})
        self.predictor = load(options.pop("model", None), source=source, **options)
        self._batch_size = batch_size
        resolution = self.predictor.processor.resolution
        self._reader = LocationReader(resolution=resolution, allow_urls=allow_urls)
        depth = self.rows_at_a_time
        self._ahead = ReadAhead[Row, PreparedImage](
            self._prepare, lambda row: row["key"], depth=depth
        )
        self._tell: Callable[[str, bool], object] = lambda key, is_over: None
        rows_ask = rows_ask or (self.task.name == "ask" and self.task.text is None)
        self._shared: Query | None = None
        if self.task.is_query:
            # Where rows ask, any name tells whether the model can be asked at all.
            self._query(replace(self.task, text="thing") if rows_ask else self.task)

    @property
    def rows_at_a_time(self) -> int:
        """Rows that the model computes together; documents come one by one."""
        if self.task.name in ("read", "extract"):
            return 1
        return self.predictor.rows_at_a_time(self._batch_size)

    @property
    def note(self) -> str | None:
        """What a person should read before trusting the results."""
        return self.predictor.note

    def watch(self, tell: Callable[[str, bool], object]) -> None:
        """Call `tell(key, False)` before an image or document is opened, and `tell(key, True)` when
        it is read, in whatever thread that happens."""
        self._tell = tell

    def info(self) -> dict[str, Any]:
        """What results depend on: which weights were loaded, and in which form."""
        info = self.predictor.info()
        names = ("family", "revision", "dtype", "quantization", "resolution", "resize")
        return {name: info[name] for name in names}

    def __call__(self, rows: Sequence[Row], following: Sequence[Row] = ()) -> list[Row]:
        """For each row its "key", "result" (or None), "error" (or None) and "seconds".

        `following` are the first rows of a likely next call, whose images are read meanwhile.
        """
        started = time.monotonic()
        try:
            answers = list(self._answers(rows, following))
        except MissingExtraError:
            raise
        except Exception:  # such as no memory for even one row: find out whose fault it is
            answers = [self._alone(row) for row in rows]
        finally:
            self._ahead.forget(rows)
            self.predictor.clear_cache()
        seconds = (time.monotonic() - started) / max(1, len(rows))
        return [
            {
                "key": row["key"],
                "result": answer if not isinstance(answer, Exception) else None,
                "error": _text_of(answer) if isinstance(answer, Exception) else None,
                "seconds": round(seconds, 4),
            }
            for row, answer in zip(rows, answers, strict=True)
        ]

    def _prepare(self, row: Row) -> PreparedImage:
        self._tell(row["key"], False)
        try:
            return self.predictor.prepare(self._reader.read(row["image"]))
        finally:
            self._tell(row["key"], True)

    def _answers(
        self, rows: Sequence[Row], following: Sequence[Row]
    ) -> Iterator[dict[str, Any] | Exception]:
        asked = [self._asked(row) for row in rows]
        good = [
            (row, query)
            for row, query in zip(rows, asked, strict=True)
            if not isinstance(query, Exception)
        ]
        answers = self._answers_to([row for row, _ in good], [q for _, q in good], following)
        for query in asked:
            yield query if isinstance(query, Exception) else next(answers)

    def _answers_to(
        self, rows: Sequence[Row], queries: Sequence[Query | None], following: Sequence[Row]
    ) -> Iterator[dict[str, Any] | Exception]:
        if self.task.name == "embed":
            yield from self._embeddings(rows, following)
            return
        if not self.task.is_query:
            yield from map(self._answer, rows)
            return
        asked = (
            ImageQuery(images=(_Guarded(read),), query=query)
            for query, (_, read) in zip(queries, self._ahead.over(rows, following), strict=True)
            if query is not None
        )
        for answer in self.predictor.answer(asked, self._batch_size):
            yield answer if isinstance(answer, Exception) else answer.to_dict()

    def _asked(self, row: Row) -> Query | Exception | None:
        """What the row asks, or its error; None for a task that asks more than one question."""
        try:
            task = self.task.of_row(row)
            return self._query(task) if task.is_query else None
        except InputError as error:
            return error

    def _query(self, task: BatchTask) -> Query:
        """Raises PromptError, OptionError or CheckpointError for what no image could be asked."""
        if task is self.task and self._shared is not None:
            return self._shared
        query = task.query(self.predictor.trained_on)
        self.predictor.check(query)
        if task is self.task:
            self._shared = query
        return query

    def _alone(self, row: Row) -> dict[str, Any] | Exception:
        try:
            [answer] = self._answers([row], ())
        except Exception as error:
            return error
        return answer

    def _embeddings(
        self, rows: Sequence[Row], following: Sequence[Row]
    ) -> Iterator[dict[str, Any] | Exception]:
        reading = self._ahead.over(rows, following)
        while group := list(islice(reading, self.rows_at_a_time)):
            read: list[PreparedImage | Exception] = []
            for _, take in group:
                try:
                    read.append(take())
                except Exception as error:
                    read.append(error)
            images = [image for image in read if not isinstance(image, Exception)]
            embedded = iter(self.predictor.embed_image(images, pooled=True) if images else ())
            for image in read:
                yield image if isinstance(image, Exception) else _embedding(next(embedded))

    def _answer(self, row: Row) -> dict[str, Any] | Exception:
        """One row of a task that asks more than one question."""
        self._tell(row["key"], False)
        try:
            if self.task.name == "extract":
                document = self._reader.contents(row["image"])
                return self.predictor.extract(document, self.task.schema or "").to_dict()
            return self._read(row["image"])
        except MissingExtraError:
            raise
        except Exception as error:  # one bad file of a thousand must not cost the others
            return error
        finally:
            self._tell(row["key"], True)

    def _read(self, location: Any) -> dict[str, Any]:
        page = location.get("page") if isinstance(location, dict) else None
        pages = None if page is None else [page]
        text = self.predictor.read(self._reader.contents(location), pages=pages)
        if len(text.pages) == 1 and text.pages[0].error:
            raise DocumentError(text.pages[0].error)
        return {**text.to_dict(), "text": text.text}


class _Guarded:
    """Reads an image, and says whatever goes wrong as an error of this image alone."""

    def __init__(self, read: Any) -> None:
        self._read = read

    def __call__(self) -> PreparedImage:
        try:
            prepared: PreparedImage = self._read()
        except PaliGemmaError:
            raise
        except Exception as error:
            raise ImageError(_text_of(error)) from error
        return prepared


def _embedding(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """float32[D] as text, since a journal of decimal numbers would take three times the space."""
    data = base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
    return {"embedding_float32": data, "length": len(values)}


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, PaliGemmaError) else f"{type(error).__name__}: {error}"
