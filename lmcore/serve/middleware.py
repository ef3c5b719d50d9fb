"""Middleware: checks the API key, the host, and the type and size of the body, and counts the responses."""

import hmac
import re
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmcore.serve.api_errors import ApiError
from lmcore.serve.metrics import Metrics
from lmcore.serve.params import MAX_BODY_BYTES, ServerParams

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/", "/health")  # without the key: the page holds no data, and asks for it
PATHS = (*OPEN_PATHS, "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")
TOO_LARGE = f"the body is larger than {MAX_BODY_BYTES:,} bytes, the most that this server reads"
CLIENT_CLOSED = 499  # nginx's status for a client that did not wait for the response


class RequestFilter:
    """ASGI middleware; rejects a request before its body is read."""

    def __init__(self, app: ASGIApp, params: ServerParams, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics
        self._api_key = params.api_key.encode() if params.api_key else None
        # Without a key, against DNS rebinding: a foreign page whose host name resolves to this machine.
        own = f"[{params.host}]" if ":" in params.host else params.host
        is_guarded = params.is_local and not params.api_key
        self._names = [*dict.fromkeys([*LOCAL_NAMES, own])] if is_guarded else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), CLIENT_CLOSED

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if error := self._check(scope):
                await error.respond()(scope, receive, watch)
            else:
                await self.app(scope, limit_body(receive), watch)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.monotonic() - started)

    def _check(self, scope: Scope) -> ApiError | None:
        """Return the error of the request's headers, None without one."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._api_key and scope["path"] not in OPEN_PATHS:
            kind, _, token = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._api_key):
                return ApiError(
                    401,
                    "this server wants its key: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        name = re.sub(r":\d*$", "", headers.get(b"host", b"localhost").decode("latin-1"))
        if self._names and name not in self._names:
            return ApiError(403, f"Host={name[:60]!r}: this server is for this machine, as {', '.join(self._names)}")
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                shown = kind.decode("ascii", "replace")[:60]
                return ApiError(415, f"Content-Type={shown!r}: must be application/json")
            length = headers.get(b"content-length", b"")
            if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
                return ApiError(413, TOO_LARGE)
        return None


def limit_body(receive: Receive) -> Receive:
    """Return a `receive` that raises for a body without Content-Length that turns out too large."""
    size = 0

    async def count() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, TOO_LARGE)
        return message

    return count
