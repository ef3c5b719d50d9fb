"""Many clients at once: every one is answered, with the text that it would get alone."""

import asyncio
import random
from typing import Any

import openai
import pytest
from serving import MODEL_NAME, Served, Start, is_idle, wait_until
from tiny import WORDS

pytestmark = pytest.mark.xdist_group("serve")

REQUESTS = 3  # of each client


def build_request(number: int) -> dict[str, Any]:
    """Of any length and kind; every fifth client leaves in the middle of its stream."""
    source = random.Random(number)
    return {
        "model": MODEL_NAME,
        "prompt": [" ".join(source.choices(WORDS, k=source.randint(1, 9))) for _ in range(source.randint(1, 2))],
        "max_tokens": source.randint(1, 40),
        "temperature": source.choice([0, 0.7, 1.0]),
        "logprobs": source.choice([None, 0, 5]),
        "stop": source.choice([None, ["e"], ["ab", "\n"]]),
        "seed": number,
        "n": source.randint(1, 2),
    }


def count_texts(request: dict[str, Any]) -> int:
    return len(request["prompt"]) * request["n"]


async def ask(client: openai.AsyncOpenAI, number: int) -> list[str] | None:
    """The texts of a request, streamed or whole; None for a client that has left."""
    request = build_request(number)
    if number % 2:
        answer = await client.completions.create(**request)
        return [choice.text for choice in answer.choices]
    texts, ended = [""] * count_texts(request), 0
    async with await client.completions.create(**request, stream=True) as stream:
        async for part in stream:
            if number % 10 == 0:
                return None
            for choice in part.choices:
                texts[choice.index] += choice.text
                ended += choice.finish_reason is not None
    assert ended == len(texts)
    return texts


async def load(served: Served, clients: int) -> dict[int, list[str] | None]:
    async with openai.AsyncOpenAI(
        base_url=f"{served.address}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:

        async def work(first: int) -> dict[int, list[str] | None]:
            return {number: await ask(client, number) for number in range(first, first + REQUESTS)}

        found = await asyncio.gather(*(work(REQUESTS * number) for number in range(clients)))
    return {number: texts for some in found for number, texts in some.items()}


@pytest.mark.parametrize("clients", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_nothing_is_lost(start: Start, clients: int) -> None:
    served = start(batch=16, queue=4 * clients)
    answers = asyncio.run(load(served, clients))
    assert len(answers) == clients * REQUESTS
    wait_until(lambda: is_idle(served))
    alone = served.client()
    for number, texts in answers.items():
        if texts is not None and number % 7 == 0:
            assert [choice.text for choice in alone.completions.create(**build_request(number)).choices] == texts
    assert sum(texts is None for texts in answers.values()) == len(range(0, clients * REQUESTS, 10))
    assert served.read_metric("lmcore_time_to_first_token_seconds_count") >= sum(
        count_texts(build_request(number)) for number, texts in answers.items() if texts is not None
    )
