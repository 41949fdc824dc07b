"""A model's answers to the records of a data set, in a file that an interrupted run resumes.

    line 1         what wrote the file: model with a fingerprint of its weights, and the options
    line 2, 3, ... one answer: record id, prefix, text, score, objects with boxes and masks

Lines are written as answers come. A run that finds the file continues after its last complete line.
A file of another model, of other options or of another prefix for the same id is refused with the
difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from paligemma.data.record import Record
from paligemma.errors import DataError, InputError, OptionError, PaliGemmaError
from paligemma.evals.metrics.result import FoundObject
from paligemma.evals.options import TaskName, check_task
from paligemma.fast.accelerate import quantization_of
from paligemma.masks import mask_to_rle
from paligemma.predictor import Predictor
from paligemma.processor.image import ImageTransform
from paligemma.processor.processor import Processor
from paligemma.results import Generation, StopReason
from paligemma.tasks.detect import read_detections
from paligemma.tasks.object_grammar import (
    MAX_OBJECTS,
    LabelRule,
    ObjectList,
    TokenWriter,
    object_list,
)
from paligemma.tasks.objects import (
    NUM_LOCS,
    ParsedObject,
    TokenReader,
    before_eos,
    joint_probability,
    mean_probability,
)
from paligemma.tasks.parse_prompt import kind_of_prompt, phrases_of_prompt
from paligemma.tasks.seg_codec import MaskCodec
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import AnswerKind, Generated, TaskContext

OBJECT_TASKS = ("detect", "segment", "read_text")

_FORMAT = 1
_KIND = "paligemma_predictions"
_CHUNK = 32  # records whose images are in memory at a time, and whose answers a kill can lose
_ALL_CLASSES = "all classes"
"""The phrase with which PaliGemma 2 was trained for detection (arXiv 2412.03555)."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How answers are generated. The prefix of each record is the prompt, verbatim.

    `task`: the kind of answer; None takes it from the first word of each prefix. `max_new_tokens`
    None is a limit by task. `constrained` restricts lists of objects to their grammar. `labels`:
    "asked" allows only labels that the prefix names, "any" all; None is "any" for "detect all
    classes" and for `read_text`, else "asked".
    """

    task: TaskName | None = None
    max_new_tokens: int | None = None
    num_beams: int = 1
    constrained: bool = True
    labels: LabelRule | None = None
    max_objects: int = MAX_OBJECTS

    def __post_init__(self) -> None:
        check_task(self.task)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one record."""

    record_id: str
    task: TaskName
    prefix: str
    text: str
    score: float
    """exp of the mean log-probability of all tokens, the closing EOS too."""
    size_wh: tuple[int, int]
    stop_reason: StopReason
    objects: tuple[FoundObject, ...] = ()
    problems: tuple[str, ...] = ()
    """Output that is not a complete object, described."""
    is_valid: bool = True
    """Whether a list of objects begins with a complete one: RefCOCO's rule."""
    num_tokens: int | None = None
    """Tokens that were generated, the closing EOS too; None where that is not known."""

    def to_line(self) -> str:
        """One line of JSON, without the line break."""
        values = asdict(self)
        values["objects"] = [_without_empty(item) for item in values["objects"]]
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Prediction:
        """Raises ValueError, TypeError or KeyError for what `to_line` did not write."""
        values = json.loads(line)
        values["size_wh"] = tuple(values["size_wh"])
        values["problems"] = tuple(values["problems"])
        for item in values["objects"]:
            for name in ("box_xyxy", "coordinate_logprobs", "label_logprobs", "factors"):
                item[name] = tuple(item.get(name, ()))
        values["objects"] = tuple(FoundObject(**item) for item in values["objects"])
        return cls(**values)


def task_of(record: Record, options: PredictOptions) -> TaskName:
    """What kind of answer a record asks for.

    >>> task_of(Record(record_id="1", image=Path("a.png"), prefix="detect cat"), PredictOptions())
    'detect'
    """
    if options.task is not None:
        return options.task
    kind = kind_of_prompt(record.prefix)
    return "caption" if kind == "describe" else cast("TaskName", kind)


def predict(
    predictor: Predictor,
    records: Sequence[Record],
    path: Path,
    options: PredictOptions | None = None,
    *,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Answers to all records, in order: read from the file, or generated and written to it.

    `on_progress` is called with (records done, total records). The batch size may change from
    call to call: it changes the speed, and in float32 nothing else.

    Raises DataError for a record without a prefix, two records with one id and a file that does
    not match, and what `Predictor` raises, with the record's id. Answers up to then are in the
    file.
    """
    options = options or PredictOptions()
    _check_records(records)
    done = _open(path, _header(predictor, options), records)
    todo = [record for record in records if record.record_id not in done]
    with path.open("a", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(todo), _CHUNK):
            if on_progress is not None:
                on_progress(len(records) - len(todo) + start, len(records))
            chunk = todo[start : start + _CHUNK]
            for prediction in _predict_chunk(predictor, chunk, options, batch_size):
                file.write(prediction.to_line() + "\n")
                done[prediction.record_id] = prediction
            file.flush()
    if on_progress is not None:
        on_progress(len(records), len(records))
    return [done[record.record_id] for record in records]


def read_predictions(path: Path) -> list[Prediction]:
    """All complete answers in a file. Raises DataError if it is not a file of predictions."""
    lines, _ = _whole_lines(path)
    if not lines:
        raise DataError(f"{str(path)!r} is empty; a predictions file starts with a header.")
    _read_header(lines[0], path)
    return [_read_line(line, number, path) for number, line in enumerate(lines[1:], start=2)]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A short digest that changes when training changes the weights, of 64 numbers per tensor."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        flat = tensor.detach()
        if hasattr(flat, "to_local"):  # a part of it, where processes share the model
            flat = flat.to_local()
        flat = flat.flatten()
        step = max(1, len(flat) // 64)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat[::step].to(torch.float64).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class SuffixReader(Protocol):
    """What reads objects in a text: a `Predictor`, or its parts without the weights."""

    @property
    def processor(self) -> Processor: ...
    @property
    def mask_codec(self) -> MaskCodec | None: ...


def objects_in_text(
    predictor: SuffixReader, text: str, prefix: str, size_wh: tuple[int, int], *, has_masks: bool
) -> tuple[tuple[FoundObject, ...], tuple[str, ...]]:
    """The objects in a suffix of <loc> and <seg> tokens, and a description of what is not one.

    Boxes are in pixels of an image of `size_wh`. Raises CheckpointError for masks without a codec.
    """
    tokenizer = predictor.processor.tokenizer
    ids = tokenizer.tokenize_text(text)
    generated = Generation(
        text=text, token_ids=tuple(ids), logprobs=(0.0,) * len(ids), stop_reason="eos"
    )
    transform = ImageTransform(
        source_wh=size_wh,
        resolution=predictor.processor.resolution,
        resize=predictor.processor.resize,
    )
    name: TaskName = "segment" if has_masks else "detect"
    record = Record(record_id="", image=Path(), prefix=prefix)
    task = _task_for(record, name, PredictOptions())
    written = task.parse(
        generated, tokenizer, TaskContext(transform=transform, mask_codec=predictor.mask_codec)
    )
    return written.objects, written.problems


# Tasks


@dataclass(frozen=True, kw_only=True)
class _TextTask:
    """Any text in answer to a record's prefix."""

    record_id: str
    name: TaskName
    prefix: str
    answer_kind: AnswerKind

    def prompt(self) -> str:
        return self.prefix

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> Prediction:
        # As `AnswerTask` scores: an answer is right or wrong as a whole.
        score = joint_probability if self.answer_kind == "answer" else mean_probability
        return Prediction(
            record_id=self.record_id,
            task=self.name,
            prefix=self.prefix,
            text=tokenizer.detokenize(before_eos(generated.token_ids, tokenizer)).strip(),
            score=score(generated.logprobs),
            stop_reason=generated.stop_reason,
            size_wh=context.transform.source_wh,
            num_tokens=len(generated.token_ids),
        )


@dataclass(frozen=True, kw_only=True)
class _ListTask(_TextTask):
    """A list of objects in answer to any prefix, with log-probabilities per token."""

    phrases: tuple[str, ...]
    labels: LabelRule
    max_objects: int
    has_masks: bool

    def grammar(self, tokenizer: TokenWriter) -> ObjectList:
        return object_list(
            tokenizer,
            self.phrases,
            labels=self.labels,
            max_objects=self.max_objects,
            has_masks=self.has_masks,
        )

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> Prediction:
        pairs, problems = read_detections(generated, tokenizer, context, self)
        rles: list[Any] = [None] * len(pairs)
        if self.has_masks:
            # Raises if there is no codec, and skips objects without a usable mask.
            segments = SegmentTask(phrases=self.phrases).parse(generated, tokenizer, context)
            problems = list(segments.problems)
            assert context.mask_codec is not None
            num_codes = context.mask_codec.config.num_codes
            pairs = [(d, p) for d, p in pairs if p.seg_codes and max(p.seg_codes) < num_codes]
            rles = [mask_to_rle(segment.mask) for segment in segments]
        objects = []
        for (detection, item), rle in zip(pairs, rles, strict=True):
            coordinates, label = _logprobs_of(item, generated, tokenizer)
            objects.append(
                FoundObject(
                    label=detection.label,
                    box_xyxy=detection.box_xyxy,
                    score=detection.score,
                    rle=rle,
                    coordinate_logprobs=coordinates,
                    label_logprobs=label,
                    factors=(item.existence_score, item.label_score, item.coordinate_score),
                )
            )
        return replace(
            super().parse(generated, tokenizer, context),
            objects=tuple(objects),
            problems=tuple(str(problem) for problem in problems),
            is_valid=bool(pairs) and pairs[0][1].token_span[0] == 0,
        )


def _logprobs_of(
    item: ParsedObject, generated: Generated, tokenizer: TokenReader
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Log-probabilities of the four location tokens, and of the label's tokens."""
    start, end = item.token_span
    label_start = start + NUM_LOCS
    for place in range(label_start, end):
        if tokenizer.is_seg(generated.token_ids[place]):
            label_start = place + 1
    logprobs = generated.logprobs
    return tuple(logprobs[start : start + NUM_LOCS]), tuple(logprobs[label_start:end])


def _task_for(record: Record, name: TaskName, options: PredictOptions) -> _TextTask:
    if name not in OBJECT_TASKS:
        is_describe = name == "caption" and kind_of_prompt(record.prefix) == "describe"
        return _TextTask(
            record_id=record.record_id,
            name=name,
            prefix=record.prefix,
            answer_kind="describe" if is_describe else name,
        )
    phrases = phrases_of_prompt(record.prefix)
    is_free = name == "read_text" or phrases == (_ALL_CLASSES,)
    return _ListTask(
        record_id=record.record_id,
        name=name,
        prefix=record.prefix,
        answer_kind=name,
        phrases=phrases,
        labels=options.labels or ("any" if is_free else "asked"),
        max_objects=options.max_objects,
        has_masks=name == "segment",
    )


def answer_records(
    predictor: Predictor,
    records: Sequence[Record],
    options: PredictOptions,
    batch_size: int | None = None,
) -> list[Prediction | PaliGemmaError]:
    """The answer to each record, or the error that its image, prompt or answer made."""
    answers: dict[int, Prediction | PaliGemmaError] = {}
    rows = []
    for place, record in enumerate(records):
        try:
            task = _task_for(record, task_of(record, options), options)
            rows.append((place, record.load_images(), task))
        except PaliGemmaError as error:
            answers[place] = error
    results = predictor.run(
        [(images, task) for _, images, task in rows],
        batch_size=batch_size,
        max_new_tokens=options.max_new_tokens,
        num_beams=options.num_beams,
        constrained=options.constrained,
        errors="return",
    )
    for (place, _, _), result in zip(rows, results, strict=True):
        answers[place] = result
    return [answers[place] for place in range(len(records))]


def _predict_chunk(
    predictor: Predictor, records: Sequence[Record], options: PredictOptions, batch_size: int | None
) -> list[Prediction]:
    predictions = []
    answers = answer_records(predictor, records, options, batch_size)
    for record, answer in zip(records, answers, strict=True):
        if isinstance(answer, PaliGemmaError):
            raise _named(answer, record)
        predictions.append(answer)
    return predictions


def _named(error: PaliGemmaError, record: Record) -> PaliGemmaError:
    """The error with the record's id, where the record is at fault."""
    if not isinstance(error, InputError):
        return error
    return DataError(f"The record {record.record_id!r} cannot be answered. {error}")


# The file


def model_header(predictor: Predictor) -> dict[str, Any]:
    """What tells a model from another one that would answer differently."""
    return {
        "name": predictor.name,
        "revision": predictor.revision,
        "adapter": predictor.adapter,
        "weights": weights_fingerprint(predictor.model),
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        "quantization": quantization_of(predictor.model),
        "resolution": predictor.processor.resolution,
        "resize": predictor.processor.resize,
    }


def _header(predictor: Predictor, options: PredictOptions) -> dict[str, Any]:
    return {
        _KIND: _FORMAT,
        "model": model_header(predictor),
        "options": asdict(options),
    }


def _open(path: Path, header: dict[str, Any], records: Sequence[Record]) -> dict[str, Prediction]:
    """Earlier answers."""
    prefixes = {record.record_id: record.prefix for record in records}
    done: dict[str, Prediction] = {}
    for number, line in enumerate(open_lines(path, header), start=2):
        prediction = _read_line(line, number, path)
        asked = prefixes.get(prediction.record_id, prediction.prefix)
        if prediction.prefix != asked:
            raise DataError(
                f"{str(path)!r} has an answer of record {prediction.record_id!r} to the prefix "
                f"{prediction.prefix!r}, but the prefix is {asked!r} now. Choose another folder."
            )
        done[prediction.record_id] = prediction
    return done


def open_lines(path: Path, header: dict[str, Any]) -> list[str]:
    """The lines after the header, which must be this one.

    Creates the file, or truncates it to its last complete line. Raises OptionError where it cannot
    be written, DataError for another header.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines, num_bytes = _whole_lines(path) if path.exists() else ([], 0)
        if not lines:
            path.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")
            return []
        _check_header(_read_header(lines[0], path, next(iter(header))), header, path)
        if num_bytes < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(num_bytes)
    except OSError as error:
        raise OptionError(f"The file {str(path)!r} cannot be written: {error}.") from error
    return lines[1:]


def _whole_lines(path: Path) -> tuple[list[str], int]:
    """All complete lines, and their size in bytes."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    return data[:end].decode("utf-8", errors="replace").split("\n")[:-1], end


def _read_header(line: str, path: Path, kind: str = _KIND) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get(kind) != _FORMAT:
        raise DataError(
            f"{str(path)!r} does not start with the header of a predictions file. Choose a new "
            "file, or one that an evaluation wrote."
        )
    return header


def _read_line(line: str, number: int, path: Path) -> Prediction:
    try:
        return Prediction.from_line(line)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"Line {number} of {str(path)!r} is not a prediction ({type(error).__name__}). Delete "
            "the line, and the record is answered again."
        ) from error


def _check_header(header: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    differences = [
        f"{group} {name} was {header.get(group, {}).get(name)!r} and is {value!r}"
        for group in ("model", "options")
        for name, value in expected[group].items()
        if header.get(group, {}).get(name) != value
    ]
    if differences:
        raise DataError(
            f"{str(path)!r} was created with different settings: {'; '.join(differences)}. "
            "Choose another folder, or delete the file."
        )


def _check_records(records: Sequence[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        if not record.prefix.strip():
            raise DataError(
                f"The record {record.record_id!r} has no prefix, so there is no prompt. Add "
                "the prefixes used in training, such as 'detect cat ; dog'."
            )
        if record.record_id in seen:
            raise DataError(f"Two records have the id {record.record_id!r}; ids must differ.")
        seen.add(record.record_id)


def _without_empty(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if value not in (None, ())}
