"""What a server refuses: one line in OpenAI's shape, whatever comes, and it goes on."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving import MODEL_NAME, Served, Start, is_idle, serving, wait_until

from lmcore.model.gpt import GPT
from lmcore.serve.engine import ENGINE_FAILED
from lmcore.serve.params import MAX_BODY_BYTES
from lmcore.tokenizer.base import Tokenizer

pytestmark = pytest.mark.xdist_group("serve")

LIMITS = {"batch": 8, "queue": 8, "max_tokens": 100}
BODIES: list[tuple[Any, str]] = [
    ({"temprature": 1}, "unknown field 'temprature': did you mean temperature?"),
    ({"zzz": 1}, "unknown field 'zzz': known are model, prompt, "),
    (
        {"stream": True, "stream_options": {"include_usge": True}},
        "include_usge': did you mean include_",
    ),
    ({"include_usage": True}, "unknown field 'include_usage': known are model, "),
    (
        {"stream_options": {"zzz": 1}},
        "unknown field 'stream_options.zzz': known are include_usage, include_obfuscation",
    ),
    ({"temperature": -0.5}, "temperature=-0.5: must be greater than or equal to 0"),
    ({"temperature": float("nan")}, "temperature=nan: must be a finite number"),
    ({"temperature": "hot"}, "temperature='hot': must be a valid number"),
    ({"top_p": 0}, "top_p=0: must be greater than 0"),
    ({"n": 0}, "n=0: must be greater than or equal to 1"),
    ({"n": 17}, "1 prompts with n=17 are 17 texts: this server takes at most 16 at once"),
    ({"prompt": ["a"] * 9, "n": 2}, "9 prompts with n=2 are 18 texts"),
    ({"max_tokens": 101}, "max_tokens=101: this server gives at most 100"),
    ({"max_tokens": 0}, "max_tokens=0: nothing is asked for without echo=true"),
    ({"logprobs": 21}, "logprobs=21: must be less than or equal to 20"),
    ({"prompt": []}, "prompt: must be a text, a list of texts, a list of token ids, or a list of such lists"),
    ({"prompt": [1, True]}, "prompt: must be a text"),
    ({"prompt": ["a", [1]]}, "prompt: must be a text"),
    ({"prompt": {"a": 1}}, "prompt: must be a text"),
    ({"prompt": "\ud800"}, "prompt: is not valid Unicode"),
    ({"stop": "\udfff"}, "stop: must be a text or a list of texts"),
    ({"\ud800": 1}, "the body: is not valid Unicode"),
    ({"model": "\ud800"}, r"the model '\ud800' is not served here"),
    ({"prompt": [0, 257]}, "the token 257 is not in the vocabulary: must be 0 to 256"),
    ({"prompt": [-1]}, "the token -1 is not in the vocabulary"),
    ({"prompt": [10**400]}, "is not in the vocabulary"),
    ({"prompt": "a" * 65}, "the prompt has at least 65 tokens, the model's context 64: shorten it"),
    ({"prompt": [1] * 65}, "the prompt has 65 tokens, the model's context 64: shorten it"),
    ({"stop": ["a", ""]}, "stop: '' is in every text"),
    ({"stop": ["a"] * 17}, "stop: has 17 texts, at most 16"),
    ({"stop": 1}, "stop: must be a text or a list of texts"),
    ({"presence_penalty": 0.5}, "presence_penalty: is not supported here, leave it out"),
    ({"frequency_penalty": -1}, "frequency_penalty: is not supported here"),
    ({"logit_bias": {"50256": -100}}, "logit_bias: is not supported here"),
    ({"suffix": "end"}, "suffix: is not supported here"),
    ({"best_of": 3}, "best_of=3: is not supported beyond n"),
    ({"stream_options": {"include_usage": True}}, "stream_options: is for stream=true alone"),
    (["a"], "the body must be a JSON object"),
    ("a", "the body must be a JSON object"),
    (None, "the body must be a JSON object"),
]


@pytest.fixture(scope="module")
def limited(model: GPT, tokenizer: Tokenizer) -> Iterator[Served]:
    with serving(model, tokenizer, **LIMITS) as served:
        yield served


@pytest.mark.parametrize(("body", "message"), BODIES)
def test_a_mistake_is_one_line(limited: Served, body: Any, message: str) -> None:
    answer = httpx.post(
        f"{limited.address}/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == (404 if "not served" in message else 400)
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["message"].count("\n") == 0
    assert len(error["message"]) < 400
    assert error.keys() == {"message", "type", "param", "code"}
    if isinstance(body, dict) and error["param"]:
        assert error["param"].replace("?", "\ud800") in body


def test_more_figures_than_memory_is_for(start: Start) -> None:
    served = start(queue=100, max_tokens=4000)
    answer = served.post({"prompt": "a", "n": 10, "max_tokens": 4000, "logprobs": 20})
    message = "logprobs=20 of 40,000 tokens in all are 840,000 figures: this server gives at most 500,000 at once"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_what_asks_for_nothing_is_accepted(served: Served) -> None:
    neutral = {"best_of": 2, "n": 2, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "suffix": ""}
    ours = {"top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1, "user": "me", "logprobs": None, "stop": None}
    answer = served.post({"prompt": "a", "seed": 1, **neutral, **ours})
    assert answer.status_code == 200
    assert answer.json()["choices"] == served.post({"prompt": "a", "seed": 1, "n": 2}).json()["choices"]


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff\xfe", b"{'a': 1}", b"[" * 100_000, b'{"prompt": "a"} b'])
def test_what_is_not_json(served: Served, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{served.address}/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert re.search(r"not valid JSON|error parsing the body|must be a JSON object", answer.json()["error"]["message"])


def test_other_kinds_of_bodies_and_ways(served: Served) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = httpx.post(f"{served.address}/v1/completions", content=b'{"prompt":"a"}', headers=headers)
        assert (answer.status_code, "must be application/json" in answer.text) == (415, True)
    assert httpx.get(f"{served.address}/v1/completions").status_code == 405
    missing = httpx.get(f"{served.address}/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "GET /v1/nothing: Not Found")
    assert "access-control-allow-origin" not in httpx.get(served.address, headers={"Origin": "http://else"}).headers


def test_a_large_body_is_not_read(served: Served) -> None:
    answer = served.post({"prompt": "a" * 10_000_000})
    assert answer.status_code == 413
    assert "larger than 4,194,304 bytes" in answer.json()["error"]["message"]

    def pieces() -> Any:  # of no announced length
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            yield b"a" * 65536

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{served.address}/v1/completions", content=pieces(), headers=headers)
    assert answer.status_code == 413


def test_a_full_queue(start: Start) -> None:
    """What does not fit behind the active ones is refused at once, and accepted when there is room again."""
    served = start(delay=0.05, **LIMITS)
    client = served.client()
    values: dict[str, Any] = {"model": MODEL_NAME, "prompt": "a", "max_tokens": 90, "stream": True}
    streams = [client.completions.create(n=2, seed=seed, **values) for seed in range(4)]
    with pytest.raises(openai.BadRequestError, match="takes at most 16"):
        client.completions.create(model=MODEL_NAME, prompt="a", n=17)
    with pytest.raises(
        openai.RateLimitError, match=r"\d texts are active or waiting, of 16, and this asks for 16"
    ) as caught:
        client.completions.create(model=MODEL_NAME, prompt="a", n=16)
    assert caught.value.response.headers["Retry-After"] == "1"
    assert caught.value.code == "queue_full"
    for stream in streams:
        stream.close()
    wait_until(lambda: is_idle(served))
    assert len(client.completions.create(model=MODEL_NAME, prompt="a", n=9, max_tokens=2).choices) == 9


def test_a_key(start: Start) -> None:
    served = start(api_key="secret-word")
    for headers in (
        {},
        {"Authorization": "Bearer secret-wor"},
        {"Authorization": "secret-word"},
        {"Authorization": "ä"},
    ):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        for path in ("/v1/models", "/v1/completions", "/metrics", "/nothing"):
            answer = httpx.get(served.address + path, headers=encoded)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{served.address}/health").status_code == 200
    assert httpx.get(served.address).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        served.client(api_key="else").models.list()
    client = served.client(api_key="secret-word")
    answer = client.completions.create(model=MODEL_NAME, prompt="a", max_tokens=3, temperature=0)
    assert answer.usage.completion_tokens == 3


def test_a_page_from_elsewhere_has_another_name(served: Served, start: Start) -> None:
    """Its own name, which leads here now; a server with a key may have any name."""
    for name in ("localhost", f"localhost:{served.port}", f"127.0.0.1:{served.port}", f"[::1]:{served.port}"):
        assert httpx.get(f"{served.address}/v1/models", headers={"Host": name}).status_code == 200
    for name in ("evil.example", f"evil.example:{served.port}", "localhost.evil.example", ""):
        answer = httpx.get(f"{served.address}/v1/models", headers={"Host": name})
        assert (answer.status_code, "this server is for this machine" in answer.text) == (403, True)
    keyed = start(api_key="word")
    headers = {"Host": "models.example", "Authorization": "Bearer word"}
    assert httpx.get(f"{keyed.address}/v1/models", headers=headers).status_code == 200


def test_a_failed_engine_answers_all_and_says_so(start: Start) -> None:
    """Those who wait, those who read a stream and those who come later; nobody hangs."""
    served = start(delay=0.05, batch=2, queue=8)
    client = served.client()
    stream = client.completions.create(model=MODEL_NAME, prompt="a", n=2, max_tokens=60, stream=True)
    next(stream)

    def fail() -> Any:
        raise RuntimeError("no memory left")

    served.engine.decoder.step = fail  # type: ignore[method-assign]
    for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
        answer = served.post(body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, ENGINE_FAILED)
    with pytest.raises(openai.APIError, match="the model failed"):
        list(stream)
    health = httpx.get(f"{served.address}/health")
    assert (health.status_code, health.json()) == (503, {"status": "failed", "reason": "RuntimeError"})
