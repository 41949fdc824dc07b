"""Every answer has the form that /openapi.json describes, and a client made from it works."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from starlette.types import ASGIApp

from tests.server.asgi import Answer, call
from tests.server.conftest import StartServer
from tests.server.test_http_api import encoded, post

PROMPTS: list[tuple[str, dict[str, Any]]] = [
    ("caption", {"language": "de"}),
    ("ask", {"question": "what color is it?", "language": "en"}),
    ("ask", {"questions": ["what color is it?", "is it a frog?"]}),
    ("ocr", {}),
    ("detect", {"phrases": ["frog", "mushroom"], "max_objects": 4, "min_score": 0.1}),
    ("detect", {"phrases": "giraffe", "labels": "any"}),
    ("segment", {"phrases": "frog"}),
    ("generate", {"prompt": "caption en", "max_new_tokens": 3}),
    ("score", {"prompt": "answer en a frog?", "suffix": "yes"}),
    ("score", {"prompt": "answer en a frog?", "suffixes": ["yes", "no"]}),
]
STREAMED = [(task, fields) for task, fields in PROMPTS if task != "score"]


def get(app: ASGIApp, path: str) -> Answer:
    return asyncio.run(call(app, "GET", path))


class Document:
    """The server's own description of itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.content: dict[str, Any] = get(app, "/openapi.json").json()

    def check(self, schema: dict[str, Any], value: object) -> None:
        """Raises for a value that does not match, or has fields that are not described."""
        components = json.loads(json.dumps(self.content["components"]))
        for component in components["schemas"].values():
            # Clients are told to ignore fields that they do not expect; the server sends none.
            if component.get("type") == "object":
                component.setdefault("additionalProperties", False)
        validator = jsonschema_rs.Draft202012Validator({**schema, "components": components})
        validator.validate(value)

    def check_named(self, name: str, value: object) -> None:
        self.check({"$ref": f"#/components/schemas/{name}"}, value)

    def check_answer(self, method: str, path: str, answer: Answer, status: int = 200) -> None:
        """The answer's body has the form that the route has for JSON and its status."""
        assert answer.status == status, answer.body
        responses = self.content["paths"][path][method]["responses"]
        self.check(responses[str(status)]["content"]["application/json"]["schema"], answer.json())


DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("read", {}),
    ("extract", {"schema": {"properties": {"name": {"type": "string"}}}}),
    ("table", {"max_new_tokens": 4}),
    ("chart", {"max_new_tokens": 4}),
]


@pytest.mark.parametrize(("task", "fields"), DOCUMENTS)
def test_answers_about_documents_are_as_described(
    task: str, fields: dict[str, Any], mini_app: ASGIApp, document: Document, scene: bytes
) -> None:
    body = {"document": encoded(scene), **fields}
    path = f"/v1/{task}"
    document.check_answer("post", path, post(mini_app, path, body))
    responses = document.content["paths"][path]["post"]["responses"]
    names = {"progress": "ProgressEvent", "page": "PageTextResult"}
    for name, data in post(mini_app, path, {**body, "stream": True}).events[:-1]:
        if name == "result":
            schema = responses["200"]["content"]["application/json"]["schema"]
            document.check(schema, data)
        else:
            document.check_named(names[str(name)], data)


@pytest.fixture
def document(mini_app: ASGIApp) -> Document:
    return Document(mini_app)


@pytest.mark.parametrize(("task", "fields"), PROMPTS)
def test_answers_of_tasks_are_as_described(
    task: str, fields: dict[str, Any], mini_app: ASGIApp, document: Document, scene: bytes
) -> None:
    answer = post(mini_app, f"/v1/{task}", {"image": encoded(scene), **fields})
    document.check_answer("post", f"/v1/{task}", answer)


@pytest.mark.parametrize(("task", "fields"), STREAMED)
def test_events_of_tasks_are_as_described(
    task: str, fields: dict[str, Any], mini_app: ASGIApp, document: Document, scene: bytes
) -> None:
    body = {"image": encoded(scene), **fields, "stream": True}
    events = post(mini_app, f"/v1/{task}", body).events
    assert [name for name, _ in events[-2:]] == ["result", "done"]
    for name, data in events[:-1]:
        if name == "result":
            responses = document.content["paths"][f"/v1/{task}"]["post"]["responses"]
            document.check(responses["200"]["content"]["application/json"]["schema"], data)
        else:
            objects = "SegmentEvent" if task == "segment" else "ObjectEvent"
            document.check_named({"token": "TokenEvent", "object": objects}[name or ""], data)


def chat(scene: bytes, **fields: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(scene)}"}},
        {"type": "text", "text": fields.pop("text", "detect frog ; mushroom")},
    ]
    return {"model": "mini", "messages": [{"role": "user", "content": parts}], **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": "segment frog"},
        {"text": "answer en is it a frog?", "logprobs": True, "top_logprobs": 2},
        {"text": "what is it?", "n": 2, "temperature": 0.7, "seed": 1},
    ],
)
def test_chat_completions_are_as_described(
    fields: dict[str, Any], mini_app: ASGIApp, document: Document, scene: bytes
) -> None:
    route = "/v1/chat/completions"
    document.check_answer("post", route, post(mini_app, route, chat(scene, **fields)))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = post(mini_app, route, chat(scene, **fields, **options)).events
    assert events[-1] == ("done", None)
    assert len(events) > 3
    for _, data in events[:-1]:
        document.check_named("ChatCompletionChunk", data)


def test_completions_are_as_described(mini_app: ASGIApp, document: Document, scene: bytes) -> None:
    route = "/v1/completions"
    fields = {"model": "mini", "prompt": ["caption en", "ocr"], "image": encoded(scene)}
    document.check_answer("post", route, post(mini_app, route, {**fields, "logprobs": 2}))
    for _, data in post(mini_app, route, {**fields, "stream": True}).events[:-1]:
        document.check_named("CompletionChunk", data)


def test_lines_of_a_batch_are_as_described(
    mini_app: ASGIApp, document: Document, scene: bytes
) -> None:
    lines = [
        {"id": str(number), "task": task, "image": encoded(scene), **fields}
        for number, (task, fields) in enumerate(PROMPTS)
    ]
    lines.append({"id": "wrong", "task": "caption", "language": "!", "image": encoded(scene)})
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    headers = {"content-type": "application/jsonl"}
    answer = asyncio.run(call(mini_app, "POST", "/v1/batch", body, headers))
    answers = [json.loads(line) for line in answer.body.splitlines() if line]
    assert len(answers) == len(lines)
    assert {line["status"] for line in answers} == {200, 400}
    for line in answers:
        document.check_named("BatchLine", line)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/health/live", "/health/live"),
        ("/health/ready", "/health/ready"),
        ("/v1/limits", "/v1/limits"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/mini", "/v1/models/{model}"),
    ],
)
def test_answers_about_the_server_are_as_described(
    path: str, route: str, mini_app: ASGIApp, document: Document
) -> None:
    document.check_answer("get", route, get(mini_app, path))


def test_errors_are_as_described(mini_app: ASGIApp, document: Document) -> None:
    document.check_answer("get", "/v1/models/{model}", get(mini_app, "/v1/models/none"), 404)
    document.check_answer("post", "/v1/detect", post(mini_app, "/v1/detect", {}), 400)
    document.check_answer(
        "post", "/v1/chat/completions", post(mini_app, "/v1/chat/completions", {}), 400
    )


def test_a_generated_client_works(
    start_server: StartServer, scene: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = pytest.importorskip("openapi_python_client")
    httpx = pytest.importorskip("httpx")
    config = importlib.import_module("openapi_python_client.config")
    address = f"http://127.0.0.1:{start_server().port}"
    description = tmp_path / "openapi.json"
    description.write_bytes(httpx.get(f"{address}/openapi.json", trust_env=False).content)
    options = config.ConfigFile(
        post_hooks=[], content_type_overrides={"application/jsonl": "application/octet-stream"}
    )
    problems = generator.generate(
        config=config.Config.from_sources(
            options,
            config.MetaType.NONE,
            document_source=description,
            file_encoding="utf-8",
            overwrite=True,
            output_path=tmp_path / "generated_client",
        )
    )
    assert [problem.detail for problem in problems] == []
    monkeypatch.syspath_prepend(tmp_path)
    try:
        _use_client(address, scene)
    finally:
        for name in [name for name in sys.modules if name.startswith("generated_client")]:
            del sys.modules[name]


def _use_client(address: str, scene: bytes) -> None:
    def load(module: str) -> Any:
        return importlib.import_module(f"generated_client.{module}")

    options = {"base_url": address, "timeout": 120, "httpx_args": {"trust_env": False}}
    with load("client").Client(**options) as client:
        _check_answers(load, load("models"), client, scene)


def _check_answers(load: Callable[[str], Any], models: Any, client: Any, scene: bytes) -> None:
    image = encoded(scene)

    body = models.DetectRequest(image=image, phrases=["frog", "mushroom"], max_objects=4)
    detected = load("api.tasks.detect").sync(client=client, body=body)
    assert isinstance(detected, models.DetectResponse)
    assert detected.result.phrases == ["frog", "mushroom"]
    assert all(len(found.box_xyxy) == 4 for found in detected.result.objects)

    body = models.AskRequest(image=image, questions=["is it a frog?"], language="en")
    asked = load("api.tasks.ask").sync(client=client, body=body)
    assert isinstance(asked, models.AskResponse)
    assert asked.results[0].question == "is it a frog?"
    assert asked.usage.completion_tokens > 0

    body = models.ChatRequest.from_dict(chat(scene))
    chatted = load("api.openai.chat_completions").sync(client=client, body=body)
    assert isinstance(chatted, models.ChatCompletion)
    assert isinstance(chatted.choices[0].paligemma, models.DetectionsResult)
    assert chatted.choices[0].paligemma.phrases == ["frog", "mushroom"]

    refused = load("api.tasks.ocr").sync(client=client, body=models.OcrRequest())
    assert isinstance(refused, models.ErrorResponse)
    assert refused.error.code == "missing_image"
