"""Errors as HTTP tells them: a status, and a body that never repeats what the client sent.

    {"error": {"message": "...", "type": "invalid_request_error", "code": "...", "param": null}}

The form and the types are those of OpenAI's API, so that its clients raise the right classes.
Knows the package's errors; knows no routes.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import Response

from paligemma.errors import (
    BusyError,
    CheckpointError,
    ImageError,
    InputError,
    NumericalError,
    OptionError,
    PaliGemmaError,
    PromptError,
    TimeLimitError,
    UnavailableError,
)
from paligemma.server.strict_json import write_json

RETRY_SECONDS = 1

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class ApiError(PaliGemmaError):
    """A request that is answered with this status.

    `message` is for the client and holds nothing that the client sent. `closes` ends the
    connection after the answer, where the rest of the request is not worth reading.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        closes: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.closes = closes
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that says it."""
        return {
            "error": {
                "message": self.message,
                "type": error_type(self.status),
                "code": self.code,
                "param": self.param,
            }
        }


class ClientGoneError(PaliGemmaError):
    """The client hung up before its answer was there."""


def error_type(status: int) -> str:
    """The name of the class of errors that a status belongs to."""
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else _TYPES.get(status, "invalid_request_error")


def to_api_error(error: Exception) -> ApiError:
    """Any error as the client is told it. What was not foreseen says nothing of itself.

    The messages of ImageError, PromptError and OptionError are passed on: the schemas refuse
    beforehand whatever these would quote.
    """
    match error:
        case ApiError():
            return error
        case ClientGoneError():
            return ApiError(499, "client_gone", "The client hung up.")
        case ImageError():
            # In Python it is named by where it came from.
            message = str(error).replace("The picture bytes ", "The picture ")
            return ApiError(400, "invalid_image", message, param="image")
        case PromptError():
            return ApiError(400, "invalid_prompt", str(error))
        case OptionError():
            return ApiError(400, "invalid_option", str(error))
        case InputError():
            return ApiError(400, "invalid_request", str(error))
        case BusyError():
            return ApiError(
                429,
                "overloaded",
                "Too many requests are waiting. Try again in a moment.",
                retry_after=RETRY_SECONDS,
            )
        case UnavailableError():
            return ApiError(
                503,
                "unavailable",
                "The model is not serving: it is loading, shutting down or has failed. Try again.",
                retry_after=RETRY_SECONDS,
            )
        case TimeLimitError(was_running=False):
            return ApiError(
                503,
                "queue_timeout",
                "The request waited too long for its turn. Try again later.",
                retry_after=RETRY_SECONDS,
            )
        case TimeLimitError():
            return ApiError(
                504,
                "timeout",
                "The answer was not finished in time. Ask for fewer tokens, or try again later.",
            )
        case NumericalError():
            return ApiError(
                500, "numerical_error", "The model gave NaN or infinity, so there is no answer."
            )
        case CheckpointError():
            return ApiError(
                400,
                "not_supported_by_model",
                "The model that is served cannot do this: masks need a checkpoint with a codec.",
            )
        case _:
            return ApiError(
                500, "internal_error", "The server failed at this request. Its log says where."
            )


def error_response(error: ApiError) -> Response:
    """The answer to a request that failed."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.closes:
        headers["connection"] = "close"
    return Response(
        write_json(error.body),
        status_code=error.status,
        media_type="application/json",
        headers=headers,
    )
