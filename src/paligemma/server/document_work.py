"""Work on documents: a thread per document reads pages and asks, the service answers.

    route -> DocumentRunner.run -> thread: Document (its file is in a process of its own)
                                       work(document, ServiceAsker) -> jobs -> tickets -> results

What is asked about a document may be thousands of questions. A few at a time are in the service, as
jobs that can wait, so that other clients keep their turns.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from paligemma.answering import ImageQuery, Query, Usage
from paligemma.errors import (
    BusyError,
    CancelledError,
    InputError,
    NumericalError,
    OptionError,
    PaliGemmaError,
    TimeLimitError,
)
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from paligemma.sandbox.process import ReaderProcess
from paligemma.server.document_reader import DocumentFile, ReaderPool
from paligemma.server.jobs import Job, JobOptions
from paligemma.server.service import Service
from paligemma.server.settings import Limits
from paligemma.server.video_reader import MODULE, VIDEOS, RemoteClip, VideoFile

ResultT = TypeVar("ResultT")

AT_ONCE = 8
"""Questions of a document in the service: enough for a batch."""

_BUSY_SECONDS = 0.1


class ServiceAsker:
    """An `Asker` for one request, whose questions become jobs. Called in one thread."""

    def __init__(
        self,
        service: Service,
        *,
        client: str,
        adapter: str | None,
        on_event: Callable[[object], None] = lambda event: None,
    ) -> None:
        """`on_event` gets, in the event loop, the number of answers so far after each, and what
        the work tells."""
        self.usages: list[Usage] = []
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._client = f"{client} documents"  # whose other requests have their own turns
        self._adapter = adapter
        self._on_event = on_event
        self._deadline = service.now() + service.limits.document_seconds
        self._num_questions = 0
        self._lock = threading.Lock()
        self._open: set[Future[Any]] = set()
        self._process: ReaderProcess | None = None
        self.stopped_by: PaliGemmaError | None = None

    @property
    def limits(self) -> Limits:
        """Those of the server."""
        return self._service.limits

    @property
    def processor(self) -> Processor:
        """The processor of the model."""
        predictor = self._service.predictor
        assert predictor is not None  # the request was admitted
        return predictor.processor

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        """The result or the error of each query, in order.

        Raises OptionError for more questions than the limit, and what ends the request as a whole:
        TimeLimitError, CancelledError, UnavailableError.
        """
        waiting: deque[Future[Any] | PaliGemmaError] = deque()
        try:
            for query in queries:
                if len(waiting) >= AT_ONCE:
                    yield self._result(waiting.popleft())
                waiting.append(self._ask(query))
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            for answer in waiting:
                if isinstance(answer, Future):
                    answer.cancel()

    def tell(self, event: object) -> None:
        """Pass on a part of the result. Called in the thread of the work."""
        self._loop.call_soon_threadsafe(self._on_event, event)

    def stop(self, error: PaliGemmaError) -> None:
        """Make the thread end soon, with this error. Called in the event loop."""
        with self._lock:
            self.stopped_by = self.stopped_by or error
            answers, process = list(self._open), self._process
        for answer in answers:
            answer.cancel()
        if process is not None:
            process.cancel()

    def use(self, process: ReaderProcess) -> None:
        """End this process too when the work is stopped."""
        with self._lock:
            self._process = process
            is_stopped = self.stopped_by is not None
        if is_stopped:
            process.cancel()

    def check(self) -> None:
        """Raises the error that stopped the work."""
        if self.stopped_by is not None:
            raise self.stopped_by

    def _ask(self, query: ImageQuery) -> Future[Any] | PaliGemmaError:
        self.check()
        self._num_questions += 1
        most = self._service.limits.max_document_questions
        if self._num_questions > most:
            raise OptionError(
                f"The document needs more than {most} questions, which is the limit. Choose fewer "
                "pages or fewer fields."
            )
        try:
            images = tuple(image() if callable(image) else image for image in query.images)
        except InputError as error:
            self.check()
            return error
        assert all(isinstance(image, LoadedImage) for image in images)
        job = self._job(query.query, images)  # type: ignore[arg-type]
        with self._lock:
            answer = asyncio.run_coroutine_threadsafe(self._answer(job), self._loop)
            self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        self.check()
        return answer

    def _job(self, query: Query, images: tuple[LoadedImage, ...]) -> Job:
        limits, sampler = self._service.limits, query.sampler
        length = query.max_new_tokens
        return Job(
            task=query.task,
            prompt=query.prompt,
            images=images,
            options=JobOptions(
                max_new_tokens=None if length is None else min(length, limits.max_tokens),
                temperature=sampler.temperature,
                top_k=sampler.top_k,
                top_p=sampler.top_p,
                seed=sampler.seed,
                sample_index=query.sample_index,
                stop=tuple(query.stop),
                logprobs=min(query.num_top_logprobs, limits.max_logprobs),
                constrained=query.constrained,
                adapter=self._adapter,
            ),
            client=self._client,
            deadline=self._deadline,
            notes=query.notes,
        )

    async def _answer(self, job: Job) -> Any:
        """The result, or the error if it is of this question alone."""
        while True:
            try:
                [ticket] = self._service.submit_all([job], is_patient=True)
                break
            except BusyError:
                await asyncio.sleep(_BUSY_SECONDS)
            except InputError as error:
                return error
        try:
            return await ticket.wait()
        except (InputError, NumericalError) as error:
            return error
        finally:
            self.usages.append(ticket.usage)
            self._on_event(len(self.usages))

    def _result(self, answer: Future[Any] | PaliGemmaError) -> Any:
        if isinstance(answer, PaliGemmaError):
            return answer
        try:
            return answer.result()
        except FutureCancelledError:
            self.check()
            raise CancelledError("The request was cancelled.") from None


class DocumentRunner:
    """Runs the work on documents of one application, so many at a time."""

    def __init__(self, service: Service) -> None:
        limits = service.limits
        self._service = service
        self._pool = ReaderPool(limits)
        self._by_client: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(
            limits.max_documents, thread_name_prefix="paligemma-document"
        )

    async def run(
        self,
        file: DocumentFile | VideoFile,
        work: Callable[[Any, ServiceAsker], ResultT],
        asker: ServiceAsker,
        client: str,
    ) -> ResultT:
        """The result of the work, which is done in a thread.

        The work gets a `Document` or a `RemoteClip`. Raises BusyError when too many files are read,
        DocumentError and VideoError for one that cannot be read, TimeLimitError after
        `document_seconds`, and what the work raises.
        """
        loop = asyncio.get_running_loop()
        seconds = self._service.limits.document_seconds
        with self._room(client), self._service.held():
            timer = loop.call_later(
                seconds, asker.stop, TimeLimitError("The request timed out.", was_running=True)
            )
            thread = loop.run_in_executor(self._threads, self._work, file, work, asker)
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:
                asker.stop(CancelledError("The request was cancelled."))
                await asyncio.wait({thread})
                thread.exception()  # which nobody waits for
                raise
            finally:
                timer.cancel()

    def close(self) -> None:
        """End the threads, and the process that waits for the next document."""
        self._threads.shutdown(wait=False)
        self._pool.close()

    def _work(
        self,
        file: DocumentFile | VideoFile,
        work: Callable[[Any, ServiceAsker], ResultT],
        asker: ServiceAsker,
    ) -> ResultT:
        is_video = isinstance(file, VideoFile)
        process = self._pool.take(MODULE, VIDEOS) if is_video else self._pool.take()
        asker.use(process)
        try:
            if isinstance(file, VideoFile):
                side = asker.processor.resolution
                result = work(RemoteClip(process, file, self._service.limits, side), asker)
            else:
                with self._pool.open(process, file) as document:
                    result = work(document, asker)
        except Exception:
            asker.check()
            raise
        finally:
            process.close()
            if not is_video:
                self._pool.keep_ready()
        if process.failure is not None:  # whatever the work made of it
            raise process.failure
        asker.check()
        return result

    @contextmanager
    def _room(self, client: str) -> Iterator[None]:
        limits = self._service.limits
        is_full = self._by_client.total() >= limits.max_documents
        if is_full or self._by_client[client] >= limits.documents_per_client:
            raise BusyError("Too many files are being read. Try again later.")
        self._by_client[client] += 1
        try:
            yield
        finally:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]
