"""TiDAR's decoders say what a plain decoder says: token for token, at any temperature, in one forward and in two."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, sharpen, tokenizer_params

from lmcore.errors import ParameterError
from lmcore.generate import decoder as decoders
from lmcore.generate.decoder import Decoder, Request
from lmcore.generate.open_decoder import open_decoder
from lmcore.generate.quantize import convert_weights
from lmcore.generate.sampling import Sampling
from lmcore.generate.tidar import TidarDecoder, TidarOneForwardDecoder
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

# In float64, in which QK-norm is not computed.
ROTARY = TINY_MODEL.model_copy(update={"qk_norm": False})
MODELS = {
    "learned": GPT2_MODEL,
    "rotary": ROTARY,
    "documents": ROTARY.model_copy(update={"document_mask": True}),
}
GREEDY = Sampling(temperature=0)
DRAWN = Sampling(temperature=1.0, top_k=2, repetition_penalty=1.3)
each_way = pytest.mark.parametrize("kind", [TidarDecoder, TidarOneForwardDecoder])
each_model = pytest.mark.parametrize("name", MODELS)


def build(params: ModelParams, size: int, vocab_size: int = 3, context_length: int = 40, seed: int = 2) -> GPT:
    """With few tokens, of which a model that has learnt nothing guesses some right too."""
    diffusion = params.diffusion.model_copy(update={"block_size": size})
    changed = params.model_copy(update={"diffusion": diffusion, "context_length": context_length})
    return sharpen(GPT(changed, vocab_size, seed, end_of_text=0)).double()


def mixed_requests(sampling: Sampling) -> list[Request]:
    """Shorter and longer than the context, more than are decoded at once, two of them of one prompt."""
    prompts = [[1], [2, 1], [1, 0, 2], [1, 2] * 30, [2, 1]]
    return [Request(prompt, 20 + 15 * place, sampling, seed=place) for place, prompt in enumerate(prompts)]


def decode(decoder: Decoder, requests: Sequence[Request]) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in requests]
    for token in decoder.decode(requests):
        texts[token.key].append(token.token)
    return texts


@each_way
@each_model
@pytest.mark.parametrize(
    "sampling", [pytest.param(GREEDY, id="greedy", marks=pytest.mark.slow), pytest.param(DRAWN, id="drawn")]
)
def test_the_text_is_a_plain_decoders(name: str, sampling: Sampling, kind: type[TidarDecoder]) -> None:
    """T6, with none, some and all of the guesses right; over the end of the context, and four at a time."""
    given = set()
    for size in (2, 4, 7):
        model, requests = build(MODELS[name], size), mixed_requests(sampling)
        expected = decode(Decoder(model, batch=4, end_of_text=-1), requests)
        decoder = kind(model, batch=4, end_of_text=-1)
        assert decode(decoder, requests) == expected
        assert decoder.stats.tokens == sum(map(len, expected))
        assert max(decoder.stats.given) <= size
        given |= {(count > 1) + (count == size) for count in decoder.stats.given}
    assert given == {0, 1, 2}


@each_way
def test_it_ends_where_a_plain_decoder_ends(kind: type[TidarDecoder]) -> None:
    model, requests = build(ROTARY, 4), mixed_requests(DRAWN)
    expected = decode(Decoder(model, batch=2, end_of_text=0), requests)
    assert {text[-1] for text in expected} == {0}
    decoder = kind(model, batch=2, end_of_text=0)
    assert decode(decoder, requests) == expected


@each_way
def test_ids_that_stand_for_nothing_are_not_guessed_either(kind: type[TidarDecoder]) -> None:
    """T12: and the mask, which is no token at all, least of them."""
    model, requests = build(ROTARY, 4, vocab_size=6), mixed_requests(DRAWN)
    decoder = kind(model, batch=4, end_of_text=-1, allowed=[1, 2, 4])
    texts = decode(decoder, requests)
    assert {token for text in texts for token in text} <= {1, 2, 4}
    assert texts == decode(Decoder(model, batch=4, end_of_text=-1, allowed=[1, 2, 4]), requests)


LENGTH, VOCABULARY = 4, 3


def list_laws(model: GPT, prompt: list[int]) -> dict[tuple[int, ...], tuple[float, list[float]]]:
    """For each text of LENGTH tokens its probability, and draws in the middle of each of its tokens' intervals."""
    laws = {}
    for text in product(range(VOCABULARY), repeat=LENGTH):
        logits = model(torch.tensor([[*prompt, *text]]))[0][0, len(prompt) - 1 : -1]
        probabilities = logits.double().softmax(-1)
        ends = probabilities.cumsum(-1)
        place = (torch.arange(LENGTH), torch.tensor(text))
        middle = ends[place] - probabilities[place] / 2
        laws[text] = (probabilities[place].prod().item(), middle.tolist())
    return laws


@each_way
@torch.no_grad()
def test_every_draw_gives_the_text_that_it_stands_for(kind: type[TidarDecoder]) -> None:
    """T8: the intervals of draws that give the texts are those of the autoregressive law, as a whole of measure 1."""
    model, prompt = build(GPT2_MODEL, 3), [1, 2]
    laws = list_laws(model, prompt)
    assert sum(law for law, _ in laws.values()) == pytest.approx(1, abs=1e-12)
    requests = [Request(prompt, LENGTH, Sampling()) for _ in laws]
    decoder = kind(model, batch=len(laws), end_of_text=-1)
    texts: list[list[int]] = [[] for _ in laws]
    for key, ((_, draws), request) in enumerate(zip(laws.values(), requests, strict=True)):
        decoder.admit(key, request)
        decoder.active[-1].draws = np.array(draws)
    while decoder.active:
        for token in decoder.step():
            texts[token.key].append(token.token)
    likely = {text: place for place, (text, (law, _)) in enumerate(laws.items()) if law > 1e-12}
    assert len(likely) > 20
    assert {text: tuple(texts[place]) for text, place in likely.items()} == {text: text for text in likely}


def measure_deviation(model: GPT, decoder: Decoder, count: int) -> float:
    """By how many standard deviations the texts of `count` seeds are off the model's law (chi-square, cells of 5)."""
    prompt = [1, 2]
    with torch.no_grad():
        laws = {text: law for text, (law, _) in list_laws(model, prompt).items()}
    requests = [Request(prompt, LENGTH, Sampling(), seed=seed) for seed in range(count)]
    found = dict.fromkeys(laws, 0)
    for text in decode(decoder, requests):
        found[tuple(text)] += 1
    cells = [text for text, law in laws.items() if law * count >= 5]
    expected = [laws[text] * count for text in cells]
    counts = [found[text] for text in cells]
    rest = count - sum(expected)
    if rest >= 5:
        expected, counts = [*expected, rest], [*counts, count - sum(counts)]
    chi_square = sum((one - other) ** 2 / other for one, other in zip(counts, expected, strict=True))
    freedom = len(expected) - 1
    deviation: float = (chi_square - freedom) / (2 * freedom) ** 0.5
    return deviation


@each_way
def test_texts_have_the_models_law(kind: type[TidarDecoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """T8c, and that it would show if guesses were believed, or a wrong one were drawn anew."""
    model = build(GPT2_MODEL, 3)
    options: dict[str, Any] = {"batch": 500, "end_of_text": -1}
    assert measure_deviation(model, kind(model, **options), 2000) < 4

    def believe(draft: list[int], chosen: list[int]) -> list[int]:
        return [*draft, chosen[-1]][: len(chosen)]

    monkeypatch.setattr(decoders, "accept", believe)
    assert measure_deviation(model, kind(model, **options), 2000) > 4


@each_way
def test_a_guess_of_the_right_distribution_is_right(kind: type[TidarDecoder]) -> None:
    """Guesses are drawn with the draws of their places, not with others: where masks know it all, all are right."""
    model = build(GPT2_MODEL, 4)
    with torch.no_grad():  # what comes out is the same whatever was there
        for block in model.blocks:
            block.attention.projection.weight.zero_()
            block.mlp.projection.weight.zero_()
        model.position_embedding.weight.zero_()
        model.token_embedding.weight[:] = model.token_embedding.weight[0]
        model.mask_embedding.weight[:] = model.token_embedding.weight[0]
    model.head.weight = torch.nn.Parameter(torch.randn(3, model.params.d_model, dtype=torch.float64))
    decoder = kind(model, batch=1, end_of_text=-1)
    decode(decoder, [Request([1], 37, Sampling(), seed=5)])
    assert decoder.stats.accepted == decoder.stats.drafted > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@each_way
def test_compiled_and_rounded_it_says_the_same(kind: type[TidarDecoder]) -> None:
    model = convert_weights(build(TINY_MODEL, 3, vocab_size=60).float(), "int8")
    requests = [Request([5, 6, 7], 12, GREEDY), Request([1], 45, Sampling(temperature=0.5), seed=1)]
    expected = decode(Decoder(model, batch=1, end_of_text=-1), requests)
    decoder = kind(model, batch=1, end_of_text=-1, compile=True)
    assert decode(decoder, requests) == expected


def test_a_model_without_masks_is_refused_in_one_line() -> None:
    tokenizer = train_tokenizer(tokenizer_params("byte"), [])
    model = GPT(TINY_MODEL, tokenizer.vocab_size, 1).eval()
    with pytest.raises(ParameterError, match=r"model\.diffusion\.block_size is empty, and TiDAR's .* train one with"):
        open_decoder(model, tokenizer, kind="tidar")
