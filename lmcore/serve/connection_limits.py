"""Limits on connections: their number, the time to receive a whole request, and the time to send a response.

uvicorn has a timeout between two requests, and none for a request that is never completed.
"""

import asyncio
import resource
from typing import Any

from prometheus_client import Gauge
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmcore.serve.api_errors import ApiError
from lmcore.serve.params import MAX_CONNECTIONS, RECEIVE_SECONDS, STALL_SECONDS

SPARE_FILES = 64  # for everything else that a server opens
BODY = bytes(ApiError(503, "too many connections are open: try again later", code="overloaded").respond().body)
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class ConnectionLimiter:
    """At most `limit` open connections; `idle` are those without a whole request, the longest first."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        self.limit = limit
        self.idle: dict[Connection, None] = {}
        self._open: set[Connection] = set()
        gauge.set_function(lambda: len(self._open))

    def add(self, connection: "Connection") -> bool:
        """Accept a connection, if need be in place of the one that has been idle for longest; False if none is."""
        if len(self._open) >= self.limit:
            if not self.idle:
                return False
            next(iter(self.idle)).abort()
        self._open.add(connection)
        return True

    def remove(self, connection: "Connection") -> None:
        """Forget a closed connection."""
        self._open.discard(connection)
        self.idle.pop(connection, None)


class Connection(H11Protocol):
    """uvicorn's connection, aborted when the client has not sent a whole request, or read a response, in time."""

    limiter: ConnectionLimiter  # of the server, set in its subclass

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or respond 503."""
        self._due: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if self.limiter.add(self):
            self._await_request()
        else:
            transport.write(BUSY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self.limiter.remove(self)
        for timer in (self._due, self._stalled):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; the first one after a response restarts the timer."""
        if self.timeout_keep_alive_task:
            self._await_request()
        super().data_received(data)
        self._note_request()

    def on_response_complete(self) -> None:
        """Restart the timer for the next request, which may be there already."""
        self._await_request()
        super().on_response_complete()
        self._note_request()

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read."""
        self._stalled = self.loop.call_later(STALL_SECONDS, self.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop that timer."""
        if self._stalled:
            self._stalled.cancel()
        super().resume_writing()

    def abort(self) -> None:
        """Close the connection at once."""
        self.limiter.remove(self)
        self.transport.abort()

    def _await_request(self) -> None:
        """Start the timer."""
        if self._due:
            self._due.cancel()
        self._due = self.loop.call_later(RECEIVE_SECONDS, self._expire)
        self.limiter.idle[self] = None

    def _note_request(self) -> None:
        """Stop the timer if a whole request is there and the response has begun."""
        cycle: Any = self.cycle
        if self._due and cycle is not None and not cycle.more_body and not cycle.response_complete:
            self._due.cancel()
            self.limiter.idle.pop(self, None)

    def _expire(self) -> None:
        # Between two requests uvicorn's own timer runs.
        if self.timeout_keep_alive_task is None:
            self.abort()


def allow_connections() -> int:
    """Raise this process's limit of open files as far as allowed; return how many connections it leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - SPARE_FILES)
    return MAX_CONNECTIONS
