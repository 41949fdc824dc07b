"""The bodies of requests to the task routes, as models.

Strict: a string is no number, a boolean neither, and unknown fields are refused. The server's
limits are the validation context.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from paligemma.answering import CONTROL_WORDS
from paligemma.errors import PromptError
from paligemma.processor.tokenizer import check_text
from paligemma.server.errors import ApiError
from paligemma.server.responses import (
    AskResponse,
    CaptionResponse,
    DetectResponse,
    GenerateResponse,
    OcrResponse,
    ScoreResponse,
    SegmentResponse,
    TaskResponse,
)
from paligemma.server.settings import Limits
from paligemma.server.strict_json import JsonError, read_json
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_grammar import MAX_OBJECTS
from paligemma.tasks.objects import read_phrases
from paligemma.tasks.second_look import ListTask, separately
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask

RequestT = TypeVar("RequestT", bound="RequestModel")

EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGNgGAWj"
    "YBSMglEAAAKYAAGZ0CmAAAAAAElFTkSuQmCC"
)


_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
"""Names of unknown fields that an error may repeat: no text of a client has this form for long."""
_LOCATION_TOKEN = re.compile(r"<(loc|seg)[0-9]+>")


def limits_of(info: ValidationInfo) -> Limits:
    """The server's limits, in a validator."""
    return info.context if isinstance(info.context, Limits) else Limits()


def _either(one: str, several: str) -> dict[str, Any]:
    """What OpenAPI says about two fields of which one must be given."""
    return {
        "if": {"required": [several], "properties": {several: {"type": "array"}}},
        "then": {"properties": {one: {"type": "null"}}},
        "else": {"required": [one], "properties": {one: {"type": "string"}}},
    }


def limit_error(message: str) -> PydanticCustomError:
    return PydanticCustomError("limit", "{message}", {"message": message})


def _text(value: str, info: ValidationInfo) -> str:
    most = limits_of(info).max_prompt_characters
    if len(value) > most:
        raise limit_error(f"It has more than {most} characters.")
    if not value.strip():
        raise limit_error("It is empty.")
    for word in CONTROL_WORDS:
        if word in value:
            raise limit_error(
                f"It contains {word}. Leave it out: image tokens and control tokens are added by "
                "themselves."
            )
    try:
        check_text(value)
    except PromptError:
        raise limit_error("It contains a NUL character or a lone surrogate.") from None
    return value


def _stop(value: str, info: ValidationInfo) -> str:
    if not 1 <= len(value) <= limits_of(info).max_stop_characters:
        raise limit_error(f"It must have 1 to {limits_of(info).max_stop_characters} characters.")
    return value


def _stops(value: str | list[str], info: ValidationInfo) -> str | list[str]:
    if isinstance(value, list) and len(value) > limits_of(info).max_stops:
        raise limit_error(f"There are more than {limits_of(info).max_stops}.")
    return value


def _max_new_tokens(value: int, info: ValidationInfo) -> int:
    if value > limits_of(info).max_tokens:
        raise limit_error(f"The limit is {limits_of(info).max_tokens} tokens.")
    return value


def _questions(value: list[str], info: ValidationInfo) -> list[str]:
    if not 1 <= len(value) <= limits_of(info).max_n:
        raise limit_error(f"A request may have 1 to {limits_of(info).max_n} questions.")
    return value


def _suffixes(value: list[str], info: ValidationInfo) -> list[str]:
    if not 1 <= len(value) <= limits_of(info).max_suffixes:
        raise limit_error(f"A request may have 1 to {limits_of(info).max_suffixes} suffixes.")
    return value


def _phrases(value: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
    if value is None:
        return value
    for text in [value] if isinstance(value, str) else value:
        _text(text, info)
        if _LOCATION_TOKEN.search(text):
            raise limit_error("Phrases must not contain location tokens.")
    if isinstance(value, list) and sum(map(len, value)) > limits_of(info).max_prompt_characters:
        raise limit_error("Together they are too long.")
    try:
        read_phrases(value)
    except PromptError:
        raise limit_error("There must be at least one phrase.") from None
    return value


def _model(value: str) -> str:
    if not 1 <= len(value) <= 200:
        raise limit_error("It must have 1 to 200 characters.")
    return value


Text = Annotated[
    str,
    AfterValidator(_text),
    Field(json_schema_extra={"minLength": 1, "pattern": r"\S"}),
]
Phrase = Annotated[str, Field(json_schema_extra={"pattern": r"[^;,\s]"})]
Language = Annotated[
    str,
    Field(
        pattern=r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$", max_length=8, description="Such as en or pt-BR."
    ),
]
ModelName = Annotated[
    str,
    AfterValidator(_model),
    Field(
        description="The model served or one of its adapters, see /v1/models.",
        json_schema_extra={"minLength": 1, "maxLength": 200},
    ),
]
MaxNewTokens = Annotated[int, Field(ge=1), AfterValidator(_max_new_tokens)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=1, le=1_000_000)]
TopP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Stop = Annotated[str, AfterValidator(_stop)]
Stops = Annotated[Stop | list[Stop], AfterValidator(_stops)]


class RequestModel(BaseModel):
    """The body of a request: strict types, no unknown fields."""

    former_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Names that fields had in earlier versions, which are still accepted -> the current names."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def fields_of(model: type[RequestModel]) -> dict[str, FieldInfo]:
    """The fields of a request by the names that clients use."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


class ImageUrl(RequestModel):
    """The address of an image, for servers that fetch images."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]


ImageField = Annotated[
    str | ImageUrl | None,
    Field(
        description="The image file as base64, as a data URL, or by its address. In a form: the "
        "file field `image`.",
        examples=[EXAMPLE_IMAGE],
    ),
]


class TaskRequest(RequestModel):
    """A request to any task route."""

    response: ClassVar[type[TaskResponse]]  # the model of the answer
    needs_image: ClassVar[bool] = True

    image: ImageField = None
    model: ModelName | None = None


class GenerativeRequest(TaskRequest):
    """A request whose answer is generated token by token."""

    former_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"max_tokens": "max_new_tokens", "lang": "language"}
    )

    max_new_tokens: Annotated[
        MaxNewTokens | None, Field(description="Default: as many as the task usually needs.")
    ] = None
    temperature: Annotated[
        Temperature, Field(description="0 always takes the most likely token.")
    ] = 0.0
    top_k: TopK | None = None
    top_p: TopP | None = None
    seed: Annotated[
        Seed | None,
        Field(description="With a temperature, the same seed gives the same answer. Default: any."),
    ] = None
    stream: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """How the request was understood, where it was not taken word by word."""
        return ()

    @property
    def tasks(self) -> list[Task[Any]]:
        """The tasks to run, one per answer."""
        raise NotImplementedError

    @property
    def has_list(self) -> bool:
        """True when the answer has `results`, a list, in place of `result`."""
        return False


class CaptionRequest(GenerativeRequest):
    """Describe the image."""

    response: ClassVar[type[TaskResponse]] = CaptionResponse
    model_config = ConfigDict(json_schema_extra={"examples": [{"image": EXAMPLE_IMAGE}]})

    language: Language = "en"
    style: Literal["caption", "cap", "describe"] = "caption"

    @property
    def tasks(self) -> list[Task[Any]]:
        return [CaptionTask(language=self.language, style=self.style)]


class AskRequest(GenerativeRequest):
    """Answer one or several questions about the image."""

    response: ClassVar[type[TaskResponse]] = AskResponse
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": EXAMPLE_IMAGE, "question": "how many cats are there?"},
                {
                    "image": EXAMPLE_IMAGE,
                    "questions": ["is there a cat?", "where is the cat?"],
                },
            ],
            **_either("question", "questions"),
        }
    )

    question: Text | None = None
    questions: Annotated[list[Text], AfterValidator(_questions)] | None = None
    language: Annotated[
        Language | Literal[""] | None,
        Field(
            description='The prompt is "answer LANGUAGE QUESTION"; with "" or null, the question '
            "alone."
        ),
    ] = "en"

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.question is None) == (self.questions is None):
            raise limit_error("Give either question or questions.")
        return self

    @property
    def tasks(self) -> list[Task[Any]]:
        questions = self.questions or [self.question or ""]
        language = self.language or None
        return [AnswerTask(question=question, language=language) for question in questions]

    @property
    def has_list(self) -> bool:
        return self.questions is not None


class OcrRequest(GenerativeRequest):
    """Read the text in the image."""

    response: ClassVar[type[TaskResponse]] = OcrResponse
    model_config = ConfigDict(json_schema_extra={"examples": [{"image": EXAMPLE_IMAGE}]})

    @property
    def tasks(self) -> list[Task[Any]]:
        return [OcrTask()]


class ObjectsRequest(GenerativeRequest):
    """Find objects by name."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": EXAMPLE_IMAGE, "phrases": ["cat", "dog"]}]}
    )

    task_name: ClassVar[Literal["detect", "segment"]]

    phrases: Annotated[
        Phrase | Annotated[list[Phrase], Field(json_schema_extra={"minItems": 1})] | None,
        AfterValidator(_phrases),
        Field(
            description='A list, or a text such as "cat ; dog" or "cat, dog". A fine-tuned model '
            "that says what it was trained on needs none."
        ),
    ] = None
    labels: Annotated[
        Literal["asked", "any"],
        Field(description="asked: only the phrases. any: allow labels that were not requested."),
    ] = "asked"
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS)] = MAX_OBJECTS
    min_score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    separate: Annotated[
        bool | None,
        Field(
            description="true: ask for each phrase by itself. null: only where the answer for all "
            "of them together leaves some out or gives them other names; a stream asks once."
        ),
    ] = None

    @model_validator(mode="after")
    def _check_separate(self, info: ValidationInfo) -> Self:
        if self.separate and self.stream:
            raise limit_error("separate: true cannot be streamed.")
        most = limits_of(info).max_suffixes
        has_phrases = self.phrases is not None
        if self.separate and has_phrases and len(self._read_phrases()[0]) > most:
            raise limit_error(f"separate: true takes at most {most} phrases.")
        return self

    def _read_phrases(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        assert self.phrases is not None  # `RequestHandler.with_phrases`
        return read_phrases(self.phrases)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._read_phrases()[1]

    @property
    def list_task(self) -> ListTask:
        """The task for all phrases together."""
        raise NotImplementedError

    @property
    def tasks(self) -> list[Task[Any]]:
        task = self.list_task
        return list(separately(task).tasks) if self.separate else [task]


class DetectRequest(ObjectsRequest):
    """Find objects and return their boxes."""

    response: ClassVar[type[TaskResponse]] = DetectResponse
    task_name = "detect"

    @property
    def list_task(self) -> ListTask:
        phrases = self._read_phrases()[0]
        return DetectTask(phrases=phrases, labels=self.labels, max_objects=self.max_objects)


class SegmentRequest(ObjectsRequest):
    """Find objects and return their boxes and masks."""

    response: ClassVar[type[TaskResponse]] = SegmentResponse
    task_name = "segment"

    @property
    def list_task(self) -> ListTask:
        phrases = self._read_phrases()[0]
        return SegmentTask(phrases=phrases, labels=self.labels, max_objects=self.max_objects)


class GenerateRequest(GenerativeRequest):
    """Generate text for any prompt. The image is optional."""

    response: ClassVar[type[TaskResponse]] = GenerateResponse
    needs_image: ClassVar[bool] = False
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": EXAMPLE_IMAGE, "prompt": "caption en"}]}
    )

    prompt: Text
    stop: Stops | None = None

    @property
    def tasks(self) -> list[Task[Any]]:
        return []

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ScoreRequest(TaskRequest):
    """Return the log-probability of one or several texts after a prompt."""

    response: ClassVar[type[TaskResponse]] = ScoreResponse
    needs_image: ClassVar[bool] = False
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image": EXAMPLE_IMAGE,
                    "prompt": "answer en is there a cat?",
                    "suffixes": ["yes", "no"],
                }
            ],
            **_either("suffix", "suffixes"),
        }
    )

    prompt: Text
    suffix: Text | None = None
    suffixes: Annotated[list[Text], AfterValidator(_suffixes)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.suffix is None) == (self.suffixes is None):
            raise limit_error("Give either suffix or suffixes.")
        return self


def validate(
    model: type[RequestT], document: object, limits: Limits, *, is_text: bool = False
) -> RequestT:
    """Validate a decoded JSON document, or with `is_text` the strings of a query.

    Raises ApiError, which names the field, not its value.
    """
    document, sent_names = _with_current_names(model, document)
    try:
        if is_text and isinstance(document, dict):
            document = {name: _from_text(model, name, value) for name, value in document.items()}
        return model.model_validate(document, context=limits)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        # Of a field with several types, the deepest problem is about the type that was meant.
        # An unknown field first: it is often the missing one, misspelled.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        of_field = [p for p in problems if p["loc"][:1] == first["loc"][:1]]
        raise _field_error(model, max(of_field, key=lambda p: len(p["loc"])), sent_names) from None


def _from_text(model: type[RequestModel], name: str, text: object) -> object:
    """The number or boolean that a string of a query means, for a field that is no text."""
    field = fields_of(model).get(name)
    if field is None or not isinstance(text, str) or "str" in str(field.annotation):
        return text
    try:
        return read_json(text.encode())
    except JsonError:
        return text


def _with_current_names(
    model: type[RequestModel], document: object
) -> tuple[object, dict[str, str]]:
    """The document with former names replaced; current name -> former name of those replaced."""
    if not isinstance(document, dict):
        return document, {}
    former = {
        name: current
        for name, current in model.former_names.items()
        if name in document and current in fields_of(model)
    }
    for name, current in former.items():
        if current in document:
            raise ApiError(
                400,
                "invalid_field",
                f"Give {current} or {name}, its former name, not both.",
                param=current,
            )
    renamed = {former.get(name, name): value for name, value in document.items()}
    return renamed, {current: name for name, current in former.items()}


def _field_error(
    model: type[RequestModel], problem: ErrorDetails, sent_names: Mapping[str, str]
) -> ApiError:
    fields = fields_of(model)
    field = next((part for part in problem["loc"][:1] if part in fields), None)
    param = None if field is None else sent_names.get(str(field), str(field))
    match problem["type"]:
        case "extra_forbidden":
            name = str(problem["loc"][-1])
            reason = f"Unknown field {name!r}." if _PLAIN_NAME.fullmatch(name) else "Unknown field."
            if field is None and (nearest := get_close_matches(name, fields, n=1, cutoff=0.7)):
                reason += f" The nearest known one is {nearest[0]}."
        case "missing":  # the schema's own name
            reason = f"The field {problem['loc'][-1]} is missing."
        case "union_tag_invalid" | "union_tag_not_found":  # pydantic's message repeats the value
            reason = "The type of a part is missing or unknown."
        case "model_type":
            reason = "It must be a JSON object."
        case "limit":
            reason = problem["msg"]
        case _:
            reason = f"{problem['msg']}."
    if problem["type"] == "extra_forbidden" and param is None:
        message = f"{reason} Known fields: {', '.join(fields)}."
        param = str(problem["loc"][-1]) if "'" in reason else None
    elif param is None or (problem["loc"] == (field,) and problem["type"] == "missing"):
        message = reason.replace("It must", "The body must")
    else:
        message = f"Invalid field {param}: {reason}"
    return ApiError(400, "invalid_field", message, param=param)
