"""What every contestant is asked: a question about each image, or the records of labeled data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paligemma.answering import ANSWER_LENGTHS
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.compare.options import CompareOptions
from paligemma.data.open import check_number_of_bad, open_data
from paligemma.data.record import BadRecord, Record
from paligemma.data.source import images_in, is_image
from paligemma.errors import DataError, ImageError, OptionError
from paligemma.evals.evaluation import EvalSet, predict_options_of
from paligemma.evals.options import TaskName
from paligemma.evals.predictions import OBJECT_TASKS, PredictOptions, task_of
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.parse_prompt import kind_of_prompt
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The records, and how they are asked."""

    data: EvalSet
    options: CompareOptions
    bad: tuple[BadRecord, ...] = ()
    """Records that cannot be used."""

    def asked_of(self, trained_on: TrainedOn | None) -> EvalSet:
        """As a model is asked that was trained so, with a prefix for every record: as `evaluate`
        asks it. Raises DataError where there is nothing to ask."""
        evaluation = self.options.eval_options()
        data = self.data.asked_as(trained_on, evaluation)
        return replace(data, records=[data.with_prefix(record) for record in data.records])

    def predict_options(self, data: EvalSet) -> PredictOptions:
        """How answers to `asked_of` are generated."""
        return predict_options_of(self.options.eval_options(), data)

    def task_of(self, record: Record) -> TaskName:
        """The kind of answer."""
        return task_of(record, self.predict_options(self.data))

    def max_tokens(self, record: Record) -> int:
        """The length of an answer at which it is cut, as for PaliGemma by default."""
        is_long = kind_of_prompt(record.prefix) == "describe"
        kind = "describe" if is_long else self.task_of(record)
        return self.options.max_new_tokens or ANSWER_LENGTHS[kind]

    def has_truth(self, record: Record) -> bool:
        """Whether there is something to compare the answer with."""
        if record.references or record.suffix:
            return True
        return record.objects is not None and (
            not record.prefix or self.task_of(record) in OBJECT_TASKS
        )


def read_questions(
    sources: Sequence[str], options: CompareOptions, *, left_out: Sequence[str] = ()
) -> Questions:
    """The records: one for each image and question, or those of labeled data.

    `left_out`: ids of records that are known to be of no use. Raises DataError, ImageError or
    OptionError.
    """
    if options.has_questions:
        data = EvalSet(
            records=_records_of_images(sources, options),
            # Without a language, nothing else says that the prompt is a question.
            task="answer" if options.ask and len(_prefixes(options)) == len(options.ask) else None,
        )
        bad: tuple[BadRecord, ...] = ()
    else:
        if len(sources) != 1:
            raise OptionError(
                f"{len(sources)} sources were given, and no question. Ask one of all images, such "
                "as --ask 'how many people are there?' or --caption; or give one set of labeled "
                "data, whose records are asked."
            )
        data, bad = _labeled_data(sources[0], options)
    data, ignored = data.first(options.limit), set(left_out)
    kept = [record for record in data.records if record.record_id not in ignored]
    data = replace(data, records=kept)
    return Questions(data=data, options=options, bad=bad)


def _labeled_data(source: str, options: CompareOptions) -> tuple[EvalSet, tuple[BadRecord, ...]]:
    """Raises DataError or OptionError, with advice where images were meant."""
    try:
        records = open_data(source, options, purpose="test")
    except DataError as error:
        path = Path(source)
        if is_image(path) or (path.is_dir() and images_in(path)):
            raise OptionError(
                f"{source!r} holds no labeled data. To ask something about each image, add a "
                "question, such as --ask 'how many people are there?' or --caption. Labeled data: "
                f"{error}"
            ) from error
        raise
    return EvalSet.of(records), records.skipped


def without_unreadable(questions: Questions) -> tuple[Questions, dict[str, tuple[int, int]]]:
    """Without records whose images cannot be read, and the size of each image by record id.

    Raises DataError where that is not to be skipped in labeled data, or where nothing is left.
    """
    options = questions.options
    kept: list[Record] = []
    sizes: dict[str, tuple[int, int]] = {}
    bad = list(questions.bad)
    for record in questions.data.records:
        try:
            sizes[record.record_id] = record.load_images()[0].size_wh
            kept.append(record)
        except (ImageError, DataError) as error:
            if not options.has_questions and options.on_bad_record == "error":
                raise DataError(
                    f"{error} To leave such records out: on_bad_record='skip' (--on-bad-record "
                    "skip)."
                ) from error
            where = record.where or record.record_id
            bad.append(BadRecord(record_id=record.record_id, where=where, reason=str(error)))
    if options.has_questions:
        if not kept:
            raise DataError(f"None of the images can be read. {bad[0].reason if bad else ''}")
    else:
        check_number_of_bad(bad, len(kept) + len(bad), options.max_skipped)
    data = replace(questions.data, records=kept)
    return replace(questions, data=data, bad=tuple(bad)), sizes


def fingerprint(record: Record) -> str:
    """Changes with the question and the files of its images."""
    digest = hashlib.sha256(repr((record.prefix, record.record_id)).encode())
    for image in (record.image, *record.more_images):
        if isinstance(image, Path):
            stat = image.stat()
            digest.update(f"{image} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def question_in(prefix: str) -> str:
    """The question in "answer en QUESTION"; any other prompt as it stands."""
    word, _, rest = prefix.partition(" ")
    _, _, question = rest.partition(" ")
    return question if word == "answer" and question else prefix


def image_name(record: Record) -> str:
    """What the record's image is called."""
    return str(record.image) if isinstance(record.image, Path) else record.record_id


def _records_of_images(sources: Sequence[str], options: CompareOptions) -> list[Record]:
    prefixes = _prefixes(options)
    records = []
    for source in sources:
        for prefix in prefixes:
            record_id = source if len(prefixes) == 1 else f"{source} | {prefix}"
            records.append(
                Record(record_id=record_id, image=Path(source), prefix=prefix, where=source)
            )
    ids = [record.record_id for record in records]
    if twice := next((i for i in ids if ids.count(i) > 1), None):
        raise OptionError(f"{twice!r} is named twice. Name each image and each question once.")
    return records


def _prefixes(options: CompareOptions) -> list[str]:
    """The prompts of all questions. Raises OptionError or PromptError."""
    language = options.language
    prefixes = [
        AnswerTask(question=question, language=language or None).prompt()
        for question in options.ask
    ]
    if options.caption:
        prefixes.append(CaptionTask(language=language).prompt())
    if options.describe:
        prefixes.append(CaptionTask(language=language, style="describe").prompt())
    if options.ocr:
        prefixes.append(OcrTask().prompt())
    if options.detect is not None:
        prefixes.append(DetectTask.of(options.detect).prompt())
    if options.segment is not None:
        prefixes.append(SegmentTask.of(options.segment).prompt())
    prefixes += options.prompt
    return prefixes


def truth_of(questions: Questions, record: Record) -> tuple[str, ...]:
    """The accepted texts, for display."""
    if questions.task_of(record) in OBJECT_TASKS:
        return ()
    return record.references or ((record.suffix,) if record.suffix else ())
