"""Contestants that answered elsewhere, or earlier: their answers in a file of JSON lines.

    {"id": "line 1", "text": "three"}
    {"image": "pictures/1.jpg", "text": "three", "seconds": 0.8}
    {"image": "1.jpg", "prefix": "detect dog", "objects": [{"label": "dog", "box_xyxy": [...]}]}

Also what `paligemma eval` writes (predictions.jsonl), and `paligemma ask ... --output x.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paligemma.compare.questions import Questions, image_name, question_in
from paligemma.compare.reply import (
    MAX_CHARACTERS,
    Reply,
    objects_of_values,
    prediction_of_text,
)
from paligemma.data.record import Record
from paligemma.errors import DataError
from paligemma.evals.predictions import OBJECT_TASKS, Prediction, read_predictions
from paligemma.masks import rle_to_mask

_HEADER = b'{"paligemma_predictions"'
_LONGEST_SECONDS = 1e9


def read_recorded(
    path: Path, questions: Questions, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[Reply, float | None]]:
    """The answer to each record that the file has, by record id, with its seconds where known.

    Raises DataError for a file that cannot be read, a line that is no answer, or two answers to one
    question.
    """
    records = questions.data.records
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error}.") from error
    if data.startswith(_HEADER):
        known = {record.record_id for record in records}
        return {
            each.record_id: (Reply(prediction=each, asked=each.prefix), None)
            for each in read_predictions(path)
            if each.record_id in known
        }
    finder = _Finder(records)
    found: dict[str, tuple[Reply, float | None]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {str(path)!r}"
        values = _values(line, where)
        if values is None:
            continue
        record = finder.find(values, where)
        if record is None:
            continue
        if record.record_id in found:
            raise DataError(f"{where} is a second answer to {record.record_id!r}. Keep one.")
        prediction = _prediction(values, record, questions, sizes[record.record_id], where)
        found[record.record_id] = (
            Reply(
                prediction=prediction,
                asked=record.prefix,
                has_score=values.get("score") is not None,
            ),
            _number(values, "seconds", where, _LONGEST_SECONDS),
        )
    if not found:
        raise DataError(
            f"{str(path)!r} has no answer to any of the questions. A line needs the id of a record "
            "or the image, such as "
            f"{json.dumps({'id': records[0].record_id, 'text': '...'}, ensure_ascii=False)}."
        )
    return found


class _Finder:
    """Finds the record that a line answers."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._by_id = {record.record_id: record for record in records}
        self._by_image: dict[str, list[Record]] = {}
        for record in records:
            name = image_name(record)
            for each in {name, Path(name).name}:
                self._by_image.setdefault(each, []).append(record)

    def find(self, values: Mapping[str, Any], where: str) -> Record | None:
        """None where the line is about something else."""
        record_id = values.get("id", values.get("record_id"))
        if record_id is not None:
            return self._by_id.get(str(record_id))
        image = values.get("image")
        if not isinstance(image, str):
            raise DataError(f'{where} names no question: it has neither "id" nor "image".')
        asked = values.get("prefix", values.get("question"))
        fitting = self._by_image.get(image) or self._by_image.get(Path(image).name, [])
        if asked is not None:
            fitting = [
                record for record in fitting if asked in (record.prefix, question_in(record.prefix))
            ]
        if len(fitting) > 1:
            raise DataError(
                f"{where}: there are {len(fitting)} questions about {image!r}. Add the "
                f'"prefix", such as {fitting[0].prefix!r}.'
            )
        return fitting[0] if fitting else None


def _values(line: str, where: str) -> dict[str, Any] | None:
    """The fields of a line; None for one that records an error."""
    try:
        values = json.loads(line, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} is no JSON object.")
    if values.get("error") is not None:
        return None
    result = values.get("result")
    if isinstance(result, dict):  # as `paligemma ask --output` writes it
        names = ("text", "objects", "score", "question")
        inner = {name: result[name] for name in names if name in result}
        values = {**values, **inner}
    return values


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is in it twice")
    return values


def _number(values: Mapping[str, Any], name: str, where: str, most: float) -> float | None:
    """None where there is none. Raises DataError for what is no number from 0 to `most`."""
    value = values.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most:
        raise DataError(
            f'{where}: "{name}" is {str(value)[:40]!r}; expected a number from 0 to {most:g}.'
        )
    return float(value)


def _prediction(
    values: Mapping[str, Any],
    record: Record,
    questions: Questions,
    size_wh: tuple[int, int],
    where: str,
) -> Prediction:
    text = values.get("text", "")
    objects = values.get("objects", values.get("found"))
    if not isinstance(text, str) or ("text" not in values and objects is None):
        raise DataError(f'{where} has no answer: "text" must be a text, or there are "objects".')
    task = questions.task_of(record)
    prediction = prediction_of_text(record, task, size_wh, text)
    if (score := _number(values, "score", where, 1.0)) is not None:
        prediction = replace(prediction, score=score)
    if objects is not None and task in OBJECT_TASKS:
        try:
            listed = objects_of_values(objects)
        except ValueError as error:
            raise DataError(f"{where}: {error}.") from error
        for each in listed:
            if each.rle is not None:
                rle_to_mask(each.rle, size_wh, where)  # raises for what is no mask of the image
        prediction = replace(
            prediction, text=text[:MAX_CHARACTERS], objects=listed, is_valid=bool(listed)
        )
    return replace(prediction, problems=()) if objects is not None else prediction
