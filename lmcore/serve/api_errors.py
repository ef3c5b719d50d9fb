"""Errors of the API in OpenAI's format."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.responses import JSONResponse

from lmcore.errors import suggest
from lmcore.serve.openai_schema import CompletionRequest, StreamOptions

ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error response: the HTTP status, one line for the reader, and the field that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.code, self.headers = status, message, field, code, headers

    def respond(self) -> JSONResponse:
        """Return the response."""
        kind = ERROR_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        body = {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}
        return JSONResponse(body, self.status, headers=self.headers)


def explain_validation(details: Iterable[Mapping[str, Any]]) -> ApiError:
    """Return the first of the errors in the body of a completion request as a line: the field, the value, the rule."""
    first = next(iter(details))
    place = [str(part) for part in first["loc"][1:]]  # behind "body"
    field = place[0].encode(errors="replace").decode()[:100] if place else None
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    match first["type"]:
        case "json_invalid":
            reason = first.get("ctx", {}).get("error", "")
            return ApiError(400, f"the body is not valid JSON: {reason} at character {place[0] if place else '?'}")
        case "extra_forbidden":
            owner = CompletionRequest if place[:-1] == [] else StreamOptions
            remedy = suggest(place[-1], owner.model_fields, "known are")
            return ApiError(400, f"unknown field {'.'.join(place)[:100]!r}:{remedy}", field=field, code="unknown_field")
        case "model_type" | "model_attributes_type" | "missing" if field is None:
            return ApiError(400, "the body must be a JSON object with a prompt")
        case "value_error":
            return ApiError(400, f"{field}: {message}" if field else message, field=field)
        case "string_unicode":
            return ApiError(400, f"{field or 'the body'}: is not valid Unicode (half of a surrogate pair)", field=field)
    shown = repr(first["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return ApiError(400, f"{'.'.join(place)[:100]}={shown}: must be {message}", field=field)
