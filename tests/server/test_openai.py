"""OpenAI's dialect, spoken by the real `openai` client."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
import pytest
import torch
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.types import ASGIApp

from mini.language import LANGUAGES
from paligemma.adapters.lora import LoraConfig, add_lora, lora_layers
from paligemma.checkpoints.adapter import read_adapter, write_adapter
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Detections, Text
from paligemma.server.app import create_app
from paligemma.server.service import Loaded, Service
from paligemma.server.settings import KeyRing, Limits, Settings
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.segment import SegmentTask
from tests.agreement.tiny_predictor import build_predictor
from tests.server.asgi import call
from tests.server.conftest import MakeService, StartServer
from tests.server.server_process import CANARY
from tests.server.serving import png

ValueT = TypeVar("ValueT")
Talk = Callable[[openai.AsyncOpenAI], Awaitable[ValueT]]

KEY = "a-key-of-sixteen-characters"
PROMPTS = ("caption en", "ocr", "answer en how many frogs are there?", "detect frog ; mushroom")


def talk(app: ASGIApp, speak: Talk[ValueT], *, key: str = KEY, retries: int = 0) -> ValueT:
    """Runs a conversation of the real client with an application in this process."""

    async def run() -> ValueT:
        transport = httpx2.ASGITransport(app=app)
        async with openai.AsyncOpenAI(
            api_key=key,
            base_url="http://localhost:8000/v1",
            max_retries=retries,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:
            return await speak(client)

    return asyncio.run(run())


def data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def message(text: str, *pictures: bytes) -> list[Any]:
    """One user message: the pictures, then the prompt."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


async def chat(client: openai.AsyncOpenAI, messages: list[Any], **options: Any) -> ChatCompletion:
    found = await client.chat.completions.create(model="mini", messages=messages, **options)
    assert isinstance(found, ChatCompletion)
    return found


async def chunks(
    client: openai.AsyncOpenAI, messages: list[Any], **options: Any
) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(
        model="mini", messages=messages, stream=True, **options
    )
    return [chunk async for chunk in stream]


def typed(choice: Any) -> dict[str, Any]:
    """The typed result that stands beside a choice's text."""
    found: dict[str, Any] = choice.paligemma
    return found


def without_floats(value: Any) -> Any:
    """The same with numbers rounded: batches of other sizes differ in the last digits."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: without_floats(item) for name, item in value.items()}
    return [without_floats(item) for item in value] if isinstance(value, list) else value


# Answers


def test_answers_are_those_of_python(mini_app: ASGIApp, mini: Predictor, scene: bytes) -> None:
    expected: list[Text | Detections] = [
        mini.caption(scene),
        mini.ocr(scene),
        mini.ask(scene, "how many frogs are there?", "en"),
        mini.detect(scene, "frog ; mushroom"),
    ]

    async def speak(client: openai.AsyncOpenAI) -> list[ChatCompletion]:
        answers = (chat(client, message(prompt, scene)) for prompt in PROMPTS)
        return list(await asyncio.gather(*answers))

    for found, result in zip(talk(mini_app, speak), expected, strict=True):
        [choice] = found.choices
        assert choice.message.role == "assistant"
        assert choice.message.content == result.text
        assert choice.finish_reason == "stop"
        assert without_floats(typed(choice)) == without_floats(result.to_dict())
        assert found.model == "mini"
        assert found.object == "chat.completion"


def test_segment_brings_masks(mini_app: ASGIApp, mini: Predictor, scene: bytes) -> None:
    result = mini.segment(scene, "mushroom")
    found = talk(mini_app, lambda client: chat(client, message("segment mushroom", scene)))
    assert result.objects
    assert typed(found.choices[0])["objects"][0]["mask"] == result.to_dict()["objects"][0]["mask"]


def test_other_prompts_go_to_the_model_to_the_letter(
    mini_service: Service, mini: Predictor, scene: bytes
) -> None:
    prompt = "caption  en, please"
    result = mini.generate(scene, prompt)
    app = create_app(mini_service, Settings(question_prefix=""))
    found = talk(app, lambda client: chat(client, message(prompt, scene)))
    assert found.choices[0].message.content == result.text
    assert without_floats(typed(found.choices[0])) == without_floats(result.to_dict())


@pytest.mark.parametrize("prompt", [*PROMPTS, "segment mushroom"])
def test_a_stream_is_the_whole_answer_in_pieces(
    mini_app: ASGIApp, scene: bytes, prompt: str
) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}

    async def speak(client: openai.AsyncOpenAI) -> tuple[ChatCompletion, list[ChatCompletionChunk]]:
        whole = await chat(client, message(prompt, scene), **options)
        streamed = await chunks(
            client, message(prompt, scene), stream_options={"include_usage": True}, **options
        )
        return whole, streamed

    whole, streamed = talk(mini_app, speak)
    *pieces, last = streamed
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(piece.usage is None for piece in pieces)
    assert len({piece.id for piece in streamed}) == 1
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces][-2:] == [None, "stop"]
    assert without_floats(typed(pieces[-1].choices[0])) == without_floats(typed(whole.choices[0]))
    assert whole.choices[0].logprobs is not None
    expected = whole.choices[0].logprobs.content or []
    told = [
        token
        for piece in pieces
        if (logprobs := piece.choices[0].logprobs) is not None
        for token in logprobs.content or []
    ]
    assert [token.token for token in told] == [token.token for token in expected]
    assert b"".join(bytes(token.bytes or []) for token in told).decode() == text


def test_log_probabilities_are_those_of_the_typed_result(mini_app: ASGIApp, scene: bytes) -> None:
    found = talk(
        mini_app,
        lambda client: chat(client, message("caption en", scene), logprobs=True, top_logprobs=3),
    )
    [choice] = found.choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    # All but the closing EOS, which is no text.
    assert [token.logprob for token in tokens] == typed(choice)["logprobs"][:-1]
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy takes the likeliest
        likely = [other.logprob for other in token.top_logprobs]
        assert likely == sorted(likely, reverse=True)


def test_what_a_grammar_bans_is_still_a_number(mini_app: ASGIApp, scene: bytes) -> None:
    found = talk(
        mini_app,
        lambda client: chat(client, message("detect frog", scene), logprobs=True, top_logprobs=20),
    )
    assert found.choices[0].logprobs is not None
    numbers = [
        other.logprob
        for token in found.choices[0].logprobs.content or []
        for other in token.top_logprobs
    ]
    assert numbers
    assert all(math.isfinite(number) for number in numbers)


def test_samples_are_those_of_python_with_the_same_seed(
    mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    sampling: dict[str, Any] = {"temperature": 2.0, "top_p": 0.95, "seed": 5}
    expected = mini.generate(scene, ["caption en"] * 3, max_new_tokens=8, **sampling)
    options = sampling | {"n": 3, "max_tokens": 8}

    async def speak(client: openai.AsyncOpenAI) -> tuple[list[str], list[str]]:
        whole = await chat(client, message("caption en", scene), **options)
        streamed = await chunks(client, message("caption en", scene), **options)
        texts = ["", "", ""]
        for chunk in streamed:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        assert whole.usage is not None
        # The prompt counts once, the answers all.
        assert whole.usage.prompt_tokens == 104
        assert whole.usage.completion_tokens == sum(len(one.token_ids) for one in expected)
        return [choice.message.content or "" for choice in whole.choices], texts

    whole, streamed = talk(mini_app, speak)
    assert whole == streamed == [one.text for one in expected]
    assert len(set(whole)) > 1


def test_without_a_seed_each_sample_is_another(mini_app: ASGIApp, scene: bytes) -> None:
    async def speak(client: openai.AsyncOpenAI) -> set[str | None]:
        answers = [
            chat(client, message("caption en", scene), temperature=2.0, max_tokens=8)
            for _ in range(4)
        ]
        return {one.choices[0].message.content for one in await asyncio.gather(*answers)}

    assert len(talk(mini_app, speak)) > 1


def test_stop_strings_and_limits_end_the_text_and_say_so(mini_app: ASGIApp, scene: bytes) -> None:
    async def speak(client: openai.AsyncOpenAI) -> list[ChatCompletion]:
        ask = message("caption en", scene)
        return [
            await chat(client, ask),
            await chat(client, ask, stop=" and"),
            await chat(client, ask, stop=["nowhere", " and"]),
            await chat(client, ask, max_tokens=2),
            await chat(client, ask, max_completion_tokens=2),
        ]

    whole, stopped, one_of_two, *cut = talk(mini_app, speak)
    text = whole.choices[0].message.content or ""
    assert " and" in text
    for one in (stopped, one_of_two):
        assert one.choices[0].message.content == text.partition(" and")[0]
        assert one.choices[0].finish_reason == "stop"
    for one in cut:
        assert one.choices[0].finish_reason == "length"
        assert one.usage is not None
        assert one.usage.completion_tokens == 2
        assert text.startswith(one.choices[0].message.content or "?")


def test_what_changes_nothing_is_taken(mini_app: ASGIApp, scene: bytes) -> None:
    found = talk(
        mini_app,
        lambda client: chat(
            client,
            message("ocr", scene),
            frequency_penalty=0,
            presence_penalty=0.0,
            logit_bias={},
            tools=[],
            tool_choice="none",
            response_format={"type": "text"},
            stop=None,
            n=1,
            temperature=0,
            top_p=1,
            user="someone",
            metadata={"of": "somebody"},
            store=False,
        ),
    )
    assert found.choices[0].finish_reason == "stop"


def test_completions_continue_prompts_to_the_letter(
    mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    prompts = ["caption en", "detect frog;mushroom"]
    expected = mini.generate(scene, prompts)
    found = talk(
        mini_app,
        lambda client: client.completions.create(
            model="mini", prompt=prompts, logprobs=1, extra_body={"image": data_url(scene)}
        ),
    )
    assert [choice.text for choice in found.choices] == [one.text for one in expected]
    for choice, one in zip(found.choices, expected, strict=True):
        assert choice.logprobs is not None
        tokens = choice.logprobs.tokens or []
        offsets = choice.logprobs.text_offset or []
        assert "".join(tokens) == choice.text
        assert [
            choice.text[start:][: len(t)] for start, t in zip(offsets, tokens, strict=True)
        ] == tokens
        assert choice.logprobs.token_logprobs == pytest.approx(
            one.logprobs[: len(tokens)], abs=1e-3
        )


def test_completions_stream_and_need_no_image(mini_app: ASGIApp, mini: Predictor) -> None:
    async def speak(client: openai.AsyncOpenAI) -> str:
        stream = await client.completions.create(
            model="mini", prompt="caption en", max_tokens=6, stream=True, logprobs=0
        )
        return "".join([choice.text async for chunk in stream for choice in chunk.choices])

    assert talk(mini_app, speak) == mini.generate((), "caption en", max_new_tokens=6).text


def test_models_are_listed_with_what_they_are(mini_app: ASGIApp, mini: Predictor) -> None:
    async def speak(client: openai.AsyncOpenAI) -> tuple[list[Any], Any]:
        listed = [model async for model in client.models.list()]
        return listed, await client.models.retrieve("mini")

    listed, one = talk(mini_app, speak)
    assert [model.id for model in listed] == ["mini"]
    assert one == listed[0]
    assert one.license == "Apache-2.0"
    assert one.resolution == mini.info()["resolution"]
    assert one.languages == list(LANGUAGES)


def test_c12_adapters_are_models_of_their_own(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    trained = build_predictor(tiny_tokenizer)
    add_lora(trained.model, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for layer in lora_layers(trained.model).values():
            layer.lora_b.copy_(torch.randn(layer.lora_b.shape, generator=torch.Generator()))
    folder = write_adapter(trained.model, tmp_path / "birds", base_name=None, revision=None)
    base = build_predictor(tiny_tokenizer)
    adapter = read_adapter(folder, base.model.config)
    picture = png(7)
    expected = {
        "tiny": build_predictor(tiny_tokenizer).generate(picture, "ab", max_new_tokens=6).text,
        "birds": trained.generate(picture, "ab", max_new_tokens=6).text,
    }
    assert expected["tiny"] != expected["birds"]

    async def speak(client: openai.AsyncOpenAI) -> tuple[list[Any], list[ChatCompletion]]:
        listed = [model async for model in client.models.list()]
        asks = (
            client.chat.completions.create(
                model=name, messages=message("ab", picture), max_tokens=6
            )
            for name in expected
        )
        return listed, list(await asyncio.gather(*asks))

    loaded = Loaded(predictor=base, adapters={"birds": adapter.layers})
    service = Service(lambda: loaded, name="tiny", adapter_names=["birds"])
    service.start()
    try:
        asyncio.run(service.wait_until_ready())
        listed, answers = talk(create_app(service, Settings()), speak)
    finally:
        service.close()
    assert [(model.id, model.parent) for model in listed] == [("tiny", None), ("birds", "tiny")]
    assert {one.model: one.choices[0].message.content for one in answers} == expected


# What cannot be done

PICTURE = b"a picture that is never looked at"


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"tool_choice": "required"}, None, "tool_choice"),
        ({"modalities": ["text", "audio"]}, None, "modalities"),
        ({"n": 2}, "invalid_field", "n"),
        ({"n": 9, "temperature": 1}, "invalid_field", "n"),
        ({"n": 0}, "invalid_field", "n"),
        ({"n": True}, "invalid_field", "n"),
        ({"n": "2"}, "invalid_field", "n"),
        ({"max_tokens": 0}, "invalid_field", "max_tokens"),
        ({"temperature": -0.1}, "invalid_field", "temperature"),
        ({"temperature": 2.1}, "invalid_field", "temperature"),
        ({"top_p": 1.1}, "invalid_field", "top_p"),
        ({"seed": 2**63}, "invalid_field", "seed"),
        ({"stop": ["a"] * 5}, "invalid_field", "stop"),
        ({"stop": "x" * 65}, "invalid_field", "stop"),
        ({"stop": [""]}, "invalid_field", "stop"),
        ({"top_logprobs": 3}, "invalid_field", None),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_option", None),
        ({"logprobs": 3}, "invalid_field", "logprobs"),
    ],
)
def test_c10_options_are_refused_by_name(
    mini_app: ASGIApp, options: dict[str, Any], code: str | None, param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        talk(mini_app, lambda client: chat(client, message("caption en", PICTURE), **options))
    assert caught.value.code == (code or "unsupported_parameter")
    assert caught.value.param == param
    assert CANARY not in str(caught.value)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (message("caption en"), "missing_image"),
        ([{"role": "user", "content": "caption en"}], "missing_image"),
        (message("What is in this image?"), "missing_image"),
        (message("Please find the frog."), "missing_image"),
        (message("caption en", PICTURE, PICTURE), "too_many_images"),
        ([{**message("ocr", PICTURE)[0], "role": "system"}], "unsupported_message"),
        ([{**message("ocr", PICTURE)[0], "role": "developer"}], "unsupported_message"),
        ([{"role": "assistant", "content": "a cat"}], "unsupported_message"),
        ([{"role": "user", "content": []}], "invalid_field"),
        ([{"role": "user", "content": None}], "invalid_field"),
        ([{"role": CANARY, "content": "ocr"}], "unsupported_message"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "unsupported_message"),
        ([{"role": "user", "content": [{"type": CANARY}]}], "invalid_field"),
        (message("  "), "invalid_field"),
        (message("  ", PICTURE), "invalid_image"),
        (message("x" * 16_385, PICTURE), "invalid_field"),
        (message(f"caption en\0{CANARY}", PICTURE), "invalid_field"),
        (message("detect ;", PICTURE), "invalid_prompt"),
        ([], "unsupported_message"),
        (message("caption en", PICTURE), "invalid_image"),
        (message("caption en", b""), "invalid_image"),
    ],
)
def test_a12_messages_without_a_prompt_and_an_image_are_refused(
    mini_app: ASGIApp, messages: list[Any], code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        talk(mini_app, lambda client: chat(client, messages))
    assert caught.value.code == code
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/cat.png",
        "http://127.0.0.1:9/cat.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "iVBORw0KGgo=",
        "data:text/html;base64,AAAA",
        "data:image/png;base64,***",
    ],
)
def test_b8_no_address_is_followed_unless_the_operator_allows_it(
    mini_app: ASGIApp, url: str
) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "ocr"}]

    async def speak(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await chat(client, [{"role": "user", "content": content}])
        assert caught.value.code == "invalid_image"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(
                model="mini", prompt="ocr", extra_body={"image": {"url": url}}
            )
        assert caught.value.code == "invalid_image"
        assert url not in str(caught.value)

    talk(mini_app, speak)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["ocr"] * 9}, "prompt"),
        ({"prompt": ["ocr"] * 5, "n": 2, "temperature": 1}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "ocr", "echo": True}, "echo"),
        ({"prompt": "ocr", "suffix": "end"}, "suffix"),
        ({"prompt": "ocr", "logprobs": -1}, "logprobs"),
    ],
)
def test_c10_completions_refuse_what_they_cannot_do(
    mini_app: ASGIApp, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        talk(mini_app, lambda client: client.completions.create(model="mini", **options))
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["gpt-4o", "../mini", "mini/../mini", "adapters/x", "\u2028"])
def test_c12_names_that_are_not_served_are_not_found(mini_app: ASGIApp, name: str) -> None:
    async def speak(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model=name, messages=message("ocr", PICTURE))
        assert caught.value.code == "model_not_found"
        assert caught.value.type == "not_found_error"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(name)

    talk(mini_app, speak)


# Errors that are not the request's


def test_c14_a_wrong_key_is_an_authentication_error(mini_service: Service, scene: bytes) -> None:
    app = create_app(mini_service, Settings(keys=KeyRing([KEY])))
    assert talk(app, lambda client: chat(client, message("ocr", scene))).choices
    for request in (lambda c: chat(c, message("ocr", scene)), lambda c: c.models.list()):
        with pytest.raises(openai.AuthenticationError) as caught:
            talk(app, request, key="a-wrong-key-of-sixteen")
        assert caught.value.code == "invalid_api_key"


def test_c14_too_much_is_a_rate_limit_error_that_the_client_waits_out(
    make_service: MakeService, scene: bytes
) -> None:
    service = make_service(Limits(max_running=1, max_queued=1), "step@0*0=sleep:0.05")
    app = create_app(service, Settings())

    async def speak(client: openai.AsyncOpenAI) -> list[Any]:
        ask = (chat(client, message("caption en", scene)) for _ in range(6))
        return list(await asyncio.gather(*ask, return_exceptions=True))

    found = talk(app, speak)
    errors = [one for one in found if isinstance(one, openai.RateLimitError)]
    answers = [one for one in found if isinstance(one, ChatCompletion)]
    assert len(answers) >= 2
    assert len(errors) == 6 - len(answers) > 0
    assert errors[0].code == "overloaded"
    assert int(errors[0].response.headers["retry-after"]) >= 1
    waited = talk(app, speak, retries=8)
    assert all(isinstance(one, ChatCompletion) for one in waited)
    assert len({one.choices[0].message.content for one in waited}) == 1


def test_c14_a_server_that_is_loading_is_an_internal_server_error(mini: Predictor) -> None:
    app = create_app(Service(lambda: mini, name="mini"), Settings())

    async def speak(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="mini", prompt="ocr")
        assert caught.value.status_code == 503
        with pytest.raises(openai.InternalServerError) as caught:
            await client.models.list()
        assert caught.value.code == "unavailable"

    talk(app, speak)


def test_c15_a_failure_in_mid_stream_is_an_error_after_the_pieces(
    make_service: MakeService, scene: bytes
) -> None:
    service = make_service(plan="detok@3=raise")
    app = create_app(service, Settings())

    pieces: list[str] = []

    async def speak(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="mini", messages=message("caption en", scene), stream=True
        )
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError) as caught:
        talk(app, speak)
    assert not isinstance(caught.value, openai.APIStatusError)
    assert caught.value.code == "internal_error"
    whole = talk(app, lambda client: chat(client, message("caption en", scene)))
    text = whole.choices[0].message.content or ""
    assert "".join(pieces) == "".join(text.partition(" and")[:2])


def test_a_client_that_leaves_a_stream_frees_its_place(
    make_service: MakeService, scene: bytes
) -> None:
    service = make_service(plan="step@0*0=sleep:0.02")
    app = create_app(service, Settings())
    body = {"model": "mini", "messages": message("segment frog", scene), "stream": True}

    async def leave() -> None:
        gone = asyncio.Event()
        answer = await call(
            app,
            "POST",
            "/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
            hang_up=gone,
            seen=lambda data: gone.set() if b"content" in data else None,
        )
        assert answer.status == 200
        assert not answer.is_whole
        async with asyncio.timeout(5):
            while (stats := service.stats()).running + stats.waiting:
                await asyncio.sleep(0.01)
        assert stats.cancelled == 1

    asyncio.run(leave())


def test_several_images_are_taken_where_the_server_allows_them(
    make_service: MakeService, mini: Predictor, scene: bytes
) -> None:
    app = create_app(make_service(Limits(max_images=2)), Settings(limits=Limits(max_images=2)))
    found = talk(app, lambda client: chat(client, message("caption en", scene, scene)))
    assert found.choices[0].message.content == mini.generate([scene, scene], "caption en").text


# A whole server


def test_the_client_of_other_peoples_programs_talks_to_a_whole_server(
    start_server: StartServer, scene: bytes, mini: Predictor
) -> None:
    server = start_server("--open-readiness", env={"PALIGEMMA_API_KEYS": KEY})
    base_url = f"http://localhost:{server.port}/v1"
    with openai.OpenAI(api_key=KEY, base_url=base_url) as client:
        assert [model.id for model in client.models.list()] == ["mini"]
        whole = client.chat.completions.create(
            model="mini", messages=message("detect frog ; mushroom", scene)
        )
        expected = mini.run([(scene, DetectTask.of("frog ; mushroom"))])[0]
        assert whole.choices[0].message.content == expected.text
        stream = client.chat.completions.create(
            model="mini", messages=message("segment mushroom", scene), stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == mini.run([(scene, SegmentTask.of("mushroom"))])[0].text
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="mini", messages=message(f"detect {CANARY}"))
    with (
        openai.OpenAI(api_key=CANARY, base_url=base_url) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    assert CANARY not in server.log
    assert KEY not in server.log
    server.kill()
