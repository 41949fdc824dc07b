"""The tasks' routes in this process: answers equal to Python's, and what each refuses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from starlette.types import ASGIApp

from paligemma.predictor import Predictor
from paligemma.server import images
from paligemma.server.app import create_app
from paligemma.server.service import Service
from paligemma.server.settings import Limits, Settings
from tests.server.asgi import Answer, call

JSON = {"content-type": "application/json"}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def post(app: ASGIApp, path: str, document: object, **options: Any) -> Answer:
    return asyncio.run(call(app, "POST", path, json.dumps(document).encode(), JSON, **options))


def form(picture: bytes, **fields: Any) -> tuple[bytes, dict[str, str]]:
    parts = [
        b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + picture,
        b'Content-Disposition: form-data; name="request"\r\n\r\n' + json.dumps(fields).encode(),
    ]
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return body, {"content-type": "multipart/form-data; boundary=b"}


def png(size: tuple[int, int], color: Any = (200, 30, 30), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


def plain(result: Any) -> Any:
    """What a result looks like after a way through JSON."""
    return json.loads(json.dumps(result.to_dict()))


# Routes


def test_images_are_fetched_for_the_page_only_where_allowed(
    mini_service: Service, monkeypatch: pytest.MonkeyPatch, scene: bytes
) -> None:
    files = {"https://example.com/a": scene, "https://example.com/b": b"<html>"}
    monkeypatch.setattr(images, "fetch_image_bytes", lambda url, **_: files[url])
    app = create_app(mini_service, Settings(image_domains=("example.com",)))
    taken = post(app, "/v1/image", {"url": "https://example.com/a"})
    assert (taken.status, taken.headers["content-type"], taken.body) == (200, "image/png", scene)
    other = post(app, "/v1/image", {"url": "https://example.com/b"})
    assert (other.status, other.error["code"]) == (400, "invalid_image")
    assert b"html" not in other.body.split(b"SVG or HTML")[0]
    for url in ("https://example.org/a", "http://example.com/a"):
        assert post(app, "/v1/image", {"url": url}).status == 400
    assert (
        post(create_app(mini_service), "/v1/image", {"url": "https://example.com/a"}).status == 400
    )


# Answers


ASKED: list[tuple[str, dict[str, Any], Callable[[Predictor, bytes], Any]]] = [
    ("caption", {"lang": "en"}, lambda p, i: p.caption(i, "en")),
    ("caption", {"lang": "de", "max_tokens": 3}, lambda p, i: p.caption(i, "de", max_new_tokens=3)),
    ("ask", {"question": "is it red?"}, lambda p, i: p.ask(i, "is it red?")),
    ("ask", {"question": "frogs?", "lang": "en"}, lambda p, i: p.ask(i, "frogs?", "en")),
    ("ocr", {"max_tokens": 8}, lambda p, i: p.ocr(i, max_new_tokens=8)),
    ("detect", {"phrases": "frog ; mushroom"}, lambda p, i: p.detect(i, "frog ; mushroom")),
    ("detect", {"phrases": ["frog"], "labels": "any", "max_objects": 1},
     lambda p, i: p.detect(i, ["frog"], labels="any", max_objects=1)),
    ("segment", {"phrases": ["frog"]}, lambda p, i: p.segment(i, ["frog"])),
    ("generate", {"prompt": "caption en", "stop": "frog"},
     lambda p, i: p.generate(i, "caption en", stop=["frog"])),
    ("generate", {"prompt": "caption en", "temperature": 1.5, "seed": 7, "max_tokens": 9},
     lambda p, i: p.generate(i, "caption en", temperature=1.5, seed=7, max_new_tokens=9)),
    ("score", {"prompt": "answer en a frog?", "suffix": "yes"},
     lambda p, i: p.score(i, "answer en a frog?", "yes")),
]  # fmt: skip


def close(left: Any, right: Any) -> bool:
    """Equal, floats within what batching changes in float32."""
    if isinstance(left, float) or isinstance(right, float):
        return bool(left == pytest.approx(right, abs=1e-4))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right))
    return bool(left == right)


@pytest.mark.parametrize(("task", "fields", "ask"), ASKED)
def test_answers_over_http_are_those_of_python(
    task: str,
    fields: dict[str, Any],
    ask: Callable[[Predictor, bytes], Any],
    mini_app: ASGIApp,
    mini: Predictor,
    scene: bytes,
) -> None:
    answer = post(mini_app, f"/v1/{task}", {"image": encoded(scene), **fields})
    assert answer.status == 200, answer.body
    document = answer.json()
    assert list(document) == ["id", "model", "result", "usage"]
    assert document["model"] == "mini"
    assert close(document["result"], plain(ask(mini, scene)))
    assert document["usage"]["image_tokens"] == mini.processor.num_image_tokens


def test_forms_data_urls_and_base64_bring_the_same_image(mini_app: ASGIApp, scene: bytes) -> None:
    answers = [
        post(mini_app, "/v1/caption", {"image": encoded(scene)}),
        post(mini_app, "/v1/caption", {"image": f"data:image/png;base64,{encoded(scene)}"}),
        asyncio.run(call(mini_app, "POST", "/v1/caption", *form(scene))),
    ]
    texts = {answer.json()["result"]["text"] for answer in answers}
    assert len(texts) == 1


def test_several_questions_about_one_image_are_one_call(
    mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    questions = ["is there a frog?", "what color is it?", "how many?"]
    answer = post(mini_app, "/v1/ask", {"image": encoded(scene), "questions": questions})
    found = answer.json()["results"]
    assert [one["question"] for one in found] == questions
    assert [one["text"] for one in found] == [a.text for a in mini.ask(scene, questions)]


def test_a_prompt_without_an_image_is_continued(mini_app: ASGIApp, mini: Predictor) -> None:
    answer = post(mini_app, "/v1/generate", {"prompt": "caption en", "max_tokens": 4})
    expected = mini.generate((), "caption en", max_new_tokens=4)
    assert answer.json()["result"]["token_ids"] == list(expected.token_ids)
    assert answer.json()["usage"]["image_tokens"] == 0


def test_a_text_with_location_tokens_has_its_boxes(
    mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    document = {"image": encoded(scene), "prompt": "detect frog", "stream": False}
    result = post(mini_app, "/v1/generate", document).json()["result"]
    generated = mini.generate(scene, "detect frog")
    assert generated.objects
    assert [o["label"] for o in result["objects"]] == ["frog"] * len(generated.objects)
    for there, here in zip(result["objects"], generated.objects, strict=True):
        assert there["box_xyxy"] == pytest.approx(here.box_xyxy)
        assert there["score"] == pytest.approx(here.score, abs=1e-4)
        assert 0 < there["score"] <= 1
    streamed = post(mini_app, "/v1/generate", {**document, "stream": True}).events
    assert close(streamed[-2][1]["result"]["objects"], result["objects"])
    plain_text = post(mini_app, "/v1/generate", {**document, "prompt": "caption en"}).json()
    assert "objects" not in plain_text["result"]


def test_objects_below_the_least_score_are_left_out(
    mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    found = mini.detect(scene, "frog ; mushroom")
    least = sorted(found.scores)[1]
    for stream in (False, True):
        answer = post(
            mini_app,
            "/v1/detect",
            {
                "image": encoded(scene),
                "phrases": "frog ; mushroom",
                "min_score": float(least) - 1e-4,
                "stream": stream,
            },
        )
        if stream:
            told = [data for name, data in answer.events if name == "object"]
        else:
            told = answer.json()["result"]["objects"]
        assert len(told) == len(found) - 1


# Streams


@pytest.mark.parametrize(
    ("task", "fields"),
    [(task, fields) for task, fields, _ in ASKED if task != "score"],
)
def test_d12_a_stream_joins_to_the_whole_answer(
    task: str, fields: dict[str, Any], mini_app: ASGIApp, scene: bytes
) -> None:
    document = {"image": encoded(scene), **fields}
    whole = post(mini_app, f"/v1/{task}", document).json()
    answer = post(mini_app, f"/v1/{task}", {**document, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    *events, result, done = answer.events
    assert (result[0], done) == ("result", ("done", None))
    assert close(result[1]["result"], whole["result"])
    assert result[1]["usage"] == whole["usage"]
    text = "".join(data["text"] for name, data in events if name == "token")
    assert text.strip() == whole["result"]["text"].strip()
    objects = [data for name, data in events if name == "object"]
    assert close(objects, whole["result"].get("objects", []))
    assert {name for name, _ in events} <= {"token", "object"}


def test_d12_several_questions_in_one_stream_say_whose_each_piece_is(
    mini_app: ASGIApp, scene: bytes
) -> None:
    questions = ["is there a frog?", "what color is it?"]
    document = {"image": encoded(scene), "questions": questions, "stream": True}
    *events, (name, result), _ = post(mini_app, "/v1/ask", document).events
    assert name == "result"
    for index, whole in enumerate(result["results"]):
        pieces = [data["text"] for _, data in events if data["index"] == index]
        assert "".join(pieces).strip() == whole["text"]


def test_d12_what_fails_before_the_first_token_has_a_status_of_its_own(mini_app: ASGIApp) -> None:
    document = {"image": encoded(b"no picture"), "stream": True}
    answer = post(mini_app, "/v1/caption", document)
    assert answer.status == 400
    assert answer.error["code"] == "invalid_image"


# A: pictures


@pytest.mark.parametrize(
    "data",
    [b"x", b"no picture at all", b"<html><body>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"],
)
@pytest.mark.parametrize("as_form", [False, True])
def test_a1_what_is_no_image_is_refused_in_fixed_words(
    data: bytes, as_form: bool, mini_app: ASGIApp
) -> None:
    if as_form:
        answer = asyncio.run(call(mini_app, "POST", "/v1/caption", *form(data)))
    else:
        answer = post(mini_app, "/v1/caption", {"image": encoded(data)})
    assert answer.status == 400
    assert answer.error["code"] == "invalid_image"
    assert answer.error["param"] == "image"
    for secret in ("0x", "/", "BytesIO", "object at"):
        assert secret not in answer.error["message"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a2_cut_and_flipped_images_are_refused_or_answered(
    kind: str, mini_app: ASGIApp, scene: bytes
) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    file = io.BytesIO()
    Image.open(io.BytesIO(scene)).resize((40, 40)).save(file, kind)
    whole = file.getvalue()
    cuts = [whole[: len(whole) // 100 + 1], whole[: len(whole) // 2], whole[:-1]]
    dice = random.Random(kind)
    flips = []
    for _ in range(12):
        at = dice.randrange(len(whole))
        flips.append(whole[:at] + bytes([whole[at] ^ (1 << dice.randrange(8))]) + whole[at + 1 :])
    statuses = [
        post(mini_app, "/v1/caption", {"image": encoded(data), "max_tokens": 1}).status
        for data in (*cuts, *flips)
    ]
    assert set(statuses) <= {200, 400}
    assert statuses[:2] == [400, 400]


def bomb(side: int) -> bytes:
    """A PNG of side x side gray pixels that takes little room in its file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [20_000, 13_000, 8000])
def test_a3_pixel_bombs_are_refused_before_they_are_decoded(side: int, mini_app: ASGIApp) -> None:
    data = bomb(side)
    assert len(data) < 500_000
    started = time.monotonic()
    answer = post(mini_app, "/v1/caption", {"image": encoded(data)})
    assert answer.status == 400
    assert "pixels" in answer.error["message"]
    assert time.monotonic() - started < 1  # 0.02 s by itself; decoding takes longer than this


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS\0\1" + bytes(20),
        b"SIMPLE  =                    T",
        b"%PDF-1.7\n",
        b"II*\0" + bytes(20),
        b"MM\0*" + bytes(20),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\1\0\1\0" + bytes(20),
        b"\0\0\0\x1cftypavif" + bytes(20),
    ],
)
def test_a4_other_formats_are_refused_whatever_they_are_called(
    data: bytes, mini_app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a parser was chosen freely"))
    for answer in (
        post(mini_app, "/v1/caption", {"image": f"data:image/png;base64,{encoded(data)}"}),
        asyncio.run(call(mini_app, "POST", "/v1/caption", *form(data))),
    ):
        assert answer.status == 400
        assert answer.error["code"] == "invalid_image"


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 7)])
def test_a5_tiny_and_thin_images_are_answered(size: tuple[int, int], mini_app: ASGIApp) -> None:
    answer = post(
        mini_app, "/v1/detect", {"image": encoded(png(size)), "phrases": "frog", "max_tokens": 12}
    )
    assert answer.status == 200
    assert answer.json()["result"]["size_wh"] == list(size)


def test_a5_images_beyond_the_longest_side_or_without_one_are_refused(mini_app: ASGIApp) -> None:
    none = bytearray(png((1, 1)))
    none[16:20] = bytes(4)
    none[29:33] = struct.pack(">I", zlib.crc32(bytes(none[12:29])))
    for data in (png((1, 20_001)), bytes(none)):
        assert post(mini_app, "/v1/caption", {"image": encoded(data)}).status == 400


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_a6_each_kind_of_image_is_taken_as_python_takes_it(
    mode: str, mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    picture = Image.open(io.BytesIO(scene)).convert("RGB").resize((32, 32))
    file = io.BytesIO()
    if mode == "I;16":
        gray = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        Image.fromarray(gray).save(file, "PNG")
    elif mode in ("CMYK", "YCbCr"):
        picture.convert(mode).save(file, "JPEG")
    elif mode in ("LA", "RGBA"):
        picture.convert(mode).putalpha(120)
        picture.convert(mode).save(file, "PNG")
    else:
        picture.convert(mode).save(file, "PNG")
    answer = post(mini_app, "/v1/caption", {"image": encoded(file.getvalue()), "max_tokens": 6})
    expected = mini.caption(file.getvalue(), max_new_tokens=6)
    assert answer.json()["result"]["token_ids"] == list(expected.token_ids)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a7_orientation_is_applied_once(
    orientation: int, mini_app: ASGIApp, mini: Predictor
) -> None:
    picture = Image.new("RGB", (40, 20), (10, 200, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    document = {"image": encoded(file.getvalue()), "phrases": "frog", "max_tokens": 12}
    result = post(mini_app, "/v1/detect", document).json()["result"]
    assert result["size_wh"] == ([40, 20] if orientation <= 4 else [20, 40])


def test_a10_equal_pixels_in_another_shape_are_another_image(
    mini_app: ASGIApp, mini: Predictor
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 6 * 4 * 3, np.uint8)
    files = []
    for shape in ((4, 6, 3), (6, 4, 3)):
        file = io.BytesIO()
        Image.fromarray(pixels.reshape(shape)).save(file, "BMP")
        files.append(file.getvalue())
    for data in (*files, *files):
        answer = post(mini_app, "/v1/caption", {"image": encoded(data), "max_tokens": 8})
        expected = mini.caption(data, max_new_tokens=8)
        assert answer.json()["result"]["token_ids"] == list(expected.token_ids)


def test_a12_no_image_and_two_images_are_refused(mini_app: ASGIApp, scene: bytes) -> None:
    for task, fields in (("caption", {}), ("detect", {"phrases": "a"}), ("ocr", {})):
        answer = post(mini_app, f"/v1/{task}", fields)
        assert (answer.status, answer.error["code"]) == (400, "missing_image")
    both = asyncio.run(call(mini_app, "POST", "/v1/caption", *form(scene, image=encoded(scene))))
    assert (both.status, both.error["code"]) == (400, "invalid_image")
    several = post(mini_app, "/v1/caption", {"image": [encoded(scene), encoded(scene)]})
    assert (several.status, several.error["code"]) == (400, "invalid_field")


# B: addresses


@pytest.mark.parametrize("url", ["https://example.com/a.png", "http://127.0.0.1:1/", "file:///x"])
def test_b1_addresses_are_refused_by_default_and_no_socket_is_opened(
    url: str, mini_app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    answer = post(mini_app, "/v1/caption", {"image": {"url": url}})
    assert (answer.status, answer.error["code"]) == (400, "invalid_image")
    assert post(mini_app, "/v1/caption", {"image": url}).status == 400


def test_b7_files_get_the_same_words_whether_they_exist_or_not(mini_service: Service) -> None:
    app = create_app(mini_service, Settings(image_domains=("example.com",)))
    words = set()
    for path in ("/etc/passwd", "/etc/none", "/dev/zero", "../a", "%2e%2e/a", "a\0b"):
        for url in (f"file://{path}", f"FILE://{path}", path):
            answer = post(app, "/v1/caption", {"image": {"url": url}})
            assert answer.status == 400
            words.add(answer.error["message"])
    assert len(words) == 1


def test_an_image_is_fetched_from_a_domain_that_was_allowed(
    mini_service: Service, scene: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paligemma.server import images

    monkeypatch.setattr(images, "fetch_image_bytes", lambda url, **_: scene)
    app = create_app(mini_service, Settings(image_domains=("example.com",)))
    fetched = post(app, "/v1/caption", {"image": {"url": "https://example.com/a.png?sig=1"}})
    given = post(app, "/v1/caption", {"image": encoded(scene)})
    assert fetched.json()["result"] == given.json()["result"]


# C: validation


def refused(app: ASGIApp, task: str, document: object) -> dict[str, Any]:
    answer = post(app, f"/v1/{task}", document)
    assert answer.status == 400, (document, answer.body)
    return answer.error


@pytest.mark.parametrize(
    "body",
    [
        b'{"temperature": NaN}',
        b'{"temperature": 1e400}',
        b'{"temperature": -Infinity}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"max_tokens": 1, "max_tokens": 2}',
        b"[" * 100_000,
        b'{"lang":' * 100_000,
        b'{"lang": "\\ud800"}',
        b'{"lang": "\xff"}',
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"",
        b"{",
        b"{" + b",".join(b'"k%d":1' % number for number in range(200_000)) + b"}",
        b'{"questions": [' + b"1," * 500_000 + b"1]}",
    ],
    ids=range(17),
)
def test_c7_bodies_that_are_no_json_object_are_refused(body: bytes, mini_app: ASGIApp) -> None:
    started = time.process_time()
    answer = asyncio.run(call(mini_app, "POST", "/v1/caption", body, JSON))
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert time.process_time() - started < 1  # all others wait meanwhile


@pytest.mark.parametrize(
    ("task", "document", "words"),
    [
        ("caption", None, "The body must be a JSON object."),
        ("ask", {}, "Give either question or questions."),
        (
            "detect",
            {},
            "There are no phrases to look for, and the model does not say what it was "
            "trained on. Give phrases, such as 'cat ; dog'.",
        ),
        ("caption", {"image": {}}, "Invalid field image: The field url is missing."),
        ("caption", {"image": {"url": ""}}, "at least 1 character."),
        ("caption", {"image": {"url": "a", "b": 1}}, "field image: Unknown field 'b'."),
        ("generate", {"prompt": "a", "stop": [""]}, "It must have 1 to 64 characters."),
    ],
)
def test_c7_a_refusal_says_what_is_wrong(
    task: str, document: object, words: str, mini_app: ASGIApp
) -> None:
    assert refused(mini_app, task, document)["message"].endswith(words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", True),
        ("max_tokens", "3"),
        ("max_tokens", 3.0),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**25),
        ("max_tokens", 1025),
        ("temperature", "0"),
        ("temperature", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", None),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", 0),
        ("top_k", 1.5),
        ("seed", -1),
        ("seed", 2**63),
        ("stream", 1),
        ("stream", "true"),
        ("lang", "EN"),
        ("lang", "en; drop"),
        ("lang", 3),
        ("style", "poem"),
        ("model", ""),
        ("model", 7),
        ("image", 7),
        ("image", {"url": 7}),
        ("image", {"url": "https://a.b/c", "detail": "high"}),
        ("image", {}),
        ("n", 2),
        ("min_tokens", 9),
        ("max_completion_tokens", 9),
        ("logit_bias", {"1": 100}),
        ("grammar", "a*"),
        ("regex", "(a+)+$"),
        ("response_format", {"type": "json_schema"}),
        ("adapter", "/tmp/x"),
    ],
)
def test_c7_c10_c11_fields_are_strict_and_unknown_ones_are_refused(
    field: str, value: object, mini_app: ASGIApp, scene: bytes
) -> None:
    error = refused(mini_app, "caption", {"image": encoded(scene), field: value})
    assert error["code"] == "invalid_field"
    assert error["param"] in (field, None)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
DOCUMENTS = st.dictionaries(
    st.sampled_from(
        ["image", "model", "max_tokens", "temperature", "question", "questions", "phrases",
         "prompt", "lang", "stop", "suffix", "stream", "top_p", "seed", "x"]
    ),
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS),
    max_size=6,
)  # fmt: skip


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    task=st.sampled_from(["caption", "ask", "ocr", "detect", "segment", "score"]),
    document=DOCUMENTS,
)
def test_c7_no_document_makes_the_server_fail(
    task: str, document: dict[str, Any], mini_app: ASGIApp
) -> None:
    body = json.dumps(document).encode()
    answer = asyncio.run(call(mini_app, "POST", f"/v1/{task}", body, JSON))
    assert answer.status in (200, 400, 404), answer.body


@pytest.mark.parametrize("text", ["a\0b", "", " \n\t ", "\u2003"])
def test_c8_nul_and_empty_texts_are_refused(text: str, mini_app: ASGIApp, scene: bytes) -> None:
    image = encoded(scene)
    assert refused(mini_app, "ask", {"image": image, "question": text})["param"] == "question"
    assert refused(mini_app, "generate", {"prompt": text})["param"] == "prompt"
    assert refused(mini_app, "detect", {"image": image, "phrases": text})["param"] == "phrases"
    assert refused(mini_app, "detect", {"image": image, "phrases": ["a", text]})


@pytest.mark.parametrize("text", ["\u202eabc", "\U0001f600" * 5, "é" * 50, "a\tb", "\ufeff?"])
def test_c8_other_text_is_served(text: str, mini_app: ASGIApp, scene: bytes) -> None:
    document = {"image": encoded(scene), "question": text, "max_tokens": 2}
    assert post(mini_app, "/v1/ask", document).status == 200


def test_c8_the_length_is_checked_before_tokenizing(mini_app: ASGIApp, scene: bytes) -> None:
    started = time.monotonic()
    document = {"image": encoded(scene), "question": "a" * 1_000_000}
    assert refused(mini_app, "ask", document)["param"] == "question"
    assert refused(mini_app, "ask", {**document, "question": "a" * 16_385})
    assert time.monotonic() - started < 0.5
    # Within the characters and beyond the tokens: the words come from behind the edge.
    many = {**document, "question": "q " * 8000}
    assert refused(mini_app, "ask", many)["code"] == "invalid_prompt"


@pytest.mark.parametrize("prompt", ["<image>", "<bos><eos>", "<pad>", "a<image>b\nc", "\n\n"])
def test_c9_control_tokens_in_a_prompt_are_refused(
    prompt: str, mini_app: ASGIApp, scene: bytes
) -> None:
    error = refused(mini_app, "generate", {"image": encoded(scene), "prompt": prompt})
    assert error["param"] == "prompt"


@pytest.mark.parametrize("prompt", ["<loc0000><seg000>", "</s><unk>"])
def test_c9_other_tokens_in_a_prompt_are_text(
    prompt: str, mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    document = {"image": encoded(scene), "prompt": prompt, "max_tokens": 4}
    answer = post(mini_app, "/v1/generate", document).json()
    assert answer["usage"]["image_tokens"] == mini.processor.num_image_tokens
    ids = mini.processor.tokenizer.tokenize_text(prompt)
    control = {mini.processor.tokenizer.pad_id, mini.processor.tokenizer.bos_id, 1}
    assert not control & set(ids)
    assert answer["usage"]["prompt_tokens"] == mini.processor.num_image_tokens + len(ids) + 2


@pytest.mark.parametrize(
    ("task", "field", "good", "bad"),
    [
        ("caption", "max_tokens", 1024, 1025),
        ("generate", "stop", ["a"] * 4, ["a"] * 5),
        ("generate", "stop", "a" * 64, "a" * 65),
        ("generate", "stop", ["a" * 64], [""]),
        ("ask", "questions", ["is it?"] * 8, ["is it?"] * 9),
        ("ask", "questions", ["is it?"], []),
        ("score", "suffixes", ["yes"] * 32, ["yes"] * 33),
        ("detect", "max_objects", 100, 101),
        ("detect", "min_score", 1.0, 1.01),
        ("caption", "top_p", 0, -0.001),
        ("caption", "temperature", 2, 2.001),
    ],
)
def test_c10_each_limit_holds_at_its_value_and_one_above(
    task: str, field: str, good: object, bad: object, mini_app: ASGIApp, scene: bytes
) -> None:
    document: dict[str, Any] = {"image": encoded(scene)}
    document |= {"generate": {"prompt": "caption en"}, "score": {"prompt": "a"}}.get(task, {})
    document |= {"detect": {"phrases": "frog"}}.get(task, {})
    answer = post(mini_app, f"/v1/{task}", {**document, field: good})
    assert answer.status == 200, answer.body
    assert refused(mini_app, task, {**document, field: bad})["param"] == field


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"question": "a?", "questions": ["b?"]},
        {"questions": "a?"},
        {"questions": [["a?"]]},
    ],
)
def test_c10_either_one_question_or_a_list_is_asked(
    document: dict[str, Any], mini_app: ASGIApp, scene: bytes
) -> None:
    assert refused(mini_app, "ask", {"image": encoded(scene), **document})


@pytest.mark.parametrize(
    "model", ["gpt-4", "../mini", "mini/../mini", "/etc/passwd", "MINI", "mini ", "a" * 200]
)
def test_c12_unknown_models_are_404_and_never_a_path(
    model: str, mini_app: ASGIApp, scene: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = post(mini_app, "/v1/caption", {"image": encoded(scene), "model": model})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert model not in answer.error["message"] or model == "mini "
    assert answer.error["type"] == "not_found_error"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "a/b"])
def test_c3_other_content_types_are_415(kind: str, mini_app: ASGIApp) -> None:
    answer = asyncio.run(call(mini_app, "POST", "/v1/caption", b"{}", {"content-type": kind}))
    assert answer.status == 415


@pytest.mark.parametrize("encoding", ["gzip", "deflate, gzip", "br"])
def test_c5_compressed_bodies_are_refused_in_words(encoding: str, mini_app: ASGIApp) -> None:
    headers = {**JSON, "content-encoding": encoding}
    answer = asyncio.run(call(mini_app, "POST", "/v1/caption", b"\x1f\x8b", headers))
    assert (answer.status, answer.error["code"]) == (415, "wrong_content_encoding")


def test_i1_errors_never_quote_what_was_sent(mini_app: ASGIApp, scene: bytes) -> None:
    canary = "canary-7f3a"
    image = encoded(scene)
    for task, document in (
        ("caption", {"image": canary}),
        ("caption", {"image": f"data:image/{canary};base64,AAAA"}),
        ("caption", {"image": {"url": f"https://{canary}/"}}),
        ("caption", {"image": image, canary: 1}),
        ("caption", {"image": image, "lang": canary}),
        ("caption", {"image": image, "model": canary}),
        ("caption", {"image": image, "style": canary}),
        ("caption", {"image": image, "max_tokens": canary}),
        ("ask", {"image": image, "question": f"{canary}\0"}),
        ("ask", {"image": image, "question": canary * 2000}),
        ("detect", {"image": image, "phrases": [canary, 1]}),
        ("detect", {"image": image, "phrases": [f"{canary} <loc0001>"]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": canary}]}]}),
        ("detect", {"image": image, "phrases": canary, "labels": canary}),
        ("generate", {"prompt": f"{canary} " * 1300}),
        ("generate", {"prompt": canary, "stop": [canary, ""]}),
        ("score", {"prompt": canary, "suffix": canary, "suffixes": [canary]}),
    ):
        answer = post(mini_app, f"/v1/{task}", document)
        assert answer.status in (400, 404), (task, answer.body)
        assert canary not in answer.body.decode()


def test_limits_are_told_and_can_be_changed(make_service: Any) -> None:
    limits = Limits(max_tokens=5, max_body_bytes=1000)
    app = create_app(make_service(limits), Settings(limits=limits))
    answer = asyncio.run(call(app, "GET", "/v1/limits"))
    told = answer.json()
    assert told["max_tokens"] == 5
    assert {"max_queued", "max_pixels", "request_seconds", "image_formats"} <= set(told)
    assert refused(app, "generate", {"prompt": "a", "max_tokens": 6})["param"] == "max_tokens"
    assert post(app, "/v1/generate", {"prompt": "a" * 1000}).status == 413


def test_openapi_describes_every_route_with_examples(mini_app: ASGIApp) -> None:
    document = asyncio.run(call(mini_app, "GET", "/openapi.json")).json()
    for task in ("caption", "ask", "ocr", "detect", "segment", "generate", "score"):
        operation = document["paths"][f"/v1/{task}"]["post"]
        assert {"200", "400", "401", "413", "429", "503"} <= set(operation["responses"])
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
        assert schema["examples"]
    text = json.dumps(document)
    names = {name.partition('"')[0] for name in text.split('"#/components/schemas/')[1:]}
    assert names <= set(document["components"]["schemas"])


@pytest.mark.parametrize("task", ["caption", "ask", "ocr", "detect", "segment", "generate"])
def test_the_examples_of_openapi_work(task: str, mini_app: ASGIApp) -> None:
    document = asyncio.run(call(mini_app, "GET", "/openapi.json")).json()
    name = document["paths"][f"/v1/{task}"]["post"]["requestBody"]["content"]
    name = name["application/json"]["schema"]["$ref"].rpartition("/")[2]
    for example in document["components"]["schemas"][name]["examples"]:
        answer = post(mini_app, f"/v1/{task}", {**example, "max_tokens": 8})
        assert answer.status == 200, answer.body
