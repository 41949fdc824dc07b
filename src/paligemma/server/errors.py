"""Errors as HTTP responses: a status, and a body that never repeats what the client sent.

    {"error": {"message": "...", "type": "invalid_request_error", "code": "...", "param": null}}

Form and types are those of OpenAI's API, so that its clients raise the right exceptions.
"""

from __future__ import annotations

import math

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from paligemma.errors import (
    BusyError,
    CheckpointError,
    DocumentError,
    ImageError,
    InputError,
    MissingExtraError,
    NumericalError,
    OptionError,
    PaliGemmaError,
    PromptError,
    TimeLimitError,
    UnavailableError,
    VideoError,
)
from paligemma.server.responses import ErrorDetail, ErrorResponse, json_response

RETRY_SECONDS: float = 1
_MAX_RETRY_SECONDS = 60.0

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class ApiError(PaliGemmaError):
    """An error response.

    `message` must not contain anything that the client sent. `closes` closes the connection after
    the response, when the rest of the request is not read.
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
    def body(self) -> ErrorResponse:
        """The body of the answer."""
        return ErrorResponse(
            error=ErrorDetail(
                message=self.message, type=error_type(self.status), code=self.code, param=self.param
            )
        )


class AbortedResponseError(Exception):
    """Makes uvicorn close the connection of a response that cannot be completed."""


class ClientGoneError(PaliGemmaError):
    """The client disconnected before it got its answer."""


def error_type(status: int) -> str:
    """OpenAI's error type for a status."""
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else _TYPES.get(status, "invalid_request_error")


def to_api_error(error: Exception) -> ApiError:
    """The error as clients see it. Unexpected errors reveal nothing.

    The messages of ImageError, PromptError and OptionError are passed on: request validation has
    refused whatever these would quote.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return _input_error(error)
    if isinstance(error, MissingExtraError):
        return ApiError(400, "not_supported_by_server", str(error))
    for kind, status, code, message in _ERRORS:
        if isinstance(error, kind):
            retry_after = RETRY_SECONDS if status in (429, 503) else None
            if isinstance(error, BusyError) and error.retry_after is not None:
                retry_after = min(error.retry_after, _MAX_RETRY_SECONDS)
            return ApiError(status, code, message, retry_after=retry_after)
    if isinstance(error, TimeLimitError):
        return _timeout_error(error)
    return ApiError(500, "internal_error", "Internal server error. See the server's log.")


_ERRORS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (ClientGoneError, 499, "client_gone", "The client disconnected."),
    (ClientDisconnect, 499, "client_gone", "The client disconnected."),
    (BusyError, 429, "overloaded", "Too many requests are waiting. Try again in a moment."),
    (
        UnavailableError,
        503,
        "unavailable",
        "The model is unavailable: it is loading, shutting down or has failed. Try again later.",
    ),
    (NumericalError, 500, "numerical_error", "The model produced NaN or infinity."),
    (
        CheckpointError,
        400,
        "not_supported_by_model",
        "The served model does not support this: masks need a checkpoint with a mask codec.",
    ),
)


def _input_error(error: InputError) -> ApiError:
    if isinstance(error, DocumentError):
        return ApiError(400, "invalid_document", str(error), param="document")
    if isinstance(error, VideoError):
        return ApiError(400, "invalid_video", str(error), param="video")
    if isinstance(error, ImageError):
        # In Python the message names the source of the image; here that is always bytes.
        message = str(error).replace("The image bytes ", "The image ")
        return ApiError(400, "invalid_image", message, param="image")
    if isinstance(error, PromptError):
        return ApiError(400, "invalid_prompt", str(error))
    code = "invalid_option" if isinstance(error, OptionError) else "invalid_request"
    return ApiError(400, code, str(error))


def _timeout_error(error: TimeLimitError) -> ApiError:
    if error.was_running:
        return ApiError(
            504, "timeout", "The request timed out. Ask for fewer tokens, or try again later."
        )
    return ApiError(
        503,
        "queue_timeout",
        "The request waited too long in the queue. Try again later.",
        retry_after=RETRY_SECONDS,
    )


def error_response(error: ApiError) -> Response:
    """The HTTP response for an error."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.closes:
        headers["connection"] = "close"
    return json_response(error.body, status=error.status, headers=headers)
