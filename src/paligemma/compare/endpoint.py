"""Contestants behind an OpenAI-compatible address: one image and one question per request.

The only module of `compare` that uses the network, and only for addresses that the user named.
Redirects are not followed, since they would take the key elsewhere. Each request has a deadline, an
answer a largest size, and retries are limited. Whatever comes back is text of a stranger: it is
cut, and errors never hold the key.
"""

from __future__ import annotations

import base64
import email.utils
import io
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from paligemma.compare.chat import chat_prompt
from paligemma.compare.contestants import Contestant
from paligemma.compare.options import CompareOptions
from paligemma.compare.questions import Questions
from paligemma.compare.reply import Reply, prediction_of_text
from paligemma.data.record import Record
from paligemma.errors import PaliGemmaError
from paligemma.escaping import visible
from paligemma.processor.fetch import DeadlineSocket

MAX_ANSWER_BYTES = 256 * 1024
MAX_ATTEMPTS = 4
MAX_WAIT_SECONDS = 60.0
NUM_FAILURES_TO_STOP = 3
_LEAST_FOR_CHAT = 256
"""Tokens, since chat models may think aloud first."""
_MAX_SHOWN = 200
_MAX_PIXELS_AS_PNG = 2**18
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_HOPELESS = (401, 403, 404)
"""Statuses that the next question will get too."""
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class EndpointError(PaliGemmaError):
    """An endpoint gave no answer to a question."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, will_recur: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which to try again; None where that is of no use."""
        self.will_recur = will_recur
        """Whether other questions will hardly fare better."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Response(HTTPResponse):
    """All of it must come within the connection's timeout, which by itself restarts at every byte,
    so that headers could drip for ever."""

    def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
        deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        super().__init__(DeadlineSocket(sock, deadline), *args, **named)  # type: ignore[arg-type]


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _Secure(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, req)


@dataclass
class Endpoint:
    """A contestant at an address."""

    contestant: Contestant
    questions: Questions
    options: CompareOptions
    sleep: Callable[[float], None] = time.sleep
    info: dict[str, Any] = field(default_factory=dict)
    load_seconds: float | None = None
    _key: str | None = field(init=False, repr=False)
    _failures_in_a_row: int = field(init=False, default=0)
    _last_failure: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._key = self.contestant.key
        host = urlsplit(self.contestant.url).hostname
        # The environment's proxies are for other machines.
        proxies: dict[str, str] | None = {} if host in _LOOPBACK else None
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies), _NoRedirects, _Plain, _Secure
        )

    def answer(self, records: Sequence[Record]) -> list[tuple[Reply | PaliGemmaError, float]]:
        """An answer or an error for each record, with the seconds of the last attempt."""
        return [self._answer(record) for record in records]

    def warm_up(self, record: Record) -> None:
        """Nothing: a question costs money."""

    @property
    def peak_gpu_bytes(self) -> int | None:
        """Not visible from here."""
        return None

    def _answer(self, record: Record) -> tuple[Reply | PaliGemmaError, float]:
        if self._failures_in_a_row >= NUM_FAILURES_TO_STOP:
            return EndpointError(
                f"Not asked, since {NUM_FAILURES_TO_STOP} questions before it failed: "
                f"{self._last_failure}"
            ), 0.0
        seconds = 0.0
        try:
            body, asked, size_wh = self._request_body(record)
        except PaliGemmaError as error:
            return error, 0.0
        for attempt in range(1, MAX_ATTEMPTS + 1):
            start = time.perf_counter()
            try:
                content = self._post(body)
                seconds = time.perf_counter() - start
                reply = self._read(content, record, asked, size_wh)
                self._failures_in_a_row = 0
            except EndpointError as error:
                seconds = time.perf_counter() - start
                wait = error.retry_after
                if wait is not None and wait <= MAX_WAIT_SECONDS and attempt < MAX_ATTEMPTS:
                    self.sleep(wait or float(2 ** (attempt - 1)))
                    continue
                self._count(error)
                return error, seconds
            return Reply(
                **{**vars(reply), "num_bytes_sent": len(body), "num_attempts": attempt}
            ), seconds
        raise AssertionError("the last attempt returns")

    def _count(self, error: EndpointError) -> None:
        self._failures_in_a_row = self._failures_in_a_row + 1 if error.will_recur else 0
        self._last_failure = str(error)

    def _request_body(self, record: Record) -> tuple[bytes, str, tuple[int, int]]:
        questions = self.questions
        is_chat = self.contestant.is_chat_model
        asked = chat_prompt(record, questions.task_of(record)) if is_chat else record.prefix
        images = record.load_images()
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(each.rgb, self.options.max_side)}}
            for each in images
        ]
        parts.append({"type": "text", "text": asked})
        request = {
            "model": self.contestant.model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": self._max_tokens(record),
            "temperature": 0,
        }
        return json.dumps(request).encode(), asked, images[0].size_wh

    def _max_tokens(self, record: Record) -> int:
        usual = self.questions.max_tokens(record)
        is_free = self.contestant.is_chat_model and self.options.max_new_tokens is None
        return max(usual, _LEAST_FOR_CHAT) if is_free else usual

    def _post(self, body: bytes) -> bytes:
        """The body of the answer to one request."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self.contestant.url}/chat/completions", data=body, headers=headers, method="POST"
        )
        deadline = time.monotonic() + self.options.timeout
        try:
            with self._opener.open(request, timeout=self.options.timeout) as response:
                return self._read_body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._error_of_status(error, deadline) from None
        except TimeoutError:
            raise self._too_late() from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._too_late() from None
            raise EndpointError(
                self._safe(f"No connection to {self.contestant.url}: {reason}."),
                retry_after=0.0,
                will_recur=True,
            ) from None

    def _too_late(self) -> EndpointError:
        return EndpointError(
            f"{self.contestant.url} gave no answer within {self.options.timeout:g} seconds.",
            will_recur=True,
        )

    def _read_body(self, response: Any, deadline: float) -> bytes:
        data = bytearray()
        while chunk := response.read1(65536):
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise EndpointError(
                    f"The answer is larger than {MAX_ANSWER_BYTES // 1024} KiB, and was not read."
                )
            if time.monotonic() > deadline:
                raise self._too_late()
        if getattr(response, "length", None):  # which is what has not come
            raise EndpointError("The answer was cut off on its way.", retry_after=0.0)
        return bytes(data)

    def _error_of_status(self, error: urllib.error.HTTPError, deadline: float) -> EndpointError:
        try:
            body = self._read_body(error, deadline)
        except (EndpointError, OSError, HTTPException):
            body = b""
        status = error.code
        said = _message_in(body)
        text = f"{self.contestant.url} answered with status {status}"
        if status in (401, 403) and self.contestant.key_variable is None:
            advice = " Name the environment variable with the key: NAME@URL#VARIABLE."
        elif 300 <= status < 400:
            advice = " Redirects are not followed; give the final address."
        else:
            advice = ""
        wait = None
        if status in _RETRIED:
            wait = _seconds_to_wait(error.headers.get("Retry-After"))
            if wait > MAX_WAIT_SECONDS:
                advice = f" It asks to wait {wait:.0f} seconds, which is too long."
        return EndpointError(
            self._safe(f"{text}{f': {said}' if said else '.'}{advice}"),
            retry_after=wait,
            will_recur=status in _HOPELESS or (status in _RETRIED and status != 409),
        )

    def _read(self, content: bytes, record: Record, asked: str, size_wh: tuple[int, int]) -> Reply:
        if not content.strip():
            raise EndpointError("The answer is empty.")
        try:
            reply = json.loads(content)
            choice = reply["choices"][0]
            text = _text_of(choice["message"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            start = content[:_MAX_SHOWN].decode("utf-8", errors="replace").strip()
            what = "not that of a chat completion"
            if start.startswith("<"):
                what = "a web page; check the address, which often ends with /v1"
            raise EndpointError(self._safe(f"The answer is {what}: {start!r}")) from None
        if text is None:
            why = choice.get("finish_reason") if isinstance(choice, dict) else None
            raise EndpointError(self._safe(f"The answer has no text (finish_reason {why!r})."))
        usage = reply.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        prediction = prediction_of_text(
            record,
            self.questions.task_of(record),
            size_wh,
            self._without_key(text),
            in_chat=self.contestant.is_chat_model,
            is_cut=choice.get("finish_reason") == "length",
            num_tokens=_count_or_none(usage.get("completion_tokens")),
        )
        return Reply(
            prediction=prediction,
            asked=asked,
            has_score=False,
            num_prompt_tokens=_count_or_none(usage.get("prompt_tokens")),
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _safe(self, text: str) -> str:
        return visible(self._without_key(text))


def _data_url(image: Image.Image, max_side: int) -> str:
    if max(image.size) > max_side:
        image = image.copy()
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    kind = "png" if image.width * image.height <= _MAX_PIXELS_AS_PNG else "jpeg"
    image.save(file, kind, **({"quality": 92} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _text_of(message: Any) -> str | None:
    """The text of a message; None where the model refused or wrote none."""
    content = message["content"]
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part["text"] for part in content if part.get("type") == "text"]
        return "".join(texts) if texts else None
    if content is None:
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else None
    raise TypeError


def _message_in(body: bytes) -> str:
    """What an error says, in OpenAI's form or as text."""
    text = body[: 4 * _MAX_SHOWN].decode("utf-8", errors="replace").strip()
    try:
        content = json.loads(body)
        said = content["error"]["message"] if isinstance(content["error"], dict) else None
        text = said if isinstance(said, str) else text
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _seconds_to_wait(header: str | None) -> float:
    """What a Retry-After header says, in seconds or as a date; 0 without one: as long as usual."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(header)
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _count_or_none(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None
