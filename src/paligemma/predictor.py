"""Predictor: a loaded model with one method per task.

The methods build queries; `answering.py` answers them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paligemma.answering import (
    ANSWER_LENGTHS,
    CONTEXT_LENGTH,
    AnswerPipeline,
    ImageInput,
    ImageQuery,
    PreparedImage,
    Query,
    answer_all,
    check_beams,
    check_control_words,
    check_several,
    in_order,
    stream_answer,
)
from paligemma.checkpoints.adapter import write_adapter
from paligemma.checkpoints.save import save_model
from paligemma.checkpoints.trained_on import TRAINED_ON_FILE, TrainedOn
from paligemma.config import MASK_CODEC_FILE, count_parameters
from paligemma.engine.generate import score as score_batch
from paligemma.engine.image_cache import EncoderCache, ImageCache, KeyedImage
from paligemma.engine.sampling import Sampling, drawn_seed
from paligemma.errors import (
    ImageError,
    NumericalError,
    OptionError,
    PaliGemmaError,
    PromptError,
    check_choice,
    counted,
)
from paligemma.fast.accelerate import quantization_of
from paligemma.fast.kernels.library import kernels
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.ahead import ReadAhead
from paligemma.processor.image import LoadedImage, box_inside
from paligemma.processor.processor import Processor, PromptRow
from paligemma.results import (
    Answer,
    BatchItem,
    BoxXyxy,
    Caption,
    Detections,
    Generation,
    ImageReference,
    Score,
    Segments,
    Text,
)
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_grammar import MAX_OBJECTS, LabelRule
from paligemma.tasks.objects import read_phrases
from paligemma.tasks.parse_prompt import parse_task
from paligemma.tasks.seg_codec import MaskCodec, mask_codec_to_npz
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, BoxCaptionTask, CaptionTask, OcrTask, QuestionTask

if TYPE_CHECKING:
    from paligemma.charts import Chart
    from paligemma.documents.open import DocumentInput, PageNumbers
    from paligemma.documents.read import DocumentText, ReadOptions
    from paligemma.extraction.names import NameLists
    from paligemma.extraction.options import ExtractOptions
    from paligemma.extraction.result import Extraction
    from paligemma.extraction.schema import Schema
    from paligemma.ranking import Classification, How, Ranked, RankOptions
    from paligemma.tables import Table
    from paligemma.video.asking import Video
    from paligemma.video.clip import Clip
    from paligemma.video.decoding import ClipLimits

ImageInputs = ImageInput | list[ImageInput] | tuple[ImageInput, ...]
"""One image, several (the frames of a clip, a pair to compare), or none: ()."""

Texts = list[str] | tuple[str, ...]

ResultT = TypeVar("ResultT")

MAX_BATCH_SIZE = 32
_NOTHING = object()  # in place of an image or a task that is missing
MAX_NEW_TOKENS = ANSWER_LENGTHS["prompt"]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A loaded model, asked by task.

    >>> predictor = paligemma.load("google/paligemma2-3b-mix-224")
    >>> print(predictor.detect("street.jpg", "car ; person"))
    2 objects in an image of 640 x 480 pixels
    score      x1      y1      x2      y2  label
     0.93    12.0   130.5   310.2   471.8  car
     0.88   400.1   101.9   470.0   402.3  person

    Every method takes an image as a path, bytes, PIL image or array, and raises ImageError,
    PromptError or OptionError for input it cannot use, and NumericalError when the model gives
    NaN or infinity. `max_new_tokens` caps an answer's length; None picks a cap by task, no larger
    than the length of text that the model was trained with, where that is known.

    `load` builds one from a folder. From parts, such as a tiny model and a tokenizer of one's own:
    `Predictor(model=load_model(folder), processor=Processor(tokenizer=..., resolution=...,
    num_image_tokens=...))`.
    """

    model: PaliGemma = field(repr=False)
    processor: Processor = field(repr=False)
    mask_codec: MaskCodec | None = field(default=None, repr=False)
    text_length: int | None = None
    """Text positions that the model was trained with, prompt and answer together."""
    languages: tuple[str, ...] | None = None
    """Codes of all languages that the model knows; None where that is not known. A caption or an
    answer in another one is refused; where nothing is known, a note of the result says so."""
    name: str = ""
    """What was loaded: a folder, or a model of the hub."""
    adapter: str | None = None
    """The adapter's folder, where one was loaded."""
    revision: str | None = None
    """The hub's commit."""
    trained_on: TrainedOn | None = None
    """How the model was asked in fine-tuning, where its folder or adapter says so."""
    note: str | None = None
    """One line that a person should read before trusting the results."""
    image_cache_bytes: int = 256 * 2**20
    """Size of the cache of image tokens, which saves encoding an image again when more questions
    about it follow, in later calls too: 1.2 MB per image for a 3B model at 224."""
    _image_tokens: EncoderCache = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_image_tokens", EncoderCache(self.image_cache_bytes))

    # Tasks

    def caption(
        self, image: ImageInput, language: str = "en", *, max_new_tokens: int | None = None
    ) -> Caption:
        """A short description in a language, such as "es": for released models, one of the 35 of
        `paligemma.tasks.LANGUAGES`."""
        return self._one(image, CaptionTask(language=language), max_new_tokens)

    def describe(
        self, image: ImageInput, language: str = "en", *, max_new_tokens: int | None = None
    ) -> Caption:
        """A longer description; for pre-trained checkpoints and those tuned for it."""
        task = CaptionTask(language=language, style="describe")
        return self._one(image, task, max_new_tokens)

    @overload
    def ask(
        self,
        image: ImageInput,
        question: str,
        language: str | None = "en",
        *,
        max_new_tokens: int | None = None,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: ImageInput,
        question: Texts,
        language: str | None = "en",
        *,
        max_new_tokens: int | None = None,
    ) -> list[Answer]: ...
    def ask(
        self,
        image: ImageInput,
        question: str | Texts,
        language: str | None = "en",
        *,
        max_new_tokens: int | None = None,
    ) -> Answer | list[Answer]:
        """The answer to a question, or one to each of several: the image is encoded once.

        The prompt is "answer {language} {question}", the form of most pre-training and of all that
        mini learned; with `language=None`, the question as it stands, which mix checkpoints
        understand too.
        """
        if isinstance(question, str):
            task = AnswerTask(question=question, language=language)
            return self._one(image, task, max_new_tokens)
        _check_single(image)
        questions = _texts(question, "question")
        tasks = [(image, AnswerTask(question=q, language=language)) for q in questions]
        return self.run(tasks, max_new_tokens=max_new_tokens)

    def question(
        self,
        image: ImageInput,
        answer: str,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
    ) -> Text:
        """A question about the image to which `answer` is the answer."""
        return self._one(image, QuestionTask(answer=answer, language=language), max_new_tokens)

    def ocr(self, image: ImageInput, *, max_new_tokens: int | None = None) -> Text:
        """The text in the image, line by line from the top."""
        return self._one(image, OcrTask(), max_new_tokens)

    def detect(
        self,
        image: ImageInput,
        phrases: str | Sequence[str] | None = None,
        *,
        labels: LabelRule = "asked",
        max_objects: int = MAX_OBJECTS,
        min_objects: int = 0,
        separate: bool | None = None,
        constrained: bool = True,
        max_new_tokens: int | None = None,
    ) -> Detections:
        """Boxes for named things: "cat ; dog", "cat, dog" or ["cat", "dog"].

        Without phrases, a fine-tuned model is asked for what it was trained on (`trained_on`).
        With `separate=True`, each phrase is asked by itself. None does so where the answer for all
        of them together leaves a phrase out or gives it another name, and takes the surer answer.

        The model is held to the form of a list: whole boxes, no box twice, at most `max_objects`,
        and no labels but those asked for; with labels="any" whatever it calls what it finds.
        `min_objects` keeps a model that learned with noise boxes going; see `DetectTask`.
        With `constrained=False` it writes freely, and what is no object goes into `problems`.
        """
        asked = asked_for("detect", phrases, self.trained_on, labels=labels, separate=separate)
        task = DetectTask(
            phrases=asked.phrases,
            labels=asked.labels,
            max_objects=max_objects,
            min_objects=min_objects,
        )
        query = Query(
            task=task,
            max_new_tokens=max_new_tokens,
            constrained=constrained,
            separate=asked.separate,
            notes=asked.notes,
        )
        return cast("Detections", self._ask(image, query))

    def segment(
        self,
        image: ImageInput,
        phrases: str | Sequence[str] | None = None,
        *,
        labels: LabelRule = "asked",
        max_objects: int = MAX_OBJECTS,
        separate: bool | None = None,
        constrained: bool = True,
        max_new_tokens: int | None = None,
    ) -> Segments:
        """Boxes and masks for named things; options as for `detect`.

        Raises CheckpointError without a mask codec.
        """
        asked = asked_for("segment", phrases, self.trained_on, labels=labels, separate=separate)
        query = Query(
            task=SegmentTask(phrases=asked.phrases, labels=asked.labels, max_objects=max_objects),
            max_new_tokens=max_new_tokens,
            constrained=constrained,
            separate=asked.separate,
            notes=asked.notes,
        )
        return cast("Segments", self._ask(image, query))

    def read(
        self,
        source: DocumentInput,
        options: ReadOptions | None = None,
        *,
        pages: PageNumbers | None = None,
        password: str | None = None,
    ) -> DocumentText:
        """The text of a PDF file, a TIFF file or an image in reading order, line by line with boxes
        and scores. Pages are cut where their print is small for the model.

        >>> predictor.read("letter.pdf", pages="1-3").text
        """
        from paligemma.documents.read import ReadOptions, read_document

        options = options or ReadOptions()
        return read_document(self, source, options, pages=pages, password=password)

    def caption_box(
        self, image: ImageInput, box_xyxy: BoxXyxy, *, max_new_tokens: int | None = None
    ) -> Caption:
        """What is in a box: x1, y1, x2, y2 in pixels of the given image.

        What is outside of the image is cut off. Raises OptionError for a box without area in it.
        """
        loaded = self._load(image)
        transform = self.processor.transform(loaded)
        inside = box_inside(box_xyxy, loaded.size_wh)
        box = transform.box_from_source(inside, order="xyxy")
        return self._one(loaded, BoxCaptionTask(box_normalized_xyxy=box), max_new_tokens)

    def table(
        self,
        source: DocumentInput,
        box_xyxy: BoxXyxy | None = None,
        *,
        page: int = 1,
        password: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Table:
        """The table in an image or on a page of a PDF or TIFF file, or in a box on it.

        For models tuned for tables, and mini. A box is in pixels of the image, or in points (1/72
        inch) from the top left of a PDF's page, and so are the boxes of cells.

        >>> predictor.table("report.pdf", (50, 200, 550, 480), page=3).to_csv()
        """
        from paligemma.documents.tables import PartOptions, read_table

        options = PartOptions(
            box_xyxy=box_xyxy, page=page, password=password, max_new_tokens=max_new_tokens
        )
        return read_table(self, source, options)

    def chart(
        self,
        source: DocumentInput,
        box_xyxy: BoxXyxy | None = None,
        *,
        page: int = 1,
        password: str | None = None,
        labels: Sequence[str] = (),
        series: Sequence[str] = (),
        language: str | None = "en",
        max_new_tokens: int | None = None,
    ) -> Chart:
        """The series of the chart in an image or on a page of a PDF or TIFF file.

        A model tuned for charts, or mini, writes the whole chart. Another one is asked for the
        labels and then for the value of each; `labels` says them instead, and `series` what the
        legend says. `box_xyxy` as for `table`.
        """
        from paligemma.documents.tables import ChartOptions, read_chart

        options = ChartOptions(
            box_xyxy=box_xyxy,
            page=page,
            password=password,
            labels=tuple(labels),
            series=tuple(series),
            language=language,
            max_new_tokens=max_new_tokens,
        )
        return read_chart(self, source, options)

    def video(
        self,
        source: str | os.PathLike[str] | bytes | Clip,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        limits: ClipLimits | None = None,
        batch_size: int | None = None,
    ) -> Video:
        """A film to be captioned or asked about: an MP4, QuickTime, Matroska, WebM or AVI file, or
        what `paligemma.video.open_clip` returned.

        Needs `pip install "paligemma[video]"`. Raises VideoError for a file that is no film.

        >>> for segment in predictor.video("clip.mp4").captions(every=5.0):
        ...     print(segment.start_s, segment.end_s, segment.text)
        """
        from paligemma.video.asking import Video
        from paligemma.video.clip import Clip, open_clip
        from paligemma.video.decoding import ClipLimits

        if not isinstance(source, Clip):
            source = open_clip(source, limits or ClipLimits())
        return Video(
            asker=self,
            clip=source,
            start_s=start_s,
            end_s=end_s,
            trained_frames=self.trained_on.num_images if self.trained_on else 1,
            batch_size=batch_size,
        )

    @overload
    def extract(
        self,
        source: DocumentInput,
        schema: type[ResultT] | Schema[ResultT],
        options: ExtractOptions | None = None,
        *,
        names: NameLists = (),
    ) -> Extraction[ResultT]: ...
    @overload
    def extract(
        self,
        source: DocumentInput,
        schema: str | Mapping[str, Any],
        options: ExtractOptions | None = None,
        *,
        names: NameLists = (),
    ) -> Extraction[Any]: ...
    def extract(
        self,
        source: DocumentInput,
        schema: Any,
        options: ExtractOptions | None = None,
        *,
        names: NameLists = (),
    ) -> Extraction[Any]:
        """The values of a schema that a document has, each with its score and place.

        `source` is a PDF or TIFF file, or an image; `schema` a pydantic model, a JSON schema, or
        "prescription", "invoice", "receipt", "id-card", "form" or "product". Values that the
        document does not have are None. `names` are spellings to compare what was read with, for
        the values that the schema marks, or by the path of a value. Needs
        `pip install "paligemma[docs,guided]"`.

        Raises OptionError, before the model is asked, for a schema or an option that cannot be
        used, DocumentError and ImageError for a document that cannot be read.

        >>> found = predictor.extract("rx.pdf", "prescription")
        >>> found.value.medicines[0].dose, found["medicines[0].dose"].score
        ('50 mgs', 0.81)
        """
        from paligemma.extraction.asking import extract

        return extract(self, source, schema, options, names)

    @overload
    def run(
        self,
        tasks: Iterable[tuple[ImageInputs, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        errors: Literal["raise"] = "raise",
    ) -> list[ResultT]: ...
    @overload
    def run(
        self,
        tasks: Iterable[tuple[ImageInputs, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        errors: Literal["return"],
    ) -> list[ResultT | PaliGemmaError]: ...
    @overload
    def run(  # tasks of several kinds
        self,
        tasks: Iterable[tuple[ImageInputs, Task[Any]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Any]: ...
    def run(
        self,
        tasks: Iterable[tuple[ImageInputs, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[ResultT] | list[ResultT | PaliGemmaError]:
        """Many tasks on many images, at most `batch_size` at a time, results in the order given.

        `tasks` may be a generator; see `iterate` to use its results while later ones are computed.
        By default a batch has as many rows as fill 8192 positions, at most 32: 32 at 224 pixels,
        8 at 448, 2 at 896. A large GPU takes more. Tasks may be mixed; when one ends, the next
        takes its place. An image that several ask about is encoded once. `constrained` is for
        tasks with a grammar, `detect` and `segment`; beams are not held to it.

        With `errors="return"`, an image that cannot be read, a prompt that does not fit or a row
        that the model broke gives its error in its place, and the others their results.

        >>> predictor.run([("a.jpg", OcrTask()), ("b.jpg", DetectTask.of("cat"))])
        """
        check_choice("errors", errors, Literal["raise", "return"])
        query = Query(prompt="", max_new_tokens=max_new_tokens, constrained=constrained)
        results: dict[int, ResultT | PaliGemmaError] = {}
        for index, result in self._answers(_queries(tasks, query), batch_size, num_beams):
            if isinstance(result, PaliGemmaError) and errors == "raise":
                raise result
            results[index] = result
        return cast("list[ResultT]", [results[index] for index in range(len(results))])

    @overload
    def iterate(
        self,
        tasks: Iterable[tuple[ImageInputs, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        separate: bool | None = False,
        errors: Literal["raise"] = "raise",
    ) -> Iterator[ResultT]: ...
    @overload
    def iterate(
        self,
        tasks: Iterable[tuple[ImageInputs, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        separate: bool | None = False,
        errors: Literal["return"],
    ) -> Iterator[ResultT | PaliGemmaError]: ...
    @overload
    def iterate(  # tasks of several kinds
        self,
        tasks: Iterable[tuple[ImageInputs, Task[Any]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        separate: bool | None = False,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Any]: ...
    def iterate(
        self,
        tasks: Iterable[tuple[ImageInputs, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        constrained: bool = True,
        separate: bool | None = False,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[ResultT] | Iterator[ResultT | PaliGemmaError]:
        """As `run`, but each result is yielded while later ones are computed, and none is kept.

        At most twice `batch_size` tasks are taken from `tasks` before the first result among them
        is yielded. `separate` is as for `detect`, and for `detect` and `segment` alone.

        >>> tasks = ((path, SegmentTask.of("cat")) for path in Path("images").glob("*.jpg"))
        >>> for segments in predictor.iterate(tasks): ...
        """
        check_choice("errors", errors, Literal["raise", "return"])
        query = Query(
            prompt="", max_new_tokens=max_new_tokens, constrained=constrained, separate=separate
        )
        for result in self.answer(_queries(tasks, query), batch_size, num_beams):
            if isinstance(result, PaliGemmaError) and errors == "raise":
                raise result
            yield result

    def batch(
        self,
        images: Iterable[ImageInput],
        task: Task[ResultT] | str | Iterable[Task[ResultT] | str],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        separate: bool | None = False,
    ) -> Iterator[BatchItem[ResultT]]:
        """One task on any number of images, or one for each: the result or error of each, in order.

        Memory stays the same however many images there are, and threads read and resize the next
        images while the model computes. `task` is a task or its prompt, such as "caption",
        "caption de", "ocr" or "detect cat ; dog"; or a list or generator of them, one for each
        image. For jobs that survive interruption, see `paligemma.batch`.

        Raises PromptError or OptionError for a task that no image could be asked, at once unless
        it comes from a generator.

        >>> for item in predictor.batch(Path("photos").glob("*.jpg"), "caption"):
        ...     print(item.image, item.error or item.result)
        """
        check_several(images, "batch")

        def checked(task: Task[ResultT] | str) -> Query:
            query = Query(
                task=parse_task(task) if isinstance(task, str) else task,
                max_new_tokens=max_new_tokens,
                separate=separate,
            )
            self.check(query)
            return query

        queries: Iterable[Query]
        if isinstance(task, str) or not isinstance(task, Iterable):
            queries = repeat(checked(task))
        elif isinstance(task, Sequence):
            queries = [checked(each) for each in task]
        else:
            queries = map(checked, task)
        return self._batch(images, queries, self.rows_at_a_time(batch_size))

    def _batch(
        self, images: Iterable[ImageInput], queries: Iterable[Query], batch_size: int
    ) -> Iterator[BatchItem[Any]]:
        given: deque[ImageInput] = deque()
        ahead = ReadAhead[tuple[int, tuple[ImageInput, Query]], PreparedImage](
            lambda item: self.prepare(item[1][0]), lambda item: item[0], depth=batch_size
        )

        def asked() -> Iterator[ImageQuery]:
            for (_, (image, query)), read in ahead.over(enumerate(_pairs(images, queries))):
                given.append(image)
                yield ImageQuery(images=(read,), query=query)

        try:
            for answer in self.answer(asked(), batch_size):
                image, is_error = given.popleft(), isinstance(answer, PaliGemmaError)
                if isinstance(answer, Detections | Segments):
                    answer = replace(answer, image_reference=ImageReference(image))
                yield BatchItem(
                    image=image,
                    result=None if is_error else answer,
                    error=answer if is_error else None,
                )
        finally:
            ahead.close()

    def check(self, query: Query) -> None:
        """Raises PromptError, OptionError or CheckpointError for what no image could be asked."""
        check_control_words(query.text)
        self._pipeline.tokenize(query, 1)

    def rows_at_a_time(self, batch_size: int | None = None) -> int:
        """How many images with one prompt each are computed together: by default as in `run`."""
        return self._batch_size(batch_size, 1)

    def prepare(self, image: ImageInput) -> PreparedImage:
        """The image at the model's resolution, which `answer` takes in place of an image.

        Threads may call it while the model computes. Raises ImageError.
        """
        return self._pipeline.prepare_image(self._load(image))

    def answer(
        self, queries: Iterable[ImageQuery], batch_size: int | None = None, num_beams: int = 1
    ) -> Iterator[Any]:
        """The result or PaliGemmaError of each query, in order: what `iterate` is made of."""
        return in_order(self._answers(queries, batch_size, num_beams))

    # Prompts of one's own

    @overload
    def generate(
        self,
        images: ImageInputs,
        prompt: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> Generation: ...
    @overload
    def generate(
        self,
        images: ImageInputs,
        prompt: Texts,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> list[Generation]: ...
    def generate(
        self,
        images: ImageInputs,
        prompt: str | Texts,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> Generation | list[Generation]:
        """The raw text that the model writes after a prompt, or after each of several.

        `images`: one image, a list of them (frames of a clip in order of time), or () for none.
        The newline after the prompt and the image tokens are added here. Temperature 0 is
        greedy; sampling repeats with the same seed (None: a random one), and the rows of a list
        differ from each other.
        `num_beams` above 1 searches for the likeliest whole text. The text ends before the first
        of the `stop` strings.

        >>> predictor.generate("cat.jpg", "caption en").text
        'a cat on a sofa'
        """
        prompts = _texts(prompt, "prompt")
        generations = self.generate_batch(
            [(images, p) for p in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            num_beams=num_beams,
            stop=stop,
        )
        return generations[0] if isinstance(prompt, str) else generations

    def generate_batch(
        self,
        rows: Sequence[tuple[ImageInputs, str]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """As `generate`, for pairs of images and prompt. Raises the first row's error."""
        query = Query(
            prompt="",
            max_new_tokens=max_new_tokens,
            sampler=Sampling(
                temperature=temperature, top_k=top_k, top_p=top_p, seed=drawn_seed(seed)
            ),
            stop=stop,
        )
        check_beams(num_beams, sampler=query.sampler, stop=query.stop)
        queries = []
        for index, (images, prompt) in enumerate(_checked_pairs(rows, "prompt")):
            row = replace(query, prompt=prompt, sample_index=index)
            queries.append(ImageQuery(images=_as_tuple(images), query=row))
        generations: dict[int, Generation] = {}
        for index, result in self._answers(queries, batch_size, num_beams):
            if isinstance(result, PaliGemmaError):
                raise result
            generations[index] = result
        return [generations[index] for index in range(len(queries))]

    def stream(
        self,
        images: ImageInputs,
        prompt: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The text of `generate` in pieces, as soon as they are final.

        A piece is never taken back: the beginning of what may become a stop string is held until
        it is clear that it does not.
        """
        query = Query(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampler=Sampling(
                temperature=temperature, top_k=top_k, top_p=top_p, seed=drawn_seed(seed)
            ),
            stop=stop,
        )
        item = ImageQuery(images=_as_tuple(images), query=query)
        updates = stream_answer(self._pipeline, self.model, self._cache, item)
        return (update.text for update in updates if update.text)

    @overload
    def score(self, images: ImageInputs, prompt: str, suffix: str) -> Score: ...
    @overload
    def score(self, images: ImageInputs, prompt: str, suffix: Texts) -> list[Score]: ...
    def score(self, images: ImageInputs, prompt: str, suffix: str | Texts) -> Score | list[Score]:
        """How probable the model finds a text (with its end) after a prompt, or each of several.

        >>> scores = predictor.score("cat.jpg", "answer en Is it a cat?", ["yes", "no"])
        >>> scores[0].total > scores[1].total
        True
        """
        check_control_words(prompt)
        suffixes = _texts(suffix, "suffix")
        pixels = self.processor.pixel_values([self._load(image) for image in _as_tuple(images)])
        batches = self._pipeline.scoring_batches(
            prompt, suffixes, len(pixels), self._batch_size(None, len(pixels))
        )
        image_tokens = self._encode(pixels) if len(pixels) else None
        scores = [
            row
            for inputs in batches
            for row in score_batch(self.model, inputs, image_tokens=image_tokens)
        ]
        return scores[0] if isinstance(suffix, str) else scores

    def classify(
        self,
        image: ImageInput,
        labels: Sequence[str],
        how: How = "ask",
        *,
        allow_none: bool = True,
        options: RankOptions | None = None,
    ) -> Classification:
        """Which of the labels fits the image, with probabilities, or none of them.

        "ask" asks "is there a {label}?" for each label, all in one batch; "caption" compares how
        likely each is as the caption, and always chooses one. `presences` of the result judge each
        label by itself, where several may fit.

        >>> predictor.classify("cat.jpg", ["cat", "dog", "red car"]).best
        'cat'
        """
        from paligemma.ranking import RankOptions, classify

        options = replace(options or RankOptions(), how=how)
        return classify(self, image, labels, options, allow_none=allow_none)

    def rank(
        self,
        images: Iterable[ImageInput],
        text: str,
        how: How = "ask",
        *,
        errors: Literal["raise", "return"] = "raise",
        options: RankOptions | None = None,
    ) -> list[Ranked]:
        """The images in the order of how well a text fits them, best first; for hundreds of them.

        As `classify`, with one question for each image, or the text as its caption. With
        `errors="return"`, images that cannot be read come last, with their error.

        >>> [paths[found.index] for found in predictor.rank(paths, "dog on a beach")[:5]]
        """
        from paligemma.ranking import RankOptions, rank

        options = replace(options or RankOptions(), how=how)
        return rank(self, images, text, options, errors=errors)

    def embed_image(
        self,
        image: ImageInput | PreparedImage | Sequence[ImageInput | PreparedImage],
        *,
        pooled: bool = False,
    ) -> npt.NDArray[np.float32]:
        """The image as the decoder sees it: float32[P, D], P image tokens of the model's width.

        float32[256, 2304] for PaliGemma 2 3B at 224 pixels. Of a list of N images, all of them:
        float32[N, P, D]. With `pooled`, the mean of the image tokens: float32[D] or [N, D].
        """
        is_list = isinstance(image, list | tuple)
        images = cast("Sequence[ImageInput | PreparedImage]", image if is_list else (image,))
        if not images:
            raise OptionError("There are no images to embed. Pass one, or a list of them.")
        size = self._batch_size(None, 1)
        parts = []
        for start in range(0, len(images), size):
            prepared = [
                each if isinstance(each, PreparedImage) else self.prepare(each)
                for each in images[start : start + size]
            ]
            pixels = torch.stack([each.image.pixel_values for each in prepared])
            tokens = self._encode(pixels).float()
            parts.append(_finite(tokens.mean(1) if pooled else tokens))
        embedded = np.concatenate(parts)
        return embedded if is_list else embedded[0]

    @torch.inference_mode()
    def embed_prompt(
        self, images: ImageInputs, prompt: str, *, pooled: bool = False
    ) -> npt.NDArray[np.float32]:
        """The decoder's last hidden states for images and prompt together: float32[T, D].

        One per image token, then BOS, the prompt and its separator. `images` as for `generate`; ()
        embeds the text alone. With `pooled`, their mean: float32[D].
        """
        check_control_words(prompt)
        loaded = [self._load(image) for image in _as_tuple(images)]
        row = PromptRow(prompt=prompt, images=tuple(range(len(loaded))))
        inputs = self.processor.prefix_inputs([row], loaded).to(self.model.device)
        tokens = self._encode(self.processor.pixel_values(loaded)) if loaded else None
        [hidden] = self.model.hidden_states(inputs, image_tokens=tokens)
        hidden = hidden[inputs.input_mask[0]].float()
        return _finite(hidden.mean(0) if pooled else hidden)

    # The model itself

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder that `load` and transformers read. Returns its path.

        A quantized model makes a quantized folder, which `load` alone reads.

        Raises CheckpointError when the folder exists and holds something, NumericalError when a
        weight is NaN or infinite.
        """
        proto = self.processor.tokenizer.model_proto
        files = {}
        if self.mask_codec is not None:
            files[MASK_CODEC_FILE] = mask_codec_to_npz(self.mask_codec)
        if self.trained_on is not None:
            files[TRAINED_ON_FILE] = self.trained_on.to_bytes()
        return save_model(self.model, folder, tokenizer_proto=proto, extra_files=files)

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the model's adapters alone, in peft's format. Returns the folder.

        `load(..., adapter=folder)` reads it, and so does peft on transformers' model. Raises
        OptionError when the model has none (or they are merged), CheckpointError when the folder
        exists and holds something, NumericalError for NaN and infinity.
        """
        return write_adapter(
            self.model,
            folder,
            base_name=self.name or None,
            revision=self.revision,
            trained_on=self.trained_on,
        )

    def info(self) -> dict[str, Any]:
        """Return the model's name, sizes and formats, for display and logs."""
        config = self.model.config
        return {
            "name": self.name,
            "adapter": self.adapter,
            "revision": self.revision,
            "family": config.family,
            "parameters": count_parameters(config),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantization": quantization_of(self.model),
            "kernels": compiled.level if (compiled := kernels()) is not None else None,
            "device": str(self.model.device),
            "resolution": config.vision.resolution,
            "image_tokens": config.vision.num_image_tokens,
            "text_length": self.text_length,
            "vocabulary": config.decoder.vocab_size,
            "resize": self.processor.resize,
            "mask_codec": self.mask_codec is not None,
            "note": self.note,
        }

    # Parts

    def _load(self, image: ImageInput) -> LoadedImage:
        return image if isinstance(image, LoadedImage) else self.processor.load(image)

    def clear_cache(self) -> None:
        """Clear cached image tokens. Call it after changing weights in a way torch cannot detect.

        Training steps, `load_state_dict` and other in-place edits are noticed without it. An edit
        through `.data` is noticed when it changes one of the few numbers per weight that are
        compared, which an edit of a whole tensor does; an edit of a single element may not be.
        """
        self._image_tokens.clear()

    @property
    def _cache(self) -> ImageCache:
        return self._image_tokens.for_weights_of(self.model)

    @property
    def _pipeline(self) -> AnswerPipeline:
        return AnswerPipeline(
            processor=self.processor,
            mask_codec=self.mask_codec,
            text_length=self.text_length,
            languages=self.languages,
        )

    def _answers(
        self, queries: Iterable[ImageQuery], batch_size: int | None, num_beams: int
    ) -> Iterator[tuple[int, Any]]:
        if not isinstance(queries, Sequence):
            # The first tells how many images the others have.
            iterator = iter(queries)
            first = list(islice(iterator, 1))
            queries = chain(first, iterator)
        else:
            first = list(queries)
        num_images = max((len(query.images) for query in first), default=1)
        return answer_all(
            self._pipeline,
            self.model,
            self._cache,
            queries,
            batch_size=self._batch_size(batch_size, num_images),
            num_beams=num_beams,
        )

    @torch.inference_mode()
    def _encode(self, pixel_values: Tensor) -> Tensor:
        """float32[I, 3, R, R] of at least one image -> float[I, P, D]."""
        images = [KeyedImage(pixel_values=pixels) for pixels in pixel_values]
        return self._cache.encode(images, self.model)

    def _one(self, image: ImageInput, task: Task[ResultT], max_new_tokens: int | None) -> ResultT:
        _check_single(image)
        return self.run([(image, task)], max_new_tokens=max_new_tokens)[0]

    def _ask(self, image: ImageInput, query: Query) -> Any:
        _check_single(image)
        [(_, result)] = self._answers([ImageQuery(images=(image,), query=query)], None, 1)
        if isinstance(result, PaliGemmaError):
            raise result
        return result

    def _batch_size(self, batch_size: int | None, num_images: int) -> int:
        """Rows at once. The memory that attention takes grows with the square of a row."""
        if batch_size is None:
            return usual_batch_size(self.processor.num_image_tokens * max(1, num_images))
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise OptionError(
                f"batch_size is {batch_size!r}; it must be a whole number of at least 1."
            )
        return batch_size


def usual_batch_size(num_image_tokens: int) -> int:
    """How many rows with so many image tokens each are computed together by default."""
    return min(MAX_BATCH_SIZE, max(1, CONTEXT_LENGTH // num_image_tokens))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a question about objects asks for."""

    phrases: tuple[str, ...]
    labels: LabelRule
    separate: bool | None
    notes: tuple[str, ...] = ()


def asked_for(
    task: str,
    phrases: str | Sequence[str] | None,
    trained_on: TrainedOn | None,
    *,
    labels: LabelRule,
    separate: bool | None,
) -> Asked:
    """What to search for: the phrases, or without any what the model was trained on.

    Raises PromptError for phrases that are no text, OptionError without phrases and training.
    """
    if phrases is not None:
        names, notes = read_phrases(phrases)
        return Asked(phrases=names, labels=labels, separate=separate, notes=notes)
    if trained_on is None:
        raise OptionError(
            "There are no phrases to look for, and the model does not say what it was trained on. "
            "Give phrases, such as 'cat ; dog'."
        )
    return Asked(
        phrases=trained_on.phrases(task),
        labels="any" if trained_on.labels == "any" else labels,
        # One by one, they are asked in another way than in training.
        separate=separate or False,
    )


def _pairs(
    images: Iterable[ImageInput], queries: Iterable[Query]
) -> Iterator[tuple[ImageInput, Query]]:
    """Raises OptionError where there are fewer of one than of the other."""
    if isinstance(queries, repeat):
        yield from zip(images, queries, strict=False)
        return
    count = 0
    for count, (image, query) in enumerate(zip_longest(images, queries, fillvalue=_NOTHING), 1):
        if image is _NOTHING or query is _NOTHING:
            short, long = ("images", "tasks") if image is _NOTHING else ("tasks", "images")
            raise OptionError(
                f"There are {count - 1} {short} and more {long}. Pass a task for each image, or "
                "one for all."
            )
        yield cast("tuple[ImageInput, Query]", (image, query))


def _checked_pairs(pairs: object, second: str) -> Iterator[tuple[Any, Any]]:
    """Pairs of images and a task, or a prompt. Raises OptionError for anything else."""
    if not isinstance(pairs, Iterable) or isinstance(pairs, str | bytes):
        raise OptionError(f"Expected a list of pairs (image, {second}), not {pairs!r}.")
    for pair in pairs:
        is_sequence = isinstance(pair, list | tuple)
        if not is_sequence or len(pair) != 2:
            size = f" with {counted(len(pair), 'item')}" if is_sequence else ""
            raise OptionError(
                f"Expected pairs (image, {second}), but one is of type {type(pair).__name__}{size}."
            )
        yield pair[0], pair[1]


def _queries(tasks: Iterable[tuple[ImageInputs, Task[Any]]], query: Query) -> Iterable[ImageQuery]:
    """The tasks with the options of `query`: a list from a list, a generator from a generator."""
    queries = (
        ImageQuery(images=_as_tuple(images), query=replace(query, prompt=None, task=task))
        for images, task in _checked_pairs(tasks, "task")
    )
    return list(queries) if isinstance(tasks, Sequence) else queries


def _check_single(image: object) -> None:
    """Raises ImageError for a list, which would become one prompt about all of its images."""
    if isinstance(image, list | tuple):
        raise ImageError(
            f"A list of {counted(len(image), 'image')} was passed, and this method asks about one "
            "image. For a result of each: run([(image, task), ...]). For one prompt about all of "
            "them: generate(images, prompt)."
        )


def _texts(texts: str | Texts, name: str) -> list[str]:
    """One text or several as a list. Raises PromptError for anything else."""
    given = list(texts) if isinstance(texts, list | tuple) else [texts]
    if not all(isinstance(text, str) for text in given):
        raise PromptError(f"The {name} is {texts!r}; expected text, or a list of texts.")
    return given


def _finite(values: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = values.cpu().numpy()
    if not np.isfinite(array).all():
        raise NumericalError.of_model()
    return array


def _as_tuple(images: ImageInputs) -> tuple[ImageInput, ...]:
    return tuple(images) if isinstance(images, list | tuple) else (images,)
