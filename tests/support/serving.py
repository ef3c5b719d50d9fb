"""Servers on free ports: in a thread of the test with a tiny model, whose engine can be looked into."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from lmcore.generate.open_decoder import open_decoder
from lmcore.model.gpt import GPT
from lmcore.serve.engine import Engine
from lmcore.serve.params import ServerParams
from lmcore.serve.server import bind, build_server
from lmcore.tokenizer.base import Tokenizer

MODEL_NAME = "models/tiny"
CONTEXT_LENGTH = 64


@dataclass
class Served:
    """A server that runs, and what is in it."""

    port: int
    engine: Engine
    model: GPT
    tokenizer: Tokenizer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.address}/v1", **options)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.address}/v1/completions", json=body, timeout=60, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def read_metric(self, name: str) -> float:
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


Start = Callable[..., Served]


@contextmanager
def serving(
    model: GPT, tokenizer: Tokenizer, batch: int = 8, draft_tokens: int | None = None, **params: Any
) -> Iterator[Served]:
    """A server in a thread, which must end well."""
    decoder = open_decoder(model, tokenizer, batch=batch, draft_tokens=draft_tokens)
    server = build_server(decoder, tokenizer, ServerParams(MODEL_NAME, **{"grace": 5.0, **params}))
    bound = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Served(bound.getsockname()[1], server.engine, model, tokenizer)
    finally:
        server.should_exit = True
        thread.join(240)
        assert not thread.is_alive()


def wait_until(is_so: Callable[[], bool], seconds: float = 240.0) -> None:
    """Return as soon as it is."""
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.01)


def is_idle(served: Served) -> bool:
    """Whether the engine holds no text, by what it tells Prometheus, and its decoder no row."""
    names = ("lmcore_waiting_texts", "lmcore_running_texts")
    return not any(served.read_metric(name) for name in names) and not served.engine.decoder.active
