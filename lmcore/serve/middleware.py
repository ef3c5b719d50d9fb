"""What every request passes first: the key, the kind and the size of the body; and what is counted of each."""

import hmac
import re
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmcore.serve.api_errors import ApiError
from lmcore.serve.metrics import Metrics
from lmcore.serve.params import MOST_BODY_BYTES, Settings

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/", "/health")  # without a token: the page holds nothing, and asks for it
PATHS = (*OPEN_PATHS, "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")
GONE = 499  # nginx's number for a client that did not wait for its answer


class Gate:
    """Around the application; works on what is sent, before a body is read."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics
        self._api_key = settings.api_key.encode() if settings.api_key else None
        # Without a key, a page from elsewhere whose name is made to lead here (DNS rebinding) is no guest.
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        is_guarded = settings.is_local and not settings.api_key
        self._names = [*dict.fromkeys([*LOCAL_NAMES, own])] if is_guarded else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), GONE

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if refusal := self._refuse(scope):
                await refusal.respond()(scope, receive, watch)
            else:
                await self.app(scope, limit_body(receive), watch)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.monotonic() - started)

    def _refuse(self, scope: Scope) -> ApiError | None:
        """What is wrong by the head alone."""
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
            if length.isdigit() and int(length[:20]) > MOST_BODY_BYTES:
                return ApiError(413, explain_size())
        return None


def explain_size() -> str:
    """Of a body that is too large."""
    return f"the body is larger than {MOST_BODY_BYTES:,} bytes, the most that this server reads"


def limit_body(receive: Receive) -> Receive:
    """`receive` that raises for a body, of no announced length, which turns out too large."""
    size = 0

    async def count() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BODY_BYTES:
            raise HTTPException(413, explain_size())
        return message

    return count
