"""Tokens per second and latencies of `lmcore serve` with one client, 8 and 64 at once, over the loopback.

    python -m benchmarks.serve                        # 10.6M parameters, random weights, a vocabulary of bytes
    python -m benchmarks.serve --shape small          # 0.8M, where the server's own work shows most
    python -m benchmarks.serve --no-stream            # whole answers

Server and clients are two processes on one machine, which share its cores. Each client sends its requests one after
the other. Every answer is checked: it has as many tokens as asked for, or an end of text, and is the same however many
clients there are. Run it on a quiet machine.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.steps import SHAPES, gpt2_params
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.tokenizer.byte import ByteTokenizer

try:
    import httpx
except ImportError:
    sys.exit("benchmarks.serve needs httpx: pip install httpx")

CONTEXT_LENGTH = 256


@dataclass
class Answer:
    """An answer's text, its tokens, and the seconds to its first piece and to its end."""

    text: str
    tokens: int
    first: float
    whole: float


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a random model and print a row for each number of clients in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=4, help="of each client, one after the other")
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--logprobs", type=int)
    parser.add_argument("--no-stream", action="store_true")
    parser.add_argument(
        "--serve", nargs="*", default=[], help="further arguments of lmcore serve, without their dashes"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place, run_server(Path(place), arguments) as address:
        texts: dict[int, str] = {}
        alone: float | None = None
        for clients in [1, *arguments.clients]:  # the first one warms up
            answers, seconds = asyncio.run(load(address, arguments, clients))
            for seed, answer in answers.items():
                assert texts.setdefault(seed, answer.text) == answer.text, f"request {seed} says another text"
            rate = sum(answer.tokens for answer in answers.values()) / seconds
            if alone is None:
                alone = 0.0
                continue
            alone = alone or rate
            print(describe(clients, list(answers.values()), rate, alone), flush=True)


@contextmanager
def run_server(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """Start a server in a process of its own and yield its address; check its exit status at the end."""
    tokenizer = ByteTokenizer.create()
    params = gpt2_params(arguments.shape, context_length=CONTEXT_LENGTH)
    save_model(folder, GPT(params, tokenizer.vocab_size, seed=1, end_of_text=tokenizer.end_of_text), {})
    tokenizer.save(folder)
    further = [f"--{word}" if not word[0].isdigit() else word for word in arguments.serve]
    command = [sys.executable, "-m", "lmcore", "serve", str(folder), "--port", "0", *further]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            yield next(word.rstrip(",") for word in line.split() if word.startswith("http://"))
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0, server.returncode


async def load(address: str, arguments: argparse.Namespace, clients: int) -> tuple[dict[int, Answer], float]:
    """Return all answers by their seeds, and the seconds that they took."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:

        async def work(number: int) -> dict[int, Answer]:
            seeds = [number * arguments.requests + place for place in range(arguments.requests)]
            return {seed: await ask(client, arguments, seed) for seed in seeds}

        started = time.perf_counter()
        found = await asyncio.gather(*map(work, range(clients)))
        seconds = time.perf_counter() - started
    answers = {seed: answer for some in found for seed, answer in some.items()}
    assert len(answers) == clients * arguments.requests
    return answers, seconds


async def ask(client: httpx.AsyncClient, arguments: argparse.Namespace, seed: int) -> Answer:
    """Send one request and read its answer to the end."""
    body: dict[str, Any] = {"prompt": f"Text {seed}:", "max_tokens": arguments.tokens, "seed": seed}
    if arguments.logprobs is not None:
        body["logprobs"] = arguments.logprobs
    if not arguments.no_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    started, first, events = time.perf_counter(), 0.0, []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, response.status_code
        async for line in response.aiter_lines():
            first = first or time.perf_counter() - started
            if line:
                events.append(line.removeprefix("data: "))
    whole = time.perf_counter() - started
    if not arguments.no_stream:
        assert events.pop() == "[DONE]"
    parts = list(map(json.loads, events))
    choices = [choice for part in parts for choice in part["choices"]]
    tokens, finish = parts[-1]["usage"]["completion_tokens"], choices[-1]["finish_reason"]
    assert finish == "stop" or tokens == arguments.tokens, (finish, tokens)
    return Answer("".join(choice["text"] for choice in choices), tokens, first, whole)


def describe(clients: int, answers: list[Answer], rate: float, alone: float) -> str:
    """`64 clients: 256 answers, 2,000 tokens/s (10.0 x one client's); ...`."""
    first, whole = ([getattr(answer, name) for answer in answers] for name in ("first", "whole"))
    shown = [
        f"{name} {np.percentile(values, 50):.3f} s, 95 % below {np.percentile(values, 95):.3f} s"
        for name, values in (("first token after", first), ("whole answer after", whole))
    ]
    return (
        f"{clients:3} clients: {len(answers)} answers, {rate:6,.0f} tokens/s, {rate / alone:4.1f} x; {'; '.join(shown)}"
    )


if __name__ == "__main__":
    main()
