"""The API as OpenAI's own client sees it; its texts are those of the sample stage, whatever is decoded beside them."""

import itertools
import threading
from typing import Any

import httpx
import openai
import pytest
import torch
from serving import MODEL_NAME, Served, Start
from tiny import WORDS

from lmcore.generate.params import SampleParams
from lmcore.generate.samples import draw_samples
from lmcore.params import parse_section

pytestmark = pytest.mark.xdist_group("serve")

SETTINGS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1}
PROMPTS = ["the cat", "and saw żółć", ""]


def ask(served: Served, **values: Any) -> Any:
    """A completion through the client; what OpenAI does not know goes as its `extra_body`."""
    own = {key: values.pop(key) for key in ("top_k", "min_p", "repetition_penalty") if key in values}
    values = {"model": MODEL_NAME, "prompt": "the cat", "max_tokens": 20, "seed": 7, **values}
    return served.client().completions.create(**values, extra_body=own or None)


def draw(served: Served, prompts: list[str], stop: list[str] | None = None, **changes: Any) -> list[Any]:
    """What the sample stage makes of the same settings, two of each prompt."""
    further = {
        "stop": stop or [],
        "draft_tokens": None,
        "decoder": "plain",
        "weights": "float32",
        "seed": 7,
        "max_new_tokens": 20,
    }
    section = {"prompts": prompts, "samples_per_prompt": 2, **SETTINGS, **further, **changes}
    samples, _ = draw_samples(served.model, served.tokenizer, parse_section(SampleParams, "sample", section))
    return [sample.completion for sample in samples]


def test_texts_are_those_of_the_sample_stage(served: Served) -> None:
    drawn = draw(served, PROMPTS)
    answer = ask(served, prompt=PROMPTS, n=2, **SETTINGS)
    assert [choice.text for choice in answer.choices] == [one.text for one in drawn]
    assert [choice.index for choice in answer.choices] == list(range(6))
    reasons = {"length": "length", "end_of_text": "stop"}
    assert [choice.finish_reason for choice in answer.choices] == [reasons[one.finish] for one in drawn]
    assert len({choice.text for choice in answer.choices}) == 6
    prompt_tokens = sum(len(served.tokenizer.encode(prompt)) or 1 for prompt in PROMPTS)
    assert answer.usage.prompt_tokens == prompt_tokens
    new = sum(len(one.tokens) + (one.finish == "end_of_text") for one in drawn)
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (new, prompt_tokens + new)


def test_what_is_decoded_beside_it_changes_nothing(served: Served) -> None:
    expected = [one.text for one in draw(served, PROMPTS)]
    enough = threading.Event()

    def disturb(number: int) -> None:
        for seed in itertools.count():
            if enough.is_set():
                return
            ask(served, prompt=" ".join(WORDS[: number + seed % 4]), max_tokens=5 + seed % 30, seed=seed, top_k=5)

    others = [threading.Thread(target=disturb, args=(number,)) for number in range(3)]
    for other in others:
        other.start()
    for _ in range(5):
        assert [choice.text for choice in ask(served, prompt=PROMPTS, n=2, **SETTINGS).choices] == expected
    enough.set()
    for other in others:
        other.join()


@pytest.mark.parametrize("stop", [[], ["e"], ["?", "\n", "T"]])
def test_a_stream_is_the_text_in_pieces(start: Start, stop: list[str]) -> None:
    served = start(delay=0.01)  # or tokens that come while a machine is busy share an event
    values = {"prompt": PROMPTS, "n": 2, "stop": stop or None, "logprobs": 3, "max_tokens": 30}
    whole = ask(served, **values)
    texts, tokens, reasons = [""] * 6, [[] for _ in range(6)], [[] for _ in range(6)]
    *parts, last = ask(served, **values, stream=True, stream_options={"include_usage": True})
    for part in parts:
        assert part.usage is None
        for choice in part.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            reasons[choice.index].append(choice.finish_reason)
    assert len(parts) > 20
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert [one[-1] for one in reasons] == [choice.finish_reason for choice in whole.choices]
    assert not any(reason for one in reasons for reason in one[:-1])
    assert (last.choices, last.usage) == ([], whole.usage)


def test_drafts_change_nothing(served: Served, start: Start) -> None:
    """Several tokens of a step, of which the last ones may come after the end."""
    drafting = start(draft_tokens=4)
    for stop in (None, ["e", "\n"]):
        values = {"prompt": ["the cat the cat the", "a a a a"], "n": 2, "max_tokens": 60, "stop": stop, "logprobs": 2}
        first, second = (ask(each, **values, temperature=0.7) for each in (served, drafting))
        assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
        assert [choice.logprobs.tokens for choice in first.choices] == [
            choice.logprobs.tokens for choice in second.choices
        ]
        assert first.usage == second.usage
    assert drafting.engine.decoder.stats.accepted > 0


def test_a_text_ends_before_its_stop_string(served: Served) -> None:
    whole = ask(served, max_tokens=40).choices[0].text
    stop = whole[10:12]
    for stops in (stop, [stop], ["never so", stop, whole[14:20]]):
        choice = ask(served, max_tokens=40, stop=stops, logprobs=1).choices[0]
        assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
        assert choice.logprobs.text_offset[-1] < len(choice.text)


def test_the_same_prompt_in_four_forms(served: Served) -> None:
    tokens = served.tokenizer.encode("the cat")
    forms: list[Any] = ["the cat", ["the cat"], tokens, [tokens]]
    assert len({ask(served, prompt=form).choices[0].text for form in forms}) == 1
    assert ask(served, prompt=["the cat", "a"]).choices[0].text == ask(served, prompt=tokens).choices[0].text


def test_without_a_seed_every_text_is_another(served: Served) -> None:
    assert len({ask(served, seed=None).choices[0].text for _ in range(4)}) == 4


@torch.inference_mode()
def measure(served: Served, tokens: list[int]) -> torch.Tensor:
    """The log-probabilities (T, V) after each token, computed at once and without the engine."""
    logits, _ = served.model(torch.tensor([tokens]))
    return logits[0].log_softmax(-1)


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_logprobs_are_the_models(served: Served, echo: bool, count: int) -> None:
    prompt = "a żółć"
    choice = ask(served, prompt=prompt, logprobs=count, echo=echo, seed=3).choices[0]
    told = choice.logprobs
    before = served.tokenizer.encode(prompt)
    spelled = [read_spelling(token) for token in told.tokens]
    text = b"".join(spelled).decode(errors="replace")
    new = spelled[len(before) :] if echo else spelled
    assert choice.text == text
    assert choice.text.startswith(prompt) == echo
    assert len(new) == 20
    own = [*before, *(token for spelling in new for token in spelling)]  # a token is its byte
    expected = measure(served, own)
    first = 1 if echo else len(before)
    if echo:
        assert told.token_logprobs[0] is None
        assert told.text_offset[: len(before)] == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    skipped = 1 if echo else 0
    values = [float(expected[place - 1, own[place]]) for place in range(first, len(own))]
    assert told.token_logprobs[skipped:] == pytest.approx(values, abs=1e-4)
    ends = [*told.text_offset[1:], len(choice.text)]
    for spelling, start, end in zip(spelled, told.text_offset, ends, strict=True):
        if spelling.isascii():  # after a part of a character that never became whole, which it shows
            assert choice.text[start:end].removeprefix("\ufffd") == spelling.decode()
    if not count:
        assert told.top_logprobs is None
        return
    for place, listed in zip(range(first, len(own)), told.top_logprobs[skipped:], strict=True):
        best = (found.tolist() for found in expected[place - 1].topk(count))
        names = {bytes([token]) if token < 256 else b"<|endoftext|>": value for value, token in zip(*best, strict=True)}
        names[bytes([own[place]])] = float(expected[place - 1, own[place]])
        assert {read_spelling(name): value for name, value in listed.items()} == pytest.approx(names, abs=1e-4)


def read_spelling(token: str) -> bytes:
    """`bytes:\\xc5` -> its byte."""
    return bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()


def test_an_end_of_text_is_told_with_the_tokens_and_not_with_the_text(served: Served) -> None:
    for seed in range(200):
        choice = ask(served, seed=seed, temperature=3, max_tokens=50, logprobs=0).choices[0]
        if choice.finish_reason == "stop":
            assert choice.logprobs.tokens[-1] == "<|endoftext|>"
            assert choice.logprobs.text_offset[-1] == len(choice.text)
            return
    pytest.fail("no text came to its end")


def test_nothing_new_can_be_asked_for(served: Served) -> None:
    """OpenAI's way to have a text measured."""
    answer = ask(served, prompt="the cat", max_tokens=0, echo=True, logprobs=1)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("the cat", "length")
    assert len(answer.choices[0].logprobs.token_logprobs) == 7
    assert answer.usage.completion_tokens == 0


def test_the_page_comes_from_here_alone(served: Served) -> None:
    answer = httpx.get(served.address)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "/v1/completions" in answer.text


def test_models(served: Served) -> None:
    assert [model.id for model in served.client().models.list()] == [MODEL_NAME]
    assert served.client().models.retrieve(MODEL_NAME).owned_by == "lmcore"
    with pytest.raises(openai.NotFoundError, match="'gpt-5' is not served here, 'models/tiny' is"):
        served.client().models.retrieve("gpt-5")


def test_a_chat_is_refused(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match=r"a base model, .* use /v1/completions"):
        served.client().chat.completions.create(model=MODEL_NAME, messages=[{"role": "user", "content": "hi"}])


def test_the_client_raises_its_own_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="'x' is not served here"):
        ask(served, model="x")
    with pytest.raises(openai.BadRequestError, match="temperature=-1: must be greater than or equal to 0") as caught:
        ask(served, temperature=-1)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
