"""The bodies of requests: strict, closed, and bounded by the server's limits.

Strict: no text for a number, no truth value for one, no field that is not known here. The limits
come in as the context of the validation. Knows no pictures' bytes and no model.
"""

from __future__ import annotations

import re
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
from pydantic_core import PydanticCustomError

from paligemma.errors import PromptError
from paligemma.processor.tokenizer import check_text
from paligemma.server.errors import ApiError
from paligemma.server.limits import Limits
from paligemma.tasks.answer import AnswerTask
from paligemma.tasks.caption import CaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_grammar import MAX_OBJECTS
from paligemma.tasks.objects import split_phrases
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task

BodyT = TypeVar("BodyT", bound=BaseModel)

_EXAMPLE_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGNgGAWj"
    "YBSMglEAAAKYAAGZ0CmAAAAAAElFTkSuQmCC"
)


_PLACE = re.compile(r"<(loc|seg)[0-9]+>")


def _limits(info: ValidationInfo) -> Limits:
    return info.context if isinstance(info.context, Limits) else Limits()


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("limit", "{message}", {"message": message})


def _text(value: str, info: ValidationInfo) -> str:
    most = _limits(info).max_prompt_characters
    if len(value) > most:
        raise _refuse(f"It has more than {most} characters.")
    if not value.strip():
        raise _refuse("It is empty.")
    try:
        check_text(value)
    except PromptError:
        raise _refuse("It holds a NUL character or half of a surrogate pair.") from None
    return value


def _stop(value: str, info: ValidationInfo) -> str:
    if not 1 <= len(value) <= _limits(info).max_stop_characters:
        raise _refuse(f"It must have 1 to {_limits(info).max_stop_characters} characters.")
    return value


def _stops(value: str | list[str], info: ValidationInfo) -> str | list[str]:
    if isinstance(value, list) and len(value) > _limits(info).max_stops:
        raise _refuse(f"There are more than {_limits(info).max_stops}.")
    return value


def _max_tokens(value: int, info: ValidationInfo) -> int:
    if value > _limits(info).max_tokens:
        raise _refuse(f"At most {_limits(info).max_tokens} tokens are written.")
    return value


def _questions(value: list[str], info: ValidationInfo) -> list[str]:
    if not 1 <= len(value) <= _limits(info).max_n:
        raise _refuse(f"1 to {_limits(info).max_n} are answered in one request.")
    return value


def _suffixes(value: list[str], info: ValidationInfo) -> list[str]:
    if not 1 <= len(value) <= _limits(info).max_suffixes:
        raise _refuse(f"1 to {_limits(info).max_suffixes} are scored in one request.")
    return value


def _phrases(value: str | list[str], info: ValidationInfo) -> str | list[str]:
    for text in [value] if isinstance(value, str) else value:
        _text(text, info)
        if _PLACE.search(text):
            raise _refuse("They must be names of things; places stand in answers.")
    if isinstance(value, list) and sum(map(len, value)) > _limits(info).max_prompt_characters:
        raise _refuse("They are too long together.")
    try:
        split_phrases(value)
    except PromptError:
        raise _refuse("They must name one or more things.") from None
    return value


def _model(value: str) -> str:
    if not 1 <= len(value) <= 200:
        raise _refuse("It must have 1 to 200 characters.")
    return value


Text = Annotated[str, AfterValidator(_text)]
Language = Annotated[
    str,
    Field(
        pattern=r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$", max_length=8, description="Such as en or pt-BR."
    ),
]
ModelName = Annotated[
    str,
    AfterValidator(_model),
    Field(description="The model served or one of its adapters, see /v1/models."),
]
MaxTokens = Annotated[int, Field(ge=1), AfterValidator(_max_tokens)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=1, le=1_000_000)]
TopP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Stop = Annotated[str, AfterValidator(_stop)]
Stops = Annotated[Stop | list[Stop], AfterValidator(_stops)]


class Body(BaseModel):
    """What all bodies share: nothing is guessed, nothing unknown is let through."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ImageAddress(Body):
    """Where a picture lies, for servers that fetch."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]


ImageField = Annotated[
    str | ImageAddress | None,
    Field(
        description="The file as base64, as a data URL, or where it lies. In a form: the field "
        "`image`.",
        examples=[_EXAMPLE_PICTURE],
    ),
]


class Asked(Body):
    """A question about a picture."""

    needs_image: ClassVar[bool] = True

    image: ImageField = None
    model: ModelName | None = None


class Written(Asked):
    """A question whose answer is written token by token."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature = 0.0
    top_k: TopK | None = None
    top_p: TopP | None = None
    seed: Seed = 0
    stream: bool = False

    @property
    def tasks(self) -> list[Task[Any]]:
        """What is asked, one entry for each answer."""
        raise NotImplementedError

    @property
    def has_list(self) -> bool:
        """True when several were asked, so that the answer is a list."""
        return False


class CaptionBody(Written):
    """Describe the picture."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": _EXAMPLE_PICTURE}]})

    lang: Language = "en"
    style: Literal["caption", "cap", "describe"] = "caption"

    @property
    def tasks(self) -> list[Task[Any]]:
        return [CaptionTask(language=self.lang, style=self.style)]


class AskBody(Written):
    """Answer a question about the picture, or each of several."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": _EXAMPLE_PICTURE, "question": "what color is it?", "lang": "en"},
                {"image": _EXAMPLE_PICTURE, "questions": ["what color is it?", "is it a cat?"]},
            ]
        }
    )

    question: Text | None = None
    questions: Annotated[list[Text], AfterValidator(_questions)] | None = None
    lang: Annotated[
        Language | None,
        Field(description='With it the prompt is "answer LANG QUESTION", else the question alone.'),
    ] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.question is None) == (self.questions is None):
            raise _refuse("Give either question or questions.")
        return self

    @property
    def tasks(self) -> list[Task[Any]]:
        questions = self.questions or [self.question or ""]
        return [AnswerTask(question=question, language=self.lang) for question in questions]

    @property
    def has_list(self) -> bool:
        return self.questions is not None


class OcrBody(Written):
    """Read the text in the picture."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": _EXAMPLE_PICTURE}]})

    @property
    def tasks(self) -> list[Task[Any]]:
        return [OcrTask()]


class ObjectsBody(Written):
    """Find things by name."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": _EXAMPLE_PICTURE, "phrases": ["cat", "dog"]}]}
    )

    phrases: Annotated[
        str | list[str],
        AfterValidator(_phrases),
        Field(description='A list, or a text such as "cat ; dog".'),
    ]
    labels: Annotated[
        Literal["asked", "any"],
        Field(description="any: whatever names the model gives to what it finds."),
    ] = "asked"
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS)] = MAX_OBJECTS
    min_score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0


class DetectBody(ObjectsBody):
    """Boxes for named things."""

    @property
    def tasks(self) -> list[Task[Any]]:
        return [DetectTask.of(self.phrases, labels=self.labels, max_objects=self.max_objects)]


class SegmentBody(ObjectsBody):
    """Boxes and masks for named things."""

    @property
    def tasks(self) -> list[Task[Any]]:
        return [SegmentTask.of(self.phrases, labels=self.labels, max_objects=self.max_objects)]


class GenerateBody(Written):
    """Continue any prompt; the picture may be left out."""

    needs_image: ClassVar[bool] = False
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": _EXAMPLE_PICTURE, "prompt": "caption en"}]}
    )

    prompt: Text
    stop: Stops | None = None

    @property
    def tasks(self) -> list[Task[Any]]:
        return []

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ScoreBody(Asked):
    """How probable is a text after a prompt, or each of several?"""

    needs_image: ClassVar[bool] = False
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image": _EXAMPLE_PICTURE,
                    "prompt": "answer en is it a cat?",
                    "suffixes": ["yes", "no"],
                }
            ]
        }
    )

    prompt: Text
    suffix: Text | None = None
    suffixes: Annotated[list[Text], AfterValidator(_suffixes)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.suffix is None) == (self.suffixes is None):
            raise _refuse("Give either suffix or suffixes.")
        return self


class Usage(Body):
    """What was read and written, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int


class ErrorDetail(Body):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(Body):
    """The body of every answer that is no success."""

    error: ErrorDetail


class AnswerBody(Body):
    """The body of an answer; `result` is what Python's `to_dict` gives."""

    id: str
    model: str
    result: dict[str, Any] | None = None
    results: list[dict[str, Any]] | None = None
    usage: Usage


def validate(body: type[BodyT], document: object, limits: Limits) -> BodyT:
    """The document as this body. Raises ApiError, which names the field and quotes nothing."""
    try:
        return body.model_validate(document, context=limits)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        # Of a field that may be one of several things, the deepest is about what was meant.
        of_field = [one for one in problems if one["loc"][:1] == problems[0]["loc"][:1]]
        problem = max(of_field, key=lambda one: len(one["loc"]))
        known = body.model_fields
        param = next((part for part in problem["loc"][:1] if part in known), None)
        match problem["type"]:
            case "extra_forbidden":
                words = "There is a field that is not known here."
            case "missing":  # the schema's own name
                words = f"The field {problem['loc'][-1]} is missing."
            case "union_tag_invalid" | "union_tag_not_found":  # its own words repeat what was sent
                words = "A part of it has no type, or one that is not known here."
            case "model_type":
                words = "It must be a JSON object."
            case "limit":
                words = problem["msg"]
            case _:
                words = f"{problem['msg']}."
        if problem["type"] == "extra_forbidden" and param is None:
            message = f"{words} Known: {', '.join(known)}."
        elif param is None or (problem["loc"] == (param,) and problem["type"] == "missing"):
            message = words.replace("It must", "The body must")
        else:
            message = f"The field {param} cannot be used: {words}"
        raise ApiError(
            400, "invalid_field", message, param=None if param is None else str(param)
        ) from None


_ERROR_TEXTS = {
    400: "The request cannot be used.",
    401: "No valid API key.",
    403: "A page of another site.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "Neither JSON nor a form.",
    421: "Not this server's name.",
    429: "Too much is waiting.",
    431: "Headers too large.",
    500: "The server failed.",
    503: "Not serving at the moment.",
    504: "Not finished in time.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says about errors of these statuses; of all that there are, without any."""
    return {
        status: {"description": _ERROR_TEXTS[status], "model": ErrorBody}
        for status in statuses or _ERROR_TEXTS
    }
