"""Cached decoding against recomputing everything, and the samples of a list of prompts."""

from collections.abc import Sequence

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, tokenizer_params
from torch import Tensor

from lmcore.errors import ArtifactError
from lmcore.generate.decode import Sample, build_cache, draw_samples, generate
from lmcore.generate.sampling import SampleParams
from lmcore.model.gpt import GPT
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.load import train_tokenizer

BLOCKS = {
    "gpt2": GPT2_MODEL,
    "modern": TINY_MODEL.model_copy(update={"n_kv_heads": None, "tie_embeddings": False}),
    "grouped": TINY_MODEL.model_copy(update={"tie_embeddings": False}),
}
NEVER = -1  # an end-of-text that no model says


def build_model(blocks: str = "gpt2", vocab_size: int = 257, context_length: int = 16, seed: int = 1) -> GPT:
    """A tiny model with weights large enough that greedy text is not one token over and over."""
    params = BLOCKS[blocks].model_copy(update={"context_length": context_length, "dropout": 0.1})
    model = GPT(params, vocab_size)
    model.initialise(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.dim() > 1 else 1)
    return model.eval()


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


@torch.no_grad()
def recompute(model: GPT, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy decoding that reads the whole window again for every token."""
    context_length = model.params.context_length
    tokens, window = list(prompt), list(prompt)
    for _ in range(count):
        if len(window) > context_length:
            window = tokens[-(context_length // 2) :]
        logits, _ = model(torch.tensor([window]))
        token = int(logits[0, -1].argmax())
        tokens.append(token)
        window.append(token)
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_params("byte"), [])


def build_params(prompts: list[str], **changes: object) -> SampleParams:
    values = {"samples_per_prompt": 2, "max_new_tokens": 12, "temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 1}
    return SampleParams.model_validate({"prompts": prompts, **values, **changes})


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 40])
def test_cached_is_recomputed(blocks: str, length: int) -> None:
    model = build_model(blocks)
    prompt = torch.randint(0, 257, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    new = list(generate(model, prompt, greedy, max_new_tokens=50, end_of_text=NEVER))
    assert new == recompute(model, prompt, 50)
    assert len(set(new)) > 5  # else the comparison says little


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("prefill", [1, 7, 15])
def test_cached_logits_are_the_whole_forward(blocks: str, prefill: int) -> None:
    model = build_model(blocks)
    tokens = torch.randint(0, 257, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, _ = model(tokens)
        cache = build_cache(model, batch=3)
        pieces = [tokens[:, :prefill], *(tokens[:, at : at + 1] for at in range(prefill, 16))]
        cached = torch.cat([model(piece, cache=cache)[0] for piece in pieces], dim=1)
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("context_length", [2, 3])
def test_the_smallest_contexts(context_length: int) -> None:
    model = build_model(context_length=context_length)
    new = list(generate(model, [1, 2, 3, 4], greedy, max_new_tokens=9, end_of_text=NEVER))
    assert new == recompute(model, [1, 2, 3, 4], 9)


def test_ends_before_end_of_text() -> None:
    model = build_model()
    new = list(generate(model, [65], greedy, max_new_tokens=30, end_of_text=NEVER))
    end = new[4]
    stopped = list(generate(model, [65], greedy, max_new_tokens=30, end_of_text=end))
    assert stopped == new[: new.index(end)]


def test_yields_as_it_goes_and_leaves_gradients_on() -> None:
    picked: list[int] = []

    def pick(logits: Tensor) -> Tensor:
        picked.append(len(picked))
        return greedy(logits)

    tokens = generate(build_model(), [65], pick, max_new_tokens=10, end_of_text=NEVER)
    next(tokens)
    assert picked == [0]
    assert not torch.is_inference_mode_enabled()
    next(tokens)
    assert picked == [0, 1]


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_sample_does_not_depend_on_the_list(blocks: str, tokenizer: Tokenizer) -> None:
    model = build_model(blocks)

    def texts(prompts: list[str], **changes: object) -> dict[tuple[str, int], Sample]:
        return {
            (one.prompt, one.number): one for one in draw_samples(model, tokenizer, build_params(prompts, **changes))
        }

    several = texts(["", "a", "def f(", "a" * 99])
    assert several == texts(["a" * 99, "def f(", "", "a"])
    assert several[("a", 2)] == texts(["a"], samples_per_prompt=5)[("a", 2)]
    assert several[("a", 1)].tokens != several[("a", 2)].tokens
    assert several[("a", 1)].tokens != texts(["a"], seed=2)[("a", 1)].tokens


@pytest.mark.parametrize(
    "prompt", ["", "def", "naïve 日本 🙂", "\x00\r\n\u2028", "<|endoftext|>", "\ud800 lone", "x" * 300]
)
def test_any_text_is_a_prompt(prompt: str, tokenizer: Tokenizer) -> None:
    samples = list(draw_samples(build_model(), tokenizer, build_params([prompt], max_new_tokens=40)))
    for sample in samples:
        assert sample.prompt == prompt.replace("\ud800", "\ufffd")
        assert sample.text.startswith(sample.prompt)
        assert all(0 <= token < 257 for token in sample.tokens)
        assert (sample.finish == "length") == (len(sample.tokens) == 40)
        sample.text.encode()


def test_an_empty_prompt_begins_a_document(tokenizer: Tokenizer) -> None:
    model = build_model()
    (sample,) = draw_samples(model, tokenizer, build_params([""], samples_per_prompt=1, temperature=0.0))
    start = [tokenizer.end_of_text]
    new = list(generate(model, start, greedy, max_new_tokens=12, end_of_text=tokenizer.end_of_text))
    assert sample.tokens == new
    assert sample.text == tokenizer.decode(new)


def test_a_sample_can_be_drawn_again_from_its_seed(tokenizer: Tokenizer) -> None:
    model = build_model()
    first, _ = draw_samples(model, tokenizer, build_params(["a"], top_k=None, top_p=None))
    generator = torch.Generator().manual_seed(first.seed)

    def pick(logits: Tensor) -> Tensor:
        cumulative = logits.double().softmax(-1).cumsum(-1)
        return torch.searchsorted(cumulative, torch.rand(1, 1, generator=generator, dtype=torch.float64))[0]

    end = tokenizer.end_of_text
    assert first.tokens == list(generate(model, [97], pick, max_new_tokens=12, end_of_text=end))


def test_half_a_character_at_the_end_is_marked(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcore.generate.decode.generate", lambda *_, **__: iter("é".encode()[:1]))
    (sample,) = draw_samples(build_model(), tokenizer, build_params(["caf"], samples_per_prompt=1))
    assert sample.text == "caf\ufffd"
    assert sample.finish == "end_of_text"


def test_a_long_prompt_is_told(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    list(draw_samples(build_model(), tokenizer, build_params(["x" * 16])))
    assert capsys.readouterr().err == ""
    list(draw_samples(build_model(), tokenizer, build_params(["x" * 17])))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "has 17 tokens, the model's context 16: continued from its last 8" in told


def test_a_foreign_tokenizer_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ArtifactError, match=r"vocabulary has 300 tokens, its tokenizer's 257: .*dvc repro"):
        list(draw_samples(build_model(vocab_size=300), tokenizer, build_params(["a"])))
