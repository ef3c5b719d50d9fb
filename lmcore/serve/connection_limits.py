"""Connections that keep nobody out: bounded in number, and in the time that a request takes to come.

uvicorn has a time for what lies between two requests, and none for a request that never becomes whole.
"""

import asyncio
import resource
from typing import Any

from prometheus_client import Gauge
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmcore.serve.api_errors import ApiError
from lmcore.serve.params import MOST_CONNECTIONS, RECEIVE_SECONDS, STALL_SECONDS

SPARE_FILES = 64  # for all else that a server opens
BODY = bytes(ApiError(503, "too many connections are open: try again later", code="overloaded").respond().body)
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class Door:
    """Who is inside: at most `most` connections, those that have sent no whole request in the order of their coming."""

    def __init__(self, most: int, gauge: Gauge) -> None:
        self.most = most
        self.unheard: dict[Connection, None] = {}
        self._inside: set[Connection] = set()
        gauge.set_function(lambda: len(self._inside))

    def enter(self, connection: "Connection") -> bool:
        """Whether there is room, if need be that of the one that has been silent for longest."""
        if len(self._inside) >= self.most:
            if not self.unheard:
                return False
            next(iter(self.unheard)).hang_up()
        self._inside.add(connection)
        return True

    def leave(self, connection: "Connection") -> None:
        """It is gone."""
        self._inside.discard(connection)
        self.unheard.pop(connection, None)


class Connection(H11Protocol):
    """One of uvicorn's, which is hung up on when it has not sent a whole request, or taken an answer, in time."""

    door: Door  # of the server, whose subclass has it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, or answer 503."""
        self._due: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if self.door.enter(self):
            self._await_request()
        else:
            transport.write(BUSY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self.door.leave(self)
        for timer in (self._due, self._stalled):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request; with the first one after an answer the clock begins anew."""
        if self.timeout_keep_alive_task:
            self._await_request()
        super().data_received(data)
        self._note_request()

    def on_response_complete(self) -> None:
        """The next request may come, or have come already."""
        self._await_request()
        super().on_response_complete()
        self._note_request()

    def pause_writing(self) -> None:
        """More is sent than the client takes."""
        self._stalled = self.loop.call_later(STALL_SECONDS, self.hang_up)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has taken some."""
        if self._stalled:
            self._stalled.cancel()
        super().resume_writing()

    def hang_up(self) -> None:
        """Close it without another word, whatever it waits for."""
        self.door.leave(self)
        self.transport.abort()

    def _await_request(self) -> None:
        """From now on the clock runs."""
        if self._due:
            self._due.cancel()
        self._due = self.loop.call_later(RECEIVE_SECONDS, self._expire)
        self.door.unheard[self] = None

    def _note_request(self) -> None:
        """Stop the clock if a whole request is there, and is being answered."""
        cycle: Any = self.cycle
        if self._due and cycle is not None and not cycle.more_body and not cycle.response_complete:
            self._due.cancel()
            self.door.unheard.pop(self, None)

    def _expire(self) -> None:
        # Between two requests uvicorn's own clock runs.
        if self.timeout_keep_alive_task is None:
            self.hang_up()


def allow_connections() -> int:
    """Raise this process's limit of open files to what it may be; how many connections that leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - SPARE_FILES)
    return MOST_CONNECTIONS
