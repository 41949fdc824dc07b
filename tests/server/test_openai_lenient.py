"""Chats as unmodified clients send them: answered, with what was ignored in `paligemma`."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import openai
import pytest
from starlette.types import ASGIApp

from paligemma.predictor import Predictor
from paligemma.tasks.parse_prompt import parse_prompt
from tests.server.asgi import call
from tests.server.test_http_api import encoded, post
from tests.server.test_openai import chat, chunks, message, talk


def part(data: bytes, head: str = "data:image/png;base64,") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": head + base64.b64encode(data).decode()}}


def ask(app: ASGIApp, messages: Any, **options: Any) -> Any:
    return talk(app, lambda client: chat(client, messages, **options))


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


@pytest.fixture(scope="session")
def caption(mini: Predictor, scene: bytes) -> str:
    return mini.caption(scene).text


@pytest.mark.parametrize(
    "head",
    [
        "data:image/jpg;base64,",
        "data:application/octet-stream;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "",
    ],
)
def test_the_bytes_decide_what_an_image_is(
    mini_app: ASGIApp, scene: bytes, caption: str, head: str
) -> None:
    content = [part(scene, head), {"type": "text", "text": "caption en"}]
    assert text_of(ask(mini_app, [{"role": "user", "content": content}])) == caption


@pytest.mark.parametrize("encode", [base64.encodebytes, base64.urlsafe_b64encode])
def test_base64_may_have_line_breaks_and_the_alphabet_of_urls(
    mini_app: ASGIApp, scene: bytes, caption: str, encode: Any
) -> None:
    url = "data:image/png;base64," + encode(scene).decode().rstrip("=")
    content = [
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "caption en"},
    ]
    assert text_of(ask(mini_app, [{"role": "user", "content": content}])) == caption


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([{"role": "system", "content": ""}], [], "System"),
        ([{"role": "developer", "content": "You are a bird."}], [], "System"),
        ([{"role": "user", "content": "ocr"}, {"role": "assistant", "content": "a"}], [], "last"),
        ([], [{"role": "assistant", "content": "A"}], "last"),
    ],
)
def test_the_last_message_of_the_user_is_answered(
    mini_app: ASGIApp, scene: bytes, caption: str, before: Any, after: Any, words: str
) -> None:
    answer = ask(mini_app, [*before, *message("caption en", scene), *after])
    assert text_of(answer) == caption
    assert words in answer.paligemma["notes"][0]


def test_a_follow_up_is_about_the_image_of_before(
    mini_app: ASGIApp, scene: bytes, caption: str
) -> None:
    before = [*message("ocr", scene), {"role": "assistant", "content": "ALARM"}]
    answer = ask(mini_app, [*before, {"role": "user", "content": "caption en"}])
    assert text_of(answer) == caption


def test_several_texts_are_one_prompt(mini_app: ASGIApp, scene: bytes, caption: str) -> None:
    texts = [{"type": "text", "text": text} for text in ("<image>\ncaption", " en ")]
    answer = ask(mini_app, [{"role": "user", "content": [*texts, part(scene)]}])
    assert text_of(answer) == caption
    assert "<image>" in answer.paligemma["notes"][0]


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        (
            {"frequency_penalty": 0.5, "presence_penalty": 0},
            ["frequency_penalty", "presence_penalty"],
        ),
        ({"logit_bias": {"5": 100}, "store": True}, ["logit_bias", "store"]),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
            ["tools"],
        ),
        (
            {"extra_body": {"min_p": 0.1, "repetition_penalty": 1.1}},
            ["min_p", "repetition_penalty"],
        ),
        ({"user": "me", "reasoning_effort": "high"}, ["reasoning_effort", "user"]),
        ({"stream_options": {"include_usage": True}}, ["stream_options"]),
        ({"max_tokens": 3, "max_completion_tokens": 64}, ["max_tokens"]),
        ({"response_format": {"type": "text"}, "seed": -1, "extra_body": {"top_k": -1}}, []),
    ],
)
def test_what_these_models_do_not_have_is_listed_as_ignored(
    mini_app: ASGIApp, scene: bytes, caption: str, options: dict[str, Any], ignored: list[str]
) -> None:
    answer = ask(mini_app, message("caption en", scene), **options)
    assert text_of(answer) == caption
    assert sorted(answer.paligemma["ignored"]) == ignored


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_length_above_the_limit_is_cut_to_it(
    mini_app: ASGIApp, scene: bytes, caption: str, name: str
) -> None:
    answer = ask(mini_app, message("caption en", scene), **{name: 4096})
    assert text_of(answer) == caption
    assert "1024" in answer.paligemma["notes"][0]


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("How many mushrooms are there?", "answer en How many mushrooms are there?"),
        ("Describe this image in detail.", "caption en"),
        ("What is in this image?", "caption en"),
        ("Caption EN", "caption en"),
        ("OCR", "ocr"),
        ("caption", "caption en"),
        ("What\u2019s in the picture?", "caption en"),
        ("Write a short description of this photo.", "caption en"),
        ("Extract all text from this image.", "ocr"),
        ("Please detect the frog and the mushroom in this image.", "detect frog ; mushroom"),
        ("Where is the frog?", "answer en Where is the frog?"),
        ("", "caption en"),
    ],
)
def test_plain_questions_are_sent_as_the_model_was_trained(
    mini_app: ASGIApp, mini: Predictor, scene: bytes, prompt: str, sent: str
) -> None:
    answer = ask(mini_app, message(prompt, scene))
    task = parse_prompt(sent)
    assert task is not None
    assert text_of(answer) == mini.run([(scene, task)])[0].text
    assert sent in answer.paligemma["notes"][0]


@pytest.mark.parametrize("prompt", ["detect frog, mushroom", "Detect frog ; mushroom"])
def test_names_are_split_as_people_type_them(mini_app: ASGIApp, scene: bytes, prompt: str) -> None:
    answer = ask(mini_app, message(prompt, scene))
    assert answer.choices[0].paligemma["phrases"] == ["frog", "mushroom"]
    assert len(answer.choices[0].paligemma["objects"]) >= 2


def test_the_typed_result_ends_where_the_text_ends(mini_app: ASGIApp, scene: bytes) -> None:
    for prompt, stop in (("caption en", " and"), ("detect frog ; mushroom", " ;")):
        answer = ask(mini_app, message(prompt, scene), stop=stop)
        assert answer.choices[0].paligemma["text"] == text_of(answer)


OBJECTS = {
    "$defs": {
        "Thing": {
            "type": "object",
            "properties": {
                "label": {"type": "string"},
                "box": {"type": "array", "items": {"type": "integer"}},
                "confidence": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            },
            "required": ["label", "box", "confidence"],
        }
    },
    "type": "object",
    "properties": {
        "things": {"type": "array", "items": {"$ref": "#/$defs/Thing"}},
        "count": {"type": "integer"},
    },
    "required": ["things", "count"],
}
ANSWER = {
    "type": "object",
    "properties": {"number": {"type": "integer"}, "why": {"type": ["string", "null"]}},
    "required": ["number"],
}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_objects_fill_a_schema(mini_app: ASGIApp, scene: bytes) -> None:
    answer = ask(
        mini_app, message("detect frog ; mushroom", scene), response_format=schema_format(OBJECTS)
    )
    document = json.loads(text_of(answer))
    expected = answer.choices[0].paligemma["objects"]
    assert document["count"] == len(expected) >= 2
    for thing, obj in zip(document["things"], expected, strict=True):
        assert thing["label"] == obj["label"]
        assert thing["box"] == [round(edge) for edge in obj["box_xyxy"]]
        assert thing["confidence"] == obj["score"]
    assert answer.paligemma["ignored"] == []


def test_a_free_answer_fills_a_schema(mini_app: ASGIApp, mini: Predictor, scene: bytes) -> None:
    question = "how many mushrooms are there?"
    answer = ask(mini_app, message(question, scene), response_format=schema_format(ANSWER))
    text = mini.ask(scene, question, language="en").text
    assert json.loads(text_of(answer)) == {"number": int(text), "why": text}
    plain = ask(mini_app, message("caption en", scene), response_format={"type": "json_object"})
    assert json.loads(text_of(plain)) == {"answer": mini.caption(scene).text}


INSTRUCTIONS = f"""
            As a genius expert, your task is to understand the content and provide
            the parsed objects in json that match the following json_schema:

            {json.dumps(OBJECTS, indent=2)}

            Make sure to return an instance of the JSON, not the schema itself
"""
BLOCK = "Return the correct JSON response within a ```json codeblock. not the JSON_SCHEMA"
FORMAT = (
    "The output should be formatted as a JSON instance that conforms to the JSON schema below.\n\n"
    'As an example, for the schema {"properties": {"foo": {"type": "array"}}, '
    '"required": ["foo"]}\n'
    'the object {"foo": ["bar"]} is a well-formatted instance of the schema. The object '
    '{"properties": {"foo": ["bar"]}} is not well-formatted.\n\n'
    "Here is the output schema:\n```\n" + json.dumps(OBJECTS) + "\n```"
)


@pytest.mark.parametrize(
    ("system", "texts", "options"),
    [
        (INSTRUCTIONS, ["detect frog"], {"response_format": {"type": "json_object"}}),
        (INSTRUCTIONS, ["detect frog", BLOCK], {}),
        (None, [f"detect frog\n{FORMAT}\n"], {}),
        (None, [f"Answer the query.\n{FORMAT}\ndetect frog"], {}),
        (None, ["Find all the frog. Answer in JSON."], {"response_format": schema_format(OBJECTS)}),
    ],
    ids=["instructor json", "instructor md_json", "langchain parser", "parser first", "words"],
)
def test_a_schema_in_the_messages_is_filled(
    mini_app: ASGIApp, scene: bytes, system: str | None, texts: list[str], options: dict[str, Any]
) -> None:
    content = [{"type": "text", "text": texts[0]}, part(scene)]
    content += [{"type": "text", "text": text} for text in texts[1:]]
    before = [] if system is None else [{"role": "system", "content": system}]
    answer = ask(mini_app, [*before, {"role": "user", "content": content}], **options)
    things = json.loads(text_of(answer))["things"]
    assert [thing["label"] for thing in things] == ["frog"] * len(things)
    assert answer.choices[0].paligemma["prompt"] == "detect frog"


def test_text_alone_is_answered_with_a_note(mini_app: ASGIApp, mini: Predictor) -> None:
    answer = ask(mini_app, [{"role": "user", "content": "Hello!"}])
    assert text_of(answer) == mini.generate((), "Hello!").text
    assert "no image" in answer.paligemma["notes"][0]


def test_json_is_streamed_as_one_piece(mini_app: ASGIApp, scene: bytes) -> None:
    async def speak(client: Any) -> str:
        pieces = await chunks(
            client, message("detect frog", scene), response_format=schema_format(OBJECTS)
        )
        last: Any = pieces[-1]
        assert last.paligemma == {"ignored": [], "notes": []}
        return "".join(piece.choices[0].delta.content or "" for piece in pieces)

    assert json.loads(talk(mini_app, speak))["count"] >= 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
        {"$ref": "#"},
        {"$ref": "#/$defs/none"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": []},
        {"type": "nothing"},
    ],
)
def test_a_schema_that_cannot_be_filled_is_refused(
    mini_app: ASGIApp, scene: bytes, schema: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(mini_app, message("caption en", scene), response_format=schema_format(schema))
    assert caught.value.code == "unsupported_schema"


def test_a_tool_that_must_be_called_gets_its_arguments(mini_app: ASGIApp, scene: bytes) -> None:
    tool = {"type": "function", "function": {"name": "Found", "parameters": OBJECTS}}
    choice = {"type": "function", "function": {"name": "Found"}}
    answer = ask(mini_app, message("detect frog", scene), tools=[tool], tool_choice=choice)
    [made] = answer.choices[0].message.tool_calls
    assert made.function.name == "Found"
    assert json.loads(made.function.arguments)["count"] >= 1
    assert answer.choices[0].finish_reason == "tool_calls"
    free = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool]}}
    text = ask(mini_app, message("detect frog", scene), tools=[tool], tool_choice=free)
    assert text.choices[0].message.tool_calls is None

    async def speak(client: Any) -> Any:
        pieces = await chunks(
            client, message("detect frog", scene), tools=[tool], tool_choice="required"
        )
        return [call for piece in pieces for call in piece.choices[0].delta.tool_calls or []]

    [streamed] = talk(mini_app, speak)
    assert (streamed.index, streamed.function.name) == (0, "Found")
    assert json.loads(streamed.function.arguments) == json.loads(made.function.arguments)


def response_input(text: str, data: bytes) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    content = [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": url}]
    return [{"role": "user", "content": content}]


def test_responses_answer_like_chats(mini_app: ASGIApp, scene: bytes, caption: str) -> None:
    async def speak(client: Any) -> Any:
        whole = await client.responses.create(
            model="mini",
            input=response_input("caption en", scene),
            instructions="Be brief.",
            max_output_tokens=4096,
        )
        stream = await client.responses.create(
            model="mini",
            input=response_input("caption en", scene),
            stream=True,
        )
        return whole, [event async for event in stream]

    whole, events = talk(mini_app, speak)
    assert whole.output_text == caption
    assert whole.status == "completed"
    assert whole.usage.input_tokens > 100
    assert len(whole.paligemma["notes"]) == 2
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == caption
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == caption
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_may_be_json(mini_app: ASGIApp, scene: bytes) -> None:
    form = {"type": "json_schema", "name": "a", "schema": OBJECTS}

    async def speak(client: Any) -> Any:
        return await client.responses.create(
            model="mini",
            input=response_input("detect frog", scene),
            text={"format": form},
        )

    assert json.loads(talk(mini_app, speak).output_text)["count"] >= 1


def test_a_response_may_be_a_tool_call(mini_app: ASGIApp, scene: bytes) -> None:
    tool = {"type": "function", "name": "Found", "parameters": OBJECTS}
    call = {"type": "function_call", "call_id": "c", "name": "Found", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "3"}
    [asked] = response_input("detect frog", scene)
    request: dict[str, Any] = {"model": "mini", "tools": [tool], "tool_choice": "required"}

    async def speak(client: Any) -> Any:
        whole = await client.responses.create(input=[asked, call, result], **request)
        stream = await client.responses.create(input=asked["content"], stream=True, **request)
        return whole, [event async for event in stream]

    whole, events = talk(mini_app, speak)
    [item] = whole.output
    assert (item.type, item.name) == ("function_call", "Found")
    assert json.loads(item.arguments)["count"] >= 1
    kinds = [event.type.removeprefix("response.function_call_") for event in events]
    assert kinds[2:4] == ["arguments.delta", "arguments.done"]
    assert events[-1].response.output[0].arguments == item.arguments


@pytest.mark.parametrize("document", [{}, [], {"input": 5}, {"input": [5]}, {"input": []}])
def test_a_response_without_a_question_is_refused(mini_app: ASGIApp, document: object) -> None:
    async def speak() -> int:
        body = json.dumps(document).encode()
        headers = {"content-type": "application/json"}
        return (await call(mini_app, "POST", "/v1/responses", body, headers)).status

    assert asyncio.run(speak()) == 400


def test_a_language_that_the_model_lacks_is_refused_in_every_route(
    mini_app: ASGIApp, scene: bytes
) -> None:
    fields = {"image": encoded(scene), "language": "xx"}
    for route, more in (
        ("caption", {}),
        ("caption", {"style": "describe"}),
        ("caption", {"stream": True}),
        ("ask", {"question": "what is it?"}),
    ):
        refused = post(mini_app, f"/v1/{route}", {**fields, **more})
        assert (refused.status, "knows: en de fr es it pt" in str(refused.body)) == (400, True)
    answer = post(
        mini_app,
        "/v1/chat/completions",
        {"model": "mini", "messages": message("caption ja", scene)},
    )
    assert (answer.status, "knows: en de fr es it pt" in str(answer.body)) == (400, True)


def test_a_question_that_begins_with_answer_is_no_language(
    mini_app: ASGIApp, mini: Predictor, scene: bytes
) -> None:
    question = "answer the question: how many frogs are there?"
    answer = ask(mini_app, message(question, scene))
    assert text_of(answer) == mini.ask(scene, question, "en").text


def test_a_prompt_in_a_language_that_the_model_lacks_gets_a_note(
    mini_app: ASGIApp, scene: bytes
) -> None:
    fields = {"image": encoded(scene), "prompt": "caption ja", "max_new_tokens": 2}
    [note] = post(mini_app, "/v1/generate", fields).json()["result"]["notes"]
    assert "'ja' is not a language of this model" in note
