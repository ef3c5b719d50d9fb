"""`lmcore serve`: the address, the model, the server around them, and its end."""

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
from lmcore.generate.quantize import Weights
from lmcore.runtime.progress import say, warn
from lmcore.serve.api_errors import ApiError
from lmcore.serve.app import build_app
from lmcore.serve.connection_limits import Connection, Door, allow_connections
from lmcore.serve.engine import Engine
from lmcore.serve.metrics import Metrics
from lmcore.serve.open_model import open_model
from lmcore.serve.params import KEEP_ALIVE_SECONDS, Settings
from lmcore.tokenizer.base import Tokenizer

API_KEY_VARIABLE = "LMCORE_API_KEY"
BACKLOG = 2048
LAST_SECONDS = 5  # for the answers that the end of grace gives to arrive


def read_api_key(file: Path | None) -> str | None:
    """The key that clients must show: the file's one line, or LMCORE_API_KEY; None without either.

    Raises ParameterError for one that no header can hold.
    """
    if file is None:
        name, key = API_KEY_VARIABLE, os.environ.get(API_KEY_VARIABLE)
        if key is None:
            return None
    else:
        name = f"--api-key-file {file}"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is no text"
            raise ParameterError(f"{name}: {reason}: name a file with the key in it") from None
    if not (key.isascii() and key.isprintable() and key and " " not in key):
        raise ParameterError(f"{name}: must hold one word of ASCII characters, without spaces")
    return key


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; who connects waits until it is served. Raises ParameterError for an impossible address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no host name"
        raise ParameterError(f"--host {host}: {reason}") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)  # so that nobody else gets it while the model is read
    except OSError as error:
        bound.close()
        raise ParameterError(
            f"--host {host} --port {port}: {error.strerror}: choose another --port (0 takes a free one)"
        ) from None
    return bound


def locate(bound: socket.socket) -> str:
    """The address as a browser wants it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    settings: Settings,
    values: dict[str, Any],
    weights: Weights,
    *,
    batch: int,
    draft_tokens: int | None,
    compile: bool,  # noqa: A002
) -> None:
    """Serve a model until TERM or INT; `values` are all of params.yaml.

    Raises LmcoreError where the address, the model or its tokenizer cannot be had.
    """
    with contextlib.closing(bind(settings.host, settings.port)) as bound:
        settings = replace(settings, host=bound.getsockname()[0])  # a name, or 127.1, is an address by now
        if not settings.api_key and not settings.is_local:
            warn(f"who reaches {locate(bound)} may use the model: set {API_KEY_VARIABLE} or --api-key-file")
        decoder, tokenizer = open_model(
            settings.name, values, weights, batch=batch, draft_tokens=draft_tokens, compile=compile
        )
        build_server(decoder, tokenizer, settings).run([bound])


def build_server(decoder: Decoder, tokenizer: Tokenizer, settings: Settings) -> "Server":
    """What answers on a socket that listens."""
    metrics = Metrics()
    engine = Engine(decoder, tokenizer, settings.queue, metrics)
    door = Door(allow_connections(), metrics.connections)
    config = uvicorn.Config(
        build_app(engine, tokenizer, settings, metrics),
        http=type("OwnConnection", (Connection,), {"door": door}),
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
        timeout_graceful_shutdown=int(settings.grace) + LAST_SECONDS,
    )
    return Server(config, engine, settings)


class Server(uvicorn.Server):
    """uvicorn's, which says where it is, and ends as it is asked to: after what is being answered, or at once."""

    def __init__(self, config: uvicorn.Config, engine: Engine, settings: Settings) -> None:
        super().__init__(config)
        self.engine, self._settings = engine, settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        rows = self.engine.decoder.batch
        for bound in sockets or []:
            say(f"{self._settings.name} is served at {locate(bound)}, {rows} texts at once; Ctrl-C ends it")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new; what is open ends by itself within the time of grace, and with 503 then."""
        refusal = ApiError(503, "the server is being shut down", code="shutting_down")
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._settings.grace, self.engine.fail_all, refusal)
        await super().shutdown(sockets)
        timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """At a first signal, ask for the end; at a second one, end. The exit status does not tell of the first."""
        if self.should_exit:
            print(f"ended by a second {signal.Signals(sig).name}", file=sys.stderr, flush=True)
            os._exit(128 + sig)
        self.should_exit = True
