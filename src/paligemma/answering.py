"""The pipeline from a question about images to its typed result.

    Query --tokenize--> TokenizedQuery --start--> Answer --push, finish--> result
    task or prompt      token ids, length         engine request,          Detections, Caption,
                        limit, grammar            tokens so far            Generation, ...

`Predictor`, the server, evaluation and validation during training all answer through
`AnswerPipeline`, so that they send the same prompts, apply the same limits and read answers with
the same code. `answer_all` runs queries to the end; the server feeds the same `Answer` objects from
an engine that runs on.
"""

from __future__ import annotations

import math
import os
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from paligemma.charts import Chart
from paligemma.config import NUM_LOC_TOKENS
from paligemma.engine.beam import beam_search
from paligemma.engine.engine import Engine, Event
from paligemma.engine.image_cache import ImageCache, KeyedImage
from paligemma.engine.request import Request, TopLogprob
from paligemma.engine.sampling import GREEDY, Sampling, row_limits
from paligemma.errors import (
    CancelledError,
    CheckpointError,
    ImageError,
    NumericalError,
    OptionError,
    PaliGemmaError,
    PromptError,
)
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.image import ImageSource, ImageTransform, LoadedImage
from paligemma.processor.processor import Processor, pad_batch
from paligemma.processor.sequence import TokenSequence, build_example, build_prefix
from paligemma.processor.tokenizer import TextStream, Tokenizer
from paligemma.results import (
    Detection,
    Detections,
    Generation,
    ImageReference,
    RangeSummary,
    Segments,
    StopReason,
)
from paligemma.tables import Table
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_stream import ObjectStream
from paligemma.tasks.objects import joined_phrases_note, parse_objects
from paligemma.tasks.parse_prompt import prompt_notes
from paligemma.tasks.second_look import SecondLook, second_look, separately
from paligemma.tasks.seg_codec import MaskCodec
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import (
    AnswerKind,
    Grammar,
    GuidedTask,
    Task,
    TaskContext,
    language_doubt,
)
from paligemma.tasks.text import AnswerTask, CaptionTask, QuestionTask
from paligemma.tasks.text_grammar import TextGrammar

ImageInput = ImageSource | LoadedImage
"""A path, the bytes of a file, a PIL image, an array, or what `Processor.load` returned."""

CONTEXT_LENGTH = 8192  # of Gemma 1 and 2: arXiv 2403.08295, arXiv 2408.00118

CONTROL_WORDS = ("<image>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")

_LINE_BREAK_NOTE = (
    "The prompt has a line break, which the model reads as the end of the prompt. Leave it out: "
    "the one at the end is added by itself."
)
_NO_IMAGE_NOTE = (
    "The prompt has no image. The model was trained with one in front of every prompt, and makes "
    "things up without."
)
_NO_BEAMS_FOR_TEXT = (
    "Beam search takes no grammar, so that it cannot hold an answer to a pattern. Use num_beams=1."
)

# What an answer usually needs, and some more: a trained model ends earlier by itself. An object
# takes about 9 tokens in a list of boxes and 25 in a list of masks, and a list may have 100.
ANSWER_LENGTHS: dict[AnswerKind, int] = {
    "caption": 64,
    "describe": 192,
    "answer": 48,
    "ocr": 256,
    "detect": 900,
    "segment": 2500,
    "table": 4096,
    "chart": 1024,
    "read_text": 1024,
    "generate": 256,
    "prompt": 128,
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """A task about images, or a prompt of the caller's own, and how its answer is decoded.

    Raises OptionError unless exactly one of `task` and `prompt` is given, and for stop strings
    that are empty.
    """

    task: Task[Any] | None = None
    prompt: str | None = None
    max_new_tokens: int | None = None  # None: what the task usually needs, as far as there is room
    constrained: bool = True  # restrict the answer to the grammar of the task, if it has one
    separate: bool | None = False
    """For detect and segment: ask for each phrase by itself. None: only where the answer for all
    of them together leaves some out. Only `answer_all` asks more than once."""
    notes: tuple[str, ...] = ()  # for the result: how the caller's words were understood
    sampler: Sampling = GREEDY
    sample_index: int = 0  # together with the sampler's seed, determines the randomness
    stop: Sequence[str] = ()  # the text ends before the first of these
    num_top_logprobs: int = 0  # number of most likely tokens to report at each position
    adapter: str = ""  # the adapter that answers; "" is the model itself
    client: str = ""  # who asks. The engine lets clients take turns

    def __post_init__(self) -> None:
        if (self.task is None) == (self.prompt is None):
            raise OptionError("A query has either a task or a prompt; give exactly one of them.")
        if self.task is not None:
            check_task(self.task)
        is_list = isinstance(self.stop, Collection) and not isinstance(self.stop, str)
        if not is_list or not all(isinstance(s, str) and s for s in self.stop):
            raise OptionError(f"stop is {self.stop!r}; it must be a list of non-empty strings.")

    @property
    def text(self) -> str:
        """The prompt that the model reads, without image tokens and separator."""
        if self.task is not None:
            return self.task.prompt()
        assert self.prompt is not None
        return self.prompt


@dataclass(frozen=True, kw_only=True)
class TokenizedQuery:
    """A query as token ids, before its images are read."""

    query: Query
    prefix: TokenSequence
    max_new_tokens: int
    grammar: Grammar | None  # what the answer is held to

    @property
    def num_positions(self) -> int:
        """Positions that it may take in the cache, all new tokens included."""
        return len(self.prefix) + self.max_new_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """An image as the model takes it, and how it was resized to the model's resolution."""

    image: KeyedImage
    transform: ImageTransform


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What an answer took, in tokens."""

    prompt_tokens: int = 0  # all that the model read, image tokens included
    image_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Update:
    """The next part of an answer. Parts joined are the whole; nothing is taken back."""

    text: str = ""  # new text that can no longer become part of a stop string
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # one per token
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    """The most likely tokens at each position, if they were asked for."""
    object: Detection | None = None
    """A box or mask that is complete. Those of all updates are the result's."""

    def then(self, following: Update) -> Update:
        """Both as one update, without their objects."""
        return Update(
            text=self.text + following.text,
            token_ids=self.token_ids + following.token_ids,
            logprobs=self.logprobs + following.logprobs,
            top_logprobs=self.top_logprobs + following.top_logprobs,
        )


@dataclass(frozen=True, kw_only=True)
class AnswerPipeline:
    """Turns queries into engine requests and tokens into results. Threads may share one."""

    processor: Processor
    mask_codec: MaskCodec | None = None
    text_length: int | None = None
    """Text positions that the model was trained with, prompt and answer together."""
    languages: tuple[str, ...] | None = None
    """Codes of all languages that the model knows; None where that is not known."""
    num_positions: int = CONTEXT_LENGTH
    """Positions that images, prompt and answer may take together."""
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    """The largest default length of an answer; callers may ask for more."""
    max_mask_pixels: int | None = None
    """Of all masks of an answer together, each as large as its image."""

    def prepare_image(self, image: LoadedImage) -> PreparedImage:
        """Resizes the image to the model's resolution."""
        return PreparedImage(
            image=KeyedImage(pixel_values=self.processor.pixel_values([image])[0]),
            transform=self.processor.transform(image),
        )

    def tokenize(self, query: Query, num_images: int) -> TokenizedQuery:
        """Token ids, the answer's length limit and its grammar.

        Raises PromptError for text that cannot be tokenized or is too long, OptionError for a
        limit below 1 or a language that the model does not know, and CheckpointError for masks
        from a model without a mask codec.
        """
        task = query.task
        if isinstance(task, SegmentTask) and self.mask_codec is None:
            raise _no_mask_codec()
        num_image_tokens = self.processor.num_image_tokens
        prefix = build_prefix(self.processor.tokenizer, query.text, num_images, num_image_tokens)
        num_text_tokens = len(prefix) - num_images * num_image_tokens
        self._check_prompt_length(num_text_tokens)
        notes = self._prompt_notes(query, num_images, num_text_tokens)
        query = replace(query, notes=(*query.notes, *notes)) if notes else query
        grammar = None
        if query.constrained and isinstance(task, GuidedTask):
            grammar = task.grammar(self.processor.tokenizer)
        return TokenizedQuery(
            query=query,
            prefix=prefix,
            max_new_tokens=self._max_new_tokens(query, len(prefix), grammar),
            grammar=grammar,
        )

    def start(
        self, tokenized: TokenizedQuery, images: Sequence[PreparedImage], *, stream: bool = False
    ) -> Answer:
        """The answer before its first token. `stream` makes `Answer.push` return updates."""
        task = tokenized.query.task
        if isinstance(task, SegmentTask):
            self.check_mask_pixels(1, images[0].transform.source_wh)
        return Answer(self, tokenized, images, stream=stream)

    def scoring_batches(
        self, prompt: str, suffixes: Sequence[str], num_images: int, batch_size: int
    ) -> list[ModelInputs]:
        """The prompt with each of the suffixes, in batches without pixel values.

        Raises PromptError for text that cannot be tokenized or is too long.
        """
        tokenizer, num_image_tokens = self.processor.tokenizer, self.processor.num_image_tokens
        rows = [
            build_example(tokenizer, prompt, suffix, num_images, num_image_tokens)
            for suffix in suffixes
        ]
        for row in rows:
            self._check_length(len(row))
        images = tuple(range(num_images))
        return [
            pad_batch(
                batch := rows[start : start + batch_size],
                [images] * len(batch),
                pad="right",
                pad_id=tokenizer.pad_id,
            )
            for start in range(0, len(rows), batch_size)
        ]

    def check_mask_pixels(self, num_masks: int, size_wh: tuple[int, int]) -> None:
        """Raises ImageError for masks that would take more than `max_mask_pixels` together."""
        width, height = size_wh
        limit = self.max_mask_pixels
        if limit is not None and num_masks * width * height > limit:
            raise ImageError(
                f"The masks, {num_masks} of {width} x {height} pixels, exceed the limit of {limit} "
                "pixels in all. Send a smaller image, or ask for fewer objects."
            )

    def _prompt_notes(self, query: Query, num_images: int, num_text_tokens: int) -> list[str]:
        """How the prompt differs from what models are trained with.

        Raises OptionError for a task in a language that the model does not know.
        """
        languages = None if query.adapter else self.languages
        notes: list[str] = []
        task = query.task
        if query.prompt is not None:
            notes += prompt_notes(query.prompt, languages)
        elif (
            isinstance(task, CaptionTask | AnswerTask | QuestionTask)
            and task.language is not None
            and (doubt := language_doubt(task.language, languages))
        ):
            if languages is not None:
                raise OptionError(f"{doubt} Choose one of them.")
            notes.append(doubt)
        if not notes and re.search(r"\S.*[\r\n]", query.text, re.DOTALL):
            notes.append(_LINE_BREAK_NOTE)
        if not num_images:
            notes.append(_NO_IMAGE_NOTE)
        if self.text_length is not None and num_text_tokens > self.text_length:
            notes.append(
                f"The prompt has {num_text_tokens} tokens, and the model was trained with at most "
                f"{self.text_length} in prompt and answer together. A shorter one works better."
            )
        return notes

    def _max_new_tokens(self, query: Query, num_prefix: int, grammar: Grammar | None) -> int:
        if query.max_new_tokens is not None:
            (limit,) = row_limits(query.max_new_tokens, 1)
            self._check_length(num_prefix + limit)
            return limit
        if query.task is None:
            limit = ANSWER_LENGTHS["prompt"]
        else:
            limit = answer_length(query.task, self.text_length, grammar)
        if self.max_new_tokens is not None:
            limit = min(limit, self.max_new_tokens)
        self._check_length(num_prefix + 1)
        return min(limit, self.num_positions - num_prefix)

    def _check_length(self, num_positions: int) -> None:
        if num_positions > self.num_positions:
            raise PromptError(
                f"Images, prompt and answer may need {num_positions} positions; the limit is "
                f"{self.num_positions}. Each image takes {self.processor.num_image_tokens}. Use "
                "fewer images, a shorter prompt or a smaller max_new_tokens."
            )

    def _check_prompt_length(self, num_tokens: int) -> None:
        limit = self.max_prompt_tokens
        if limit is not None and num_tokens > limit:
            raise PromptError(f"The prompt has {num_tokens} tokens; the limit is {limit}.")


class Answer:
    """The answer to one query while its tokens come. One thread at a time may use it."""

    def __init__(
        self,
        pipeline: AnswerPipeline,
        tokenized: TokenizedQuery,
        images: Sequence[PreparedImage],
        *,
        stream: bool,
    ) -> None:
        query = tokenized.query
        self._pipeline = pipeline
        self._tokenizer = tokenizer = pipeline.processor.tokenizer
        self._task = query.task
        self._notes = query.notes
        self._stream = stream
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._summaries: list[RangeSummary | None] = []
        self._top_logprobs: list[tuple[TopLogprob, ...]] = []
        self._allowed_probabilities: list[float] = []
        self._text: TextStream | None = None
        if query.task is None or stream:
            self._text = TextStream(tokenizer, tuple(query.stop))
        self._context: TaskContext | None = None
        self._objects: ObjectStream | None = None
        if query.task is not None or len(images) == 1:
            self._context = TaskContext(
                transform=images[0].transform, mask_codec=pipeline.mask_codec
            )
            if stream and isinstance(query.task, DetectTask | SegmentTask):
                self._objects = ObjectStream(query.task, tokenizer, self._context)
        self.request = Request(
            token_ids=torch.tensor(tokenized.prefix.token_ids),
            image_mask=torch.tensor(tokenized.prefix.image_mask),
            images=tuple(image.image for image in images),
            max_new_tokens=tokenized.max_new_tokens,
            eos_id=tokenizer.eos_id,
            sampler=query.sampler,
            row_number=query.sample_index,
            summarized_ids=range(tokenizer.loc_offset, tokenizer.loc_offset + NUM_LOC_TOKENS),
            num_top_logprobs=query.num_top_logprobs,
            should_stop=_stop_check(query, tokenizer),
            constraint=tokenized.grammar,
            client=query.client,
            adapter=query.adapter,
        )

    @property
    def makes_masks(self) -> bool:
        """Whether `finish` decodes masks, which takes a while."""
        return isinstance(self._task, SegmentTask)

    @property
    def usage(self) -> Usage:
        """Tokens read and written so far."""
        return Usage(
            prompt_tokens=len(self.request.token_ids),
            image_tokens=int(self.request.image_mask.sum()),
            completion_tokens=len(self._token_ids),
        )

    @property
    def top_logprobs(self) -> tuple[tuple[TopLogprob, ...], ...]:
        """The most likely tokens at each position; () if they were not asked for."""
        return tuple(self._top_logprobs) if any(self._top_logprobs) else ()

    def push(self, event: Event) -> Update | None:
        """Takes in the event's token, if it has one. Returns an update when streaming."""
        if event.token_id is None or event.logprob is None:
            return None
        self._token_ids.append(event.token_id)
        self._logprobs.append(event.logprob)
        self._summaries.append(event.summary)
        self._top_logprobs.append(event.top_logprobs)
        self._allowed_probabilities.append(event.allowed_probability)
        if self._text is not None and event.token_id != self._tokenizer.eos_id:
            self._text.push(event.token_id)
        if not self._stream:
            return None
        assert self._text is not None
        complete = None
        if self._objects is not None:
            complete = self._objects.push(event.token_id, event.logprob, event.summary)
        return Update(
            text=self._text.take(),
            token_ids=(event.token_id,),
            logprobs=(event.logprob,),
            top_logprobs=(event.top_logprobs,) if event.top_logprobs else (),
            object=complete,
        )

    def finish(self, event: Event) -> tuple[Update | None, Any]:
        """The last update, if there is one, and the typed result, once the event ends the answer.

        Raises NumericalError if the model returned NaN or infinity, CancelledError if the request
        was cancelled, the engine's own error if it failed, and ImageError if the masks exceed
        `max_mask_pixels`.
        """
        match event.stop_reason:
            case "numerical_error":
                raise NumericalError.of_model()
            case "cancelled" | "expired":
                raise CancelledError("The request was cancelled.")
            case "failed":
                assert event.error is not None
                raise event.error
        stop_reason = cast("StopReason", event.stop_reason)
        rest = "" if self._text is None else self._text.take_rest()
        complete = None if self._objects is None else self._objects.finish(stop_reason)
        is_news = self._stream and (rest or complete)
        last = Update(text=rest, object=complete) if is_news else None
        return last, self._result(stop_reason)

    def _result(self, stop_reason: StopReason) -> Any:
        generation = Generation(
            text="" if self._text is None else self._text.text,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            stop_reason=stop_reason,
            notes=self._notes,
            locations=tuple(self._summaries),
            held=1.0 - math.prod(self._allowed_probabilities),
            allowed_probabilities=tuple(self._allowed_probabilities),
        )
        if self._task is None:
            return replace(generation, objects=self._boxes_in(generation))
        assert self._context is not None
        if self.makes_masks and self._pipeline.max_mask_pixels is not None:
            parsed = parse_objects(
                self._token_ids, self._logprobs, self._tokenizer, stop_reason=stop_reason
            )
            num_masks = sum(bool(item.seg_codes) for item in parsed.objects)
            self._pipeline.check_mask_pixels(num_masks, self._context.transform.source_wh)
        result = self._task.parse(generation, self._tokenizer, self._context)
        if stop_reason == "stop" and self._text is not None:
            result = replace(result, text=self._text.text)
        if isinstance(result, Generation):
            result = replace(result, objects=self._boxes_in(generation))
        if isinstance(result, Detections | Segments):
            sure = {obj.label.casefold() for obj in result if not obj.unsure}
            doubtful = (phrase for phrase in result.phrases if phrase.casefold() not in sure)
            note = joined_phrases_note(doubtful)
            return replace(result, notes=(*self._notes, *([note] if note else [])))
        if isinstance(result, Generation | Table | Chart):
            return replace(result, notes=self._notes)
        return result

    def _boxes_in(self, generation: Generation) -> tuple[Detection, ...]:
        """What a model that was asked for text has marked in the image."""
        ids = generation.token_ids
        if self._context is None or not any(map(self._tokenizer.is_loc, ids)):
            return ()
        task = DetectTask(phrases=("",), labels="any", max_objects=len(ids) + 1)
        if generation.stop_reason != "stop":
            return task.parse(generation, self._tokenizer, self._context).objects
        # The tokens reach beyond the text, which ends before the stop string.
        length = len(generation.text)
        while ids and len(self._tokenizer.detokenize(ids[:-1])) >= length:
            ids = ids[:-1]
        kept = replace(generation, token_ids=ids, logprobs=generation.logprobs[: len(ids)])
        objects = task.parse(kept, self._tokenizer, self._context).objects
        if not objects:
            return ()
        label = objects[-1].label
        start = self._tokenizer.detokenize(ids).rfind(label)
        label = label[: max(0, length - start)].rstrip()
        return (*objects[:-1], replace(objects[-1], label=label))


@dataclass(frozen=True, kw_only=True)
class ImageQuery:
    """A query about images that are still to be read."""

    images: tuple[ImageInput | Callable[[], LoadedImage | PreparedImage], ...]
    """A function is called when the query's turn comes, and returns the image."""
    query: Query


def answer_all(
    pipeline: AnswerPipeline,
    model: PaliGemma,
    cache: ImageCache,
    queries: Iterable[ImageQuery],
    *,
    batch_size: int,
    num_beams: int = 1,
) -> Iterator[tuple[int, Any]]:
    """(Index in `queries`, result or PaliGemmaError) for each query, as soon as it is known.

    At most `batch_size` queries run at a time. Queries are taken from the iterable, and their
    images read, shortly before their turn comes: never more than twice `batch_size` after the first
    one without a result. A query that cannot be answered (an unreadable image, a prompt that is too
    long or contains control words, NaN) yields its error; other exceptions are raised. Beam search
    takes one query at a time, without a grammar; `check_beams` refuses what else it does not take.
    Raises OptionError for a `num_beams` below 1.
    """
    turns = _Turns(pipeline, queries, batch_size, may_separate=num_beams == 1)
    images = _RecentImages(pipeline, batch_size)

    def start(turn: _Turn) -> Answer:
        return pipeline.start(turn.plan, [images.get(image) for image in turn.images])

    if num_beams == 1:
        yield from _run(turns, model, cache, start)
        return
    while turns.fill():
        yield from turns.take_errors()
        if turns.waiting:
            turn = turns.waiting.popleft()
            try:
                if isinstance(turn.plan.grammar, TextGrammar):
                    raise OptionError(_NO_BEAMS_FOR_TEXT)
                answer = start(turn)
            except PaliGemmaError as error:
                yield turns.answered(turn.index, error)
                continue
            result = _result_or_error(answer, _search(answer, model, cache, num_beams))
            yield turns.answered(turn.index, result)


def in_order(answers: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """What `answer_all` yields, in the order of the queries.

    >>> list(in_order([(1, "b"), (0, "a"), (2, "c")]))
    ['a', 'b', 'c']
    """
    early: dict[int, Any] = {}
    num_yielded = 0
    for index, answer in answers:
        early[index] = answer
        while num_yielded in early:
            yield early.pop(num_yielded)
            num_yielded += 1


@dataclass(frozen=True, kw_only=True, eq=False)
class _Turn:
    """One answer to compute: a query's own, or one of a group's."""

    index: int
    plan: TokenizedQuery
    images: tuple[ImageInput | Callable[[], LoadedImage | PreparedImage], ...]
    group: _Group | None = None
    part: int = 0


class _Turns:
    """The turns of queries from an iterable, tokenized a batch ahead."""

    def __init__(
        self,
        pipeline: AnswerPipeline,
        queries: Iterable[ImageQuery],
        batch_size: int,
        *,
        may_separate: bool,
    ) -> None:
        self.waiting: deque[_Turn] = deque()
        self.batch_size = batch_size
        self.pipeline = pipeline
        self._queries = enumerate(queries)
        self._may_separate = may_separate
        self._num_taken = 0
        self._unanswered: dict[int, tuple[Any, ...]] = {}  # query -> its images
        self._errors: deque[tuple[int, PaliGemmaError]] = deque()
        self._is_exhausted = False

    def fill(self) -> bool:
        """Tokenize queries until a batch is waiting; False once nothing at all is left to do."""
        while not self._is_exhausted and len(self.waiting) < self.batch_size:
            first = min(self._unanswered, default=self._num_taken)
            if self._num_taken - first >= 2 * self.batch_size:
                break
            item = next(self._queries, None)
            if item is None:
                self._is_exhausted = True
                break
            self._num_taken += 1
            self._unanswered[item[0]] = item[1].images
            try:
                self.waiting.extend(self._turns_of(*item))
            except PaliGemmaError as error:
                self._errors.append((item[0], error))
        return bool(self._unanswered)

    def take_errors(self) -> Iterator[tuple[int, PaliGemmaError]]:
        """The errors of queries that cannot be tokenized, once."""
        while self._errors:
            yield self.answered(*self._errors.popleft())

    def answered(self, index: int, answer: Any) -> tuple[int, Any]:
        """The pair, objects with a reference to their image; the query needs nothing more."""
        images = self._unanswered.pop(index, ())
        if isinstance(answer, Detections | Segments) and len(images) == 1:
            answer = replace(answer, image_reference=ImageReference(images[0]))
        return index, answer

    def _turns_of(self, index: int, item: ImageQuery) -> Sequence[_Turn]:
        turn = _Turn(index=index, plan=_tokenized(self.pipeline, item), images=item.images)
        if item.query.separate and self._may_separate:
            return _Group.of(turn, self.pipeline).turns
        return [turn]


class _Group:
    """The answers of a second look, and what becomes of them once all are there."""

    def __init__(self, turn: _Turn, look: SecondLook, pipeline: AnswerPipeline) -> None:
        self._look = look
        self._answers: dict[int, Any] = {}
        self.turns = [
            replace(
                turn,
                plan=pipeline.tokenize(replace(turn.plan.query, task=task), len(turn.images)),
                group=self,
                part=part,
            )
            for part, task in enumerate(look.tasks)
        ]

    @classmethod
    def of(cls, turn: _Turn, pipeline: AnswerPipeline) -> _Group:
        """Each phrase of the query's task by itself. Raises OptionError for other tasks."""
        task = turn.plan.query.task
        if not isinstance(task, DetectTask | SegmentTask):
            raise OptionError("separate is for detect and segment. Leave it out for other tasks.")
        return cls(turn, separately(task), pipeline)

    def add(self, part: int, answer: Any) -> Any | None:
        """Returns the result of the whole group with its last answer, else None."""
        self._answers[part] = answer
        if len(self._answers) < len(self.turns):
            return None
        answers = [self._answers[part] for part in range(len(self.turns))]
        errors = [answer for answer in answers if isinstance(answer, PaliGemmaError)]
        if errors:
            return self._look.first or errors[0]
        return self._look.merge(answers)


def _run(
    turns: _Turns, model: PaliGemma, cache: ImageCache, start: Callable[[_Turn], Answer]
) -> Iterator[tuple[int, Any]]:
    """Keeps the engine full: when an answer ends, the next turn takes its row."""
    waiting = turns.waiting
    running: dict[int, tuple[_Turn, Answer]] = {}
    engine: Engine | None = None
    num_positions = max_rows = 0

    def end(turn: _Turn, result: Any) -> Iterator[tuple[int, Any]]:
        if turn.group is not None:
            result = turn.group.add(turn.part, result)
        elif (group := _doubts(turn, result, turns.pipeline)) is not None:
            waiting.extendleft(reversed(group.turns))
            return
        if result is not None:
            yield turns.answered(turn.index, result)

    while turns.fill():
        yield from turns.take_errors()
        if waiting and not running and waiting[0].plan.num_positions > num_positions:
            engine = None  # frees its memory first
            num_positions = max(turn.plan.num_positions for turn in waiting)
            max_rows = min(turns.batch_size, max(max_rows, len(waiting)))
            engine = _engine(model, cache, num_positions, max_rows)
        while waiting and len(running) < max_rows:
            if waiting[0].plan.num_positions > num_positions:
                break  # until the running ones end, and a larger engine takes over
            turn = waiting.popleft()
            try:
                answer = start(turn)
                assert engine is not None
                running[engine.add(answer.request)] = turn, answer
            except PaliGemmaError as error:
                yield from end(turn, error)
        for event in engine.step() if engine is not None and running else ():
            turn, answer = running[event.request_id]
            answer.push(event)
            if event.stop_reason is None:
                continue
            del running[event.request_id]
            yield from end(turn, _result_or_error(answer, event))


def _doubts(turn: _Turn, result: Any, pipeline: AnswerPipeline) -> _Group | None:
    """The second look that the query allows and the result calls for."""
    task = turn.plan.query.task
    if turn.plan.query.separate is not None or not isinstance(result, Detections | Segments):
        return None
    if result.is_as_asked:
        return None
    assert isinstance(task, DetectTask | SegmentTask)
    look = second_look(task, result)
    return None if look is None else _Group(turn, look, pipeline)


def _result_or_error(answer: Answer, last_event: Event) -> Any:
    try:
        return answer.finish(last_event)[1]
    except PaliGemmaError as error:
        return error


def stream_answer(
    pipeline: AnswerPipeline, model: PaliGemma, cache: ImageCache, query: ImageQuery
) -> Iterator[Update]:
    """The answer's updates. The images are read at once, before the first update is asked for."""
    plan = _tokenized(pipeline, query)
    images = _RecentImages(pipeline, 1)
    answer = pipeline.start(plan, [images.get(image) for image in query.images], stream=True)

    def updates() -> Iterator[Update]:
        for _, event in _engine(model, cache, plan.num_positions, 1).stream([answer.request]):
            if (update := answer.push(event)) is not None:
                yield update
            if event.stop_reason is not None:
                last, _ = answer.finish(event)
                if last is not None:
                    yield last

    return updates()


def _tokenized(pipeline: AnswerPipeline, item: ImageQuery) -> TokenizedQuery:
    check_control_words(item.query.text)
    return pipeline.tokenize(item.query, len(item.images))


def check_task(task: object) -> None:
    """Raises OptionError for what is no task, such as the class of one."""
    methods = (getattr(task, name, None) for name in ("prompt", "parse"))
    if isinstance(task, type) or not all(map(callable, methods)):
        shown = task.__name__ if isinstance(task, type) else repr(task)
        raise OptionError(
            f"The task is {shown}; expected a task such as CaptionTask(), DetectTask.of('cat ; "
            "dog') or AnswerTask(question='how many cats?')."
        )


def check_several(images: object, method: str) -> None:
    """Raises OptionError for one image, or what is none, where several are expected."""
    is_one = isinstance(images, str | bytes | bytearray | os.PathLike)
    is_array = getattr(images, "ndim", 4) < 4  # whose rows would be taken for images
    if is_one or is_array or not isinstance(images, Iterable):
        raise OptionError(
            f"{method} takes several images, but got {type(images).__name__}; pass a list or a "
            "generator of images, such as [image]."
        )


def check_control_words(text: str) -> None:
    """Raises PromptError for what is no text, and for what other tools want in a prompt.

    The model would read that letter by letter, and answer something else.
    """
    if not isinstance(text, str):
        raise PromptError(f"The prompt is {text!r}; expected text.")
    for word in CONTROL_WORDS:
        if word in text:
            raise PromptError(
                f"The prompt {text!r} contains {word!r}. Leave it out: image tokens and control "
                "tokens are added by themselves."
            )


def _engine(model: PaliGemma, cache: ImageCache, num_positions: int, max_rows: int) -> Engine:
    """An engine for this many rows; those that fit are prefilled together."""
    return Engine(
        model,
        num_positions=num_positions,
        max_rows=max_rows,
        max_queued=max_rows,
        max_prefill_positions=max_rows * num_positions,
        image_cache=cache,
    )


@torch.inference_mode()
def _search(answer: Answer, model: PaliGemma, cache: ImageCache, num_beams: int) -> Event:
    """Pushes the most likely sequence that beam search finds; returns the event that ends it."""
    request = answer.request
    [row] = beam_search(
        model,
        _single_row(request),
        beam_size=num_beams,
        max_new_tokens=request.max_new_tokens,
        eos_id=request.eos_id,
        image_tokens=cache.encode(request.images, model) if request.images else None,
        summarized_ids=request.summarized_ids,
    )
    event = Event(request_id=0, token_id=None, logprob=None, stop_reason=None, error=None)
    for token_id, logprob, summary in zip(row.token_ids, row.logprobs, row.summaries, strict=True):
        answer.push(replace(event, token_id=token_id, logprob=logprob, summary=summary))
    return replace(event, stop_reason=row.stop_reason)


def _single_row(request: Request) -> ModelInputs:
    return ModelInputs(
        token_ids=request.token_ids[None],
        input_mask=torch.ones_like(request.image_mask)[None],
        mask_ar=torch.zeros_like(request.image_mask)[None],
        image_mask=request.image_mask[None],
        pixel_values=None,
        image_index=(tuple(range(len(request.images))),),
    )


def check_beams(num_beams: int, *, sampler: Sampling, stop: Sequence[str]) -> None:
    """Raises OptionError for options that beam search does not take."""
    if num_beams != 1 and (sampler.temperature != 0 or stop):
        raise OptionError(
            f"num_beams is {num_beams}: beam search takes neither a temperature nor stop strings. "
            "Use num_beams=1 (--num-beams 1), or leave those out."
        )


def _stop_check(query: Query, tokenizer: Tokenizer) -> Callable[[list[int]], bool] | None:
    """The engine's own check for stop strings, in its thread; None where there are none."""
    if not query.stop:
        return None
    text = TextStream(tokenizer, tuple(query.stop))
    return lambda token_ids: text.push(token_ids[-1])


def _no_mask_codec() -> CheckpointError:
    return CheckpointError(
        "The model came without a mask codec, which turns <seg> tokens into masks. Fetch the "
        "released one, gs://big_vision/paligemma/vae-oid.npz, and put it into the model's folder "
        "or load with mask_codec='vae-oid.npz' (--mask-codec vae-oid.npz). Boxes alone need none: "
        "detect()."
    )


class _RecentImages:
    """Images of one call. One that several nearby queries name is read once."""

    def __init__(self, pipeline: AnswerPipeline, max_images: int) -> None:
        self._pipeline = pipeline
        self._max_images = max_images
        # With the source, so that no other object gets the same id() meanwhile.
        self._images: OrderedDict[object, tuple[object, PreparedImage]] = OrderedDict()

    def get(self, source: ImageInput | Callable[[], LoadedImage | PreparedImage]) -> PreparedImage:
        """Raises ImageError for an image that cannot be read."""
        key = source if isinstance(source, str | Path) else id(source)
        if key not in self._images:
            loaded: LoadedImage | PreparedImage
            if callable(source):
                loaded = source()
            elif isinstance(source, LoadedImage):
                loaded = source
            else:
                loaded = self._pipeline.processor.load(source)
            if not isinstance(loaded, PreparedImage):
                loaded = self._pipeline.prepare_image(loaded)
            self._images[key] = source, loaded
            if len(self._images) > self._max_images:
                self._images.popitem(last=False)
        return self._images[key][1]


def answer_length(
    task: Task[Any], text_length: int | None = None, grammar: Grammar | None = None
) -> int:
    """The default limit on new tokens.

    A list that is held to a grammar has room for `max_objects`, a text that is held to one for the
    longest that it allows, as a part of it would be worth nothing. No other answer is longer than
    the text length that the model was trained with, where that is known.

    >>> task = CaptionTask(style="describe")
    >>> answer_length(task), answer_length(task, text_length=128)
    (192, 128)
    """
    if isinstance(grammar, TextGrammar):
        return grammar.usual_length
    limit = ANSWER_LENGTHS[kind_of_task(task)] if grammar is None else grammar.usual_length
    return limit if text_length is None else min(limit, text_length)


def kind_of_task(task: Task[Any]) -> AnswerKind:
    """Which row of `ANSWER_LENGTHS` a task takes, if it says so itself."""
    kind: AnswerKind = getattr(task, "answer_kind", "prompt")
    return kind
