"""What goes wrong, in the shape that the client's protocol has for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from fourfold.errors import FourfoldError, RequestError
from fourfold.worker.wire import EngineFault

# Status -> the names that OpenAI's and Anthropic's clients know it by.
_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    415: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("overloaded_error", "overloaded_error"),
}

GONE = 499
"""The status in the log of a request whose client went away, as nginx has it."""

_BRANCHES = {"str", "int", "float", "bool", "none"}
_TAGS = {"text", "thinking", "tool_use", "tool_result"} | {  # of blocks and items, in a list of them
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
}


@dataclass
class ApiError(FourfoldError):
    """A request that is answered with an error.  param: the field at fault; retry_after: seconds."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        return self.message

    def document(self, path: str, request_id: str = "") -> dict[str, Any]:
        """The error's body for a client of the protocol at `path`."""
        openai, anthropic = _TYPES.get(self.status, _TYPES[500 if self.status >= 500 else 400])
        if is_anthropic(path):
            error = {"type": anthropic, "message": self.message}
            return {"type": "error", "error": error, "request_id": request_id}
        code = self.code or openai
        return {"error": {"message": self.message, "type": openai, "param": self.param, "code": code}}

    def response(self, path: str, request_id: str = "") -> Response:
        headers = {} if self.retry_after is None else {"retry-after": str(max(1, round(self.retry_after)))}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        status = 400 if self.status == 422 and is_anthropic(path) else self.status
        return Document(self.document(path, request_id), status, headers)


def is_anthropic(path: str) -> bool:
    """Whether clients of this path expect Anthropic's shapes."""
    return path.startswith(("/anthropic/", "/v1/messages"))


def api_error(error: Exception) -> ApiError:
    """What a client is told about an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error))
    if isinstance(error, FourfoldError):
        return ApiError(500, str(error))
    name = error.told.name if isinstance(error, EngineFault) else type(error).__name__
    return ApiError(500, f"the server has made a mistake ({name}); its log knows more")


class Document(Response):
    """A JSON document; what is no Unicode (lone surrogates) is written as an escape."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(written(content), status, headers)


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

HOLE = "\ue000"
"""The text in whose place a Form puts others: a character without a meaning."""


def written(content: Any) -> bytes:
    """JSON in UTF-8."""
    return _JSON.encode(content).encode("utf-8", "backslashreplace")


class Form:
    """JSON that was written once, with HOLE as its one text that changes."""

    def __init__(self, data: bytes) -> None:
        self._before, self._after = data.split(written(HOLE))

    def filled(self, text: str) -> bytes:
        return self._before + written(text) + self._after


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The error for what pydantic found: an unknown field is refused by its name, else the first fault."""
    for error in errors:
        path = [part for part in error["loc"] if part != "body"]
        if error["type"] == "extra_forbidden":
            name = _named(path)
            message = f"{name} is not supported; remove it"
            return ApiError(400, message, code="unknown_parameter", param=name)
    error = errors[0]
    path = [part for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":
        reason = (error.get("ctx") or {}).get("error", "")
        return ApiError(400, f"the body is no JSON: {reason} at character {path[0] if path else 0}")
    if error["type"] == "missing" and not path:
        return ApiError(400, "the body is empty; send a JSON object")
    name = _named(path)
    if error["type"] == "missing":
        return ApiError(422, f"{name} is missing", code="missing_parameter", param=name)
    value = repr(error.get("input"))
    shown = value if len(value) <= 80 else f"{value[:80]}…"
    message = f"{name or 'the body'} is {shown}: {error['msg']}"
    return ApiError(422, message, code="invalid_parameter", param=name or None)


def _named(path: Sequence[str | int]) -> str:
    """messages.0.content, without what pydantic calls the branches of a union (str, list[…], TextPart)."""
    *front, last = path or [""]
    kept = []
    for before, part in zip([None, *front], front, strict=False):
        a_branch = part in _BRANCHES or (isinstance(before, int) and part in _TAGS)
        if isinstance(part, int) or (not a_branch and re.fullmatch("[a-z_]+", part)):
            kept.append(str(part))
    return ".".join([*kept, *([] if last in _BRANCHES else [str(last)])])
