"""`lmcore serve`: the socket, the API key, the server, and its shutdown."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from lmcore.errors import ParameterError
from lmcore.generate.decoder import Decoder
from lmcore.runtime.progress import say, warn
from lmcore.serve.api_errors import ApiError
from lmcore.serve.app import build_app
from lmcore.serve.connection_limits import Connection, ConnectionLimiter, allow_connections
from lmcore.serve.engine import Engine
from lmcore.serve.metrics import Metrics
from lmcore.serve.open_model import open_model
from lmcore.serve.params import KEEP_ALIVE_SECONDS, ServerParams
from lmcore.tokenizer.base import Tokenizer

API_KEY_VARIABLE = "LMCORE_API_KEY"
BACKLOG = 2048
LAST_SECONDS = 5  # after the grace period, for the last responses to arrive


def read_api_key(file: Path | None) -> str | None:
    """Return the key that clients must send: the file's one line, or LMCORE_API_KEY; None without either.

    Raises ParameterError for one that no header can hold.
    """
    name, key = API_KEY_VARIABLE, os.environ.get(API_KEY_VARIABLE)
    if file is not None:
        name = f"--api-key-file {file}"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is no text"
            raise ParameterError(f"{name}: {reason}: name a file with the key in it") from None
    if key is None:
        return None
    if not (key.isascii() and key.isprintable() and key and " " not in key):
        raise ParameterError(f"{name}: must hold one word of ASCII characters, without spaces")
    return key


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; clients that connect wait until they are served. Raises ParameterError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no host name"
        raise ParameterError(f"--host {host}: {reason}") from None
    try:  # it listens from here on, so that no other process takes the port while the model is loaded
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=family is socket.AF_INET6)
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # without create_server's addition
        raise ParameterError(
            f"--host {host} --port {port}: {reason}: choose another --port (0 takes a free one)"
        ) from None


def locate(bound: socket.socket) -> str:
    """Return the address for a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    params: ServerParams,
    values: dict[str, Any],
    weights: str,
    *,
    batch: int,
    draft_tokens: int | None,
    compile: bool,  # noqa: A002
) -> None:
    """Serve a model until TERM or INT; `values` are all of params.yaml.

    Raises LmcoreError for an address, a model or a tokenizer that cannot be opened.
    """
    with contextlib.closing(bind(params.host, params.port)) as bound:
        params = replace(params, host=bound.getsockname()[0])  # a name, or 127.1, is an address by now
        if not params.api_key and not params.is_local:
            warn(f"who reaches {locate(bound)} may use the model: set {API_KEY_VARIABLE} or --api-key-file")
        decoder, tokenizer = open_model(
            params.name, values, weights, batch=batch, draft_tokens=draft_tokens, compile=compile
        )
        build_server(decoder, tokenizer, params).run([bound])


def build_server(decoder: Decoder, tokenizer: Tokenizer, params: ServerParams) -> "Server":
    """Return the server of a decoder."""
    metrics = Metrics()
    engine = Engine(decoder, tokenizer, params.queue, metrics)
    limiter = ConnectionLimiter(allow_connections(), metrics.connections)
    config = uvicorn.Config(
        build_app(engine, tokenizer, params, metrics),
        http=type("OwnConnection", (Connection,), {"limiter": limiter}),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(params.grace) + LAST_SECONDS,
    )
    return Server(config, engine, params)


class Server(uvicorn.Server):
    """uvicorn's server; it prints its address, and finishes open requests before it ends."""

    def __init__(self, config: uvicorn.Config, engine: Engine, params: ServerParams) -> None:
        super().__init__(config)
        self.engine, self._params = engine, params

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests."""
        await super().startup(sockets)
        batch = self.engine.decoder.batch
        for bound in sockets or []:
            say(f"{self._params.name} is served at {locate(bound)} with batch {batch}; Ctrl-C ends it")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more requests; fail with 503 those that are not finished within the grace period."""
        error = ApiError(503, "the server is being shut down", code="shutting_down")
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._params.grace, self.engine.fail_all, error)
        await super().shutdown(sockets)
        timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Shut down at a first signal, with exit status 0; exit at once at a second."""
        if self.should_exit:
            print(f"ended by a second {signal.Signals(sig).name}", file=sys.stderr, flush=True)
            os._exit(128 + sig)
        self.should_exit = True
