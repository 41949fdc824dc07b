"""Models behind an address, whatever comes back from it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.compare.contestants import read_contestant
from paligemma.compare.endpoint import MAX_ATTEMPTS, Endpoint, EndpointError
from paligemma.compare.options import CompareOptions
from paligemma.compare.questions import read_questions
from paligemma.compare.reply import Reply
from paligemma.errors import PaliGemmaError

KEY = "sk-canary-31f0"


def chat(content: Any, **more: Any) -> bytes:
    """A chat completion."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 300, "completion_tokens": 2}
    return json.dumps({"choices": [{**choice, **more}], "usage": usage}).encode()


@dataclass
class Script:
    """What a server answers, one after the other: (status, headers, body)."""

    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def script() -> Iterator[Script]:
    """A server on this machine that answers by a script, and remembers what it was asked."""
    played = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            played.requests.append((self.path, dict(self.headers), json.loads(body)))
            status, headers, content = (
                played.answers.pop(0) if played.answers else (200, {}, chat("2"))
            )
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(content)
            except OSError:
                return

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    played.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield played
    server.shutdown()
    thread.join()
    server.server_close()


Ask = Callable[..., list[Reply | PaliGemmaError]]


@pytest.fixture
def ask(script: Script, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks the server about scenes; returns replies and errors."""
    monkeypatch.setenv("CANARY_KEY", KEY)
    waits: list[float] = []

    def call(number: int = 1, kind: str = "openai", **options: Any) -> list[Reply | PaliGemmaError]:
        asked = {"ask": ("how many objects are there?",), **options}
        chosen = CompareOptions(**asked)
        names = [str(path) for path in sorted(scenes.glob("*.png"))[:number]]
        questions = read_questions(names, chosen)
        contestant = read_contestant(f"{kind}:gpt@{script.url}#CANARY_KEY")
        endpoint = Endpoint(contestant, questions, chosen, sleep=waits.append)
        return [answer for answer, _ in endpoint.answer(list(questions.data.records))]

    call.waits = waits  # type: ignore[attr-defined]
    return call


def test_a_question_goes_out_with_the_image_and_the_key(ask: Ask, script: Script) -> None:
    [reply] = ask(max_side=64)
    assert isinstance(reply, Reply)
    assert reply.prediction.text == "2"
    assert (reply.num_prompt_tokens, reply.prediction.num_tokens) == (300, 2)
    [(path, headers, body)] = script.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    picture, text = body["messages"][0]["content"]
    assert text["text"] == "how many objects are there? Answer with one word or number."
    data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (64, 64)


def test_a_paligemma_gets_its_own_prompt_and_its_boxes_are_read(ask: Ask, script: Script) -> None:
    text = "<loc0256><loc0000><loc0767><loc1023> frog"
    script.answers = [(200, {}, chat(text))]
    [reply] = ask(kind="paligemma", ask=(), detect="frog")
    assert script.requests[0][2]["messages"][0]["content"][1]["text"] == "detect frog"
    assert isinstance(reply, Reply)
    assert [found.label for found in reply.prediction.objects] == ["frog"]


def test_boxes_of_a_chat_model_are_read_from_json(ask: Ask, script: Script) -> None:
    listed = '```json\n[{"label": "frog", "box": [0, 500, 250, 1000]}, {"label": 3}]\n```'
    script.answers = [(200, {}, chat(listed))]
    [reply] = ask(ask=(), detect="frog")
    assert isinstance(reply, Reply)
    [found] = reply.prediction.objects
    width, height = reply.prediction.size_wh
    assert found.box_xyxy == (0, height / 2, width / 4, height)
    assert "not a box with a label" in reply.prediction.problems[0]


def test_too_many_requests_are_waited_out_as_long_as_the_server_says(
    ask: Ask, script: Script
) -> None:
    script.answers = [(429, {"Retry-After": "7"}, b"slow down"), (503, {}, b"")]
    [reply] = ask()
    assert isinstance(reply, Reply)
    assert reply.num_attempts == 3
    assert ask.waits == [7.0, 2.0]  # type: ignore[attr-defined]


def test_retries_end(ask: Ask, script: Script) -> None:
    script.answers = [(429, {}, b'{"error": {"message": "quota"}}')] * 99
    [error] = ask()
    assert isinstance(error, EndpointError)
    assert "status 429: quota" in str(error)
    assert len(script.requests) == MAX_ATTEMPTS


@pytest.mark.parametrize("header", ["3600", "inf", "Wed, 01 Jan 2098 00:00:00 GMT"])
def test_nobody_waits_for_an_hour(ask: Ask, script: Script, header: str) -> None:
    script.answers = [(429, {"Retry-After": header}, b"")]
    [error] = ask()
    assert "too long" in str(error)
    assert ask.waits == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("header", ["soon", "nan", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"])
def test_a_time_to_wait_that_is_none_is_waited_as_without_it(
    ask: Ask, script: Script, header: str
) -> None:
    script.answers = [(429, {"Retry-After": header}, b"")]
    [reply] = ask()
    assert isinstance(reply, Reply)
    assert ask.waits == [1.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            (200, {"Content-Type": "text/html"}, b"<html><b>Welcome</b></html>"),
            "a web page; check the address",
        ),
        ((200, {}, b""), "is empty"),
        ((200, {}, chat("x" * 2**20)), "larger than 256 KiB"),
        ((200, {}, b"[" * 100_000), "not that of a chat"),
        ((200, {}, b'{"choices": []}'), "not that of a chat"),
        ((200, {}, chat(["text", None])), "not that of a chat"),
        ((200, {}, chat(None, finish_reason="content_filter")), "no text .*content_filter"),
        ((400, {}, b'{"error": {"message": "the image is too large"}}'), "the image is too large"),
        ((400, {}, b"\x1b[2J\xff"), r"status 400: \\x1b"),
        ((301, {"Location": "http://elsewhere.invalid/"}, b""), "Redirects are not followed"),
        ((200, {"Content-Length": "5000"}, b"{}"), "cut off"),
        ((401, {}, b"Incorrect API key provided: " + KEY.encode()), r"provided: \[key\]"),
    ],
)
def test_whatever_comes_back_is_one_row_with_a_reason_and_the_next_is_asked(
    ask: Ask, script: Script, answer: tuple[int, dict[str, str], bytes], said: str
) -> None:
    script.answers = [answer] * (MAX_ATTEMPTS if said == "cut off" else 1)
    failed, reply = ask(2)
    assert isinstance(failed, EndpointError)
    with pytest.raises(EndpointError, match=said):
        raise failed
    assert KEY not in str(failed)
    assert len(str(failed)) < 600
    assert isinstance(reply, Reply)


def test_a_long_answer_is_cut(ask: Ask, script: Script) -> None:
    script.answers = [(200, {}, chat("word " * 10_000))]
    [reply] = ask()
    assert isinstance(reply, Reply)
    assert len(reply.prediction.text) == 20_001


def test_an_answer_that_repeats_the_key_does_not_keep_it(ask: Ask, script: Script) -> None:
    script.answers = [(200, {}, chat(f"the key is {KEY}"))]
    [reply] = ask()
    assert KEY not in json.dumps(reply.to_dict())  # type: ignore[union-attr]


def test_after_three_hopeless_answers_in_a_row_no_more_is_asked(ask: Ask, script: Script) -> None:
    script.answers = [(401, {}, b"no")] * 9
    answers = ask(4)
    assert len(script.requests) == 3
    assert str(answers[3]).startswith("Not asked, since 3 questions before it failed")


def test_a_server_that_is_down_is_tried_again_and_then_given_up(
    script: Script, scenes: Path
) -> None:
    options = CompareOptions(caption=True)
    questions = read_questions([str(scenes / "0.png")], options)
    contestant = read_contestant("openai:gpt@http://127.0.0.1:9/v1")
    waits: list[float] = []
    endpoint = Endpoint(contestant, questions, options, sleep=waits.append)
    [(error, _)] = endpoint.answer(list(questions.data.records))
    assert "No connection" in str(error)
    assert waits == [1.0, 2.0, 4.0]


def wait_forever(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(2)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(30):
        time.sleep(0.1)
        handler.wfile.write(b"x")


def drip_a_chunk(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    for _ in range(30):
        time.sleep(0.1)
        handler.wfile.write(b"x")


def continue_forever(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(300):
        time.sleep(0.01)
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


@pytest.mark.parametrize("behave", [wait_forever, drip_headers, drip_a_chunk, continue_forever])
def test_a_silent_or_dripping_server_is_given_up_after_the_time_limit(
    scenes: Path, behave: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with suppress(OSError):
                behave(self)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    options = CompareOptions(caption=True, timeout=1)
    questions = read_questions([str(scenes / "0.png")], options)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    endpoint = Endpoint(read_contestant(f"openai:gpt@{url}"), questions, options)
    start = time.perf_counter()
    [(error, _)] = endpoint.answer(list(questions.data.records))
    assert "within 1 seconds" in str(error)
    assert time.perf_counter() - start < 2
    server.shutdown()
    thread.join()
    server.server_close()
