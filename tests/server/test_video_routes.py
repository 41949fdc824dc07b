"""Videos over HTTP: off unless allowed, decoded by a process of their own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp

from paligemma.errors import VideoError
from paligemma.predictor import Predictor
from paligemma.server.app import create_app
from paligemma.server.document_reader import ReaderPool
from paligemma.server.service import Service
from paligemma.server.settings import Limits, Settings
from paligemma.server.video_reader import MODULE, VIDEOS, RemoteClip, VideoFile
from paligemma.video import open_clip
from tests.server.asgi import call
from tests.server.test_document_routes import form, send
from tests.server.test_http_api import encoded, post
from tests.video.clips import film, number_of

CLIP = film([k / 4 for k in range(8)], container="webm", codec="libvpx")


@pytest.fixture
def app(mini_service: Service) -> ASGIApp:
    return create_app(mini_service, Settings(allow_video=True))


def test_videos_are_refused_unless_the_server_allows_them(mini_app: ASGIApp) -> None:
    answer = post(mini_app, "/v1/video", {"video": encoded(CLIP)})
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert "paligemma serve --allow-video" in answer.error["message"]
    schema = asyncio.run(call(mini_app, "GET", "/openapi.json", b"", {})).json()
    assert "/v1/video" not in schema["paths"]


def test_a_video_is_captioned_with_times(app: ASGIApp, mini: Predictor) -> None:
    answer = post(app, "/v1/video", {"video": encoded(CLIP), "every": 1, "frames": 2})
    assert answer.status == 200, answer.body
    result = answer.json()["result"]
    expected = list(mini.video(CLIP).captions(every=1.0, frames=2))
    assert [segment["text"] for segment in result["segments"]] == [s.text for s in expected]
    for segment, whole in zip(result["segments"], expected, strict=True):
        assert (segment["start_s"], segment["end_s"]) == (whole.start_s, whole.end_s)
        assert segment["score"] == pytest.approx(whole.score, abs=1e-5)
        assert [f["time_s"] for f in segment["frames"]] == [f.time_s for f in whole.frames]
    assert (result["width"], result["height"], result["problems"]) == (64, 48, [])
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_a_question_comes_as_a_form_and_answers_as_events(app: ASGIApp) -> None:
    fields = {"question": "how many frogs are there?", "every": 0.5, "stream": True}
    body, content_type = form(CLIP, fields, "video")
    answer = send(app, "/v1/video", body, content_type)
    assert answer.status == 200, answer.body
    events = [line for line in answer.body.decode().splitlines() if line.startswith("event: ")]
    assert events[0] == "event: segment" or events[0] == "event: progress"
    assert events[-1] == "event: result"
    data = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    segments = json.loads(data[-2])["result"]["segments"]  # the last line is [DONE]
    assert events.count("event: segment") == len(segments)
    assert segments[0]["question"] == fields["question"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_video", "video"),
        ({"video": "data:text/html;base64,AAAA"}, "invalid_video", "video"),
        ({"video": encoded(b"ffconcat version 1.0\nfile /etc/passwd\n")}, "invalid_video", "video"),
        ({"video": encoded(CLIP[:60])}, "invalid_video", "video"),
        ({"video": encoded(CLIP), "every": 0}, "invalid_field", "every"),
        ({"video": encoded(CLIP), "every": "5s"}, "invalid_field", "every"),
        ({"video": encoded(CLIP), "frames": 100}, "invalid_field", "frames"),
        ({"video": encoded(CLIP), "start_s": 50}, "invalid_option", None),
        ({"video": encoded(CLIP), "every": 1e-4}, "invalid_option", None),
        ({"video": encoded(CLIP), "question": " "}, "invalid_field", "question"),
        ({"video": encoded(CLIP), "joint": True}, "invalid_field", "joint"),
        ({"video": encoded(CLIP), "model": "other"}, "model_not_found", "model"),
    ],
)
def test_wrong_requests_about_videos_are_refused(
    fields: dict[str, Any], code: str, param: str | None, app: ASGIApp
) -> None:
    answer = post(app, "/v1/video", fields)
    assert answer.status in (400, 404), answer.body
    assert (answer.error["code"], answer.error["param"]) == (code, param)


def remote(data: bytes, **limits: Any) -> RemoteClip:
    found = Limits(**limits)
    process = ReaderPool(found).take(MODULE, VIDEOS)
    try:
        return RemoteClip(process, VideoFile(data=data), found, 224)
    except BaseException:
        process.close()
        raise


def test_the_other_process_gives_the_same_frames() -> None:
    clip = remote(CLIP)
    here = open_clip(CLIP)
    try:
        assert clip.info == here.info
        frames = [(f.index, f.time_s, f.image.tobytes()) for f in clip.frames([0.1, 0.6, 1.7])]
        assert frames == [
            (f.index, f.time_s, f.image.tobytes()) for f in here.frames([0.1, 0.6, 1.7])
        ]
        assert [number_of(f.image) for f in clip.frames(every_s=0.5)] == [0, 2, 4, 6]
    finally:
        clip._process.close()


def test_limits_hold_in_the_other_process() -> None:
    with pytest.raises(VideoError, match="the limit is 1 s"):
        remote(CLIP, max_video_seconds=1.0)
    with pytest.raises(VideoError, match="larger than"):
        remote(CLIP, max_video_bytes=100)
    with pytest.raises(VideoError, match="64 x 48 pixels"):
        remote(CLIP, max_pixels=1000)
    clip = remote(CLIP, max_video_frames=4)
    with pytest.raises(VideoError, match="More than 4 frames"):
        list(clip.frames())
    clip._process.close()


def test_a_process_that_dies_or_lies_is_an_error_of_the_video() -> None:
    clip = remote(CLIP)
    clip._process._process.kill()
    with pytest.raises(VideoError, match="crashes the program"):
        list(clip.frames())
    clip._process.close()


def test_large_frames_are_made_smaller_in_the_other_process() -> None:
    clip = remote(film([0.0, 0.1], size=(1920, 1080)))
    try:
        assert (clip.info.width, clip.info.height) == (1920, 1080)
        assert {frame.image.size for frame in clip.frames()} == {(960, 540)}
    finally:
        clip._process.close()


def test_the_page_learns_whether_videos_are_read(app: ASGIApp, mini_app: ASGIApp) -> None:
    for tried, expected in ((app, True), (mini_app, False)):
        answer = asyncio.run(call(tried, "GET", "/v1/limits", b"", {}))
        assert answer.json()["reads_videos"] is expected
