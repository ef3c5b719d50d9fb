"""The decoding engine against recomputing everything: alone, side by side, drafted, at the edges of the context."""

from collections.abc import Iterable, Sequence
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GPT2_MODEL, TINY_MODEL, sharpen

from lmcore.generate.decoder import ActiveSequence, Decoder, Request, Token, measure_logprobs
from lmcore.generate.prompt_lookup import LONGEST_MATCH, PromptLookup
from lmcore.generate.sampling import Sampling
from lmcore.model.gpt import GPT
from lmcore.model.kv_cache import KeyValueCache

BLOCKS = {
    "gpt2": GPT2_MODEL,
    "modern": TINY_MODEL.model_copy(update={"n_kv_heads": None, "tie_embeddings": False}),
    "grouped": TINY_MODEL.model_copy(update={"tie_embeddings": False}),
    "documents": TINY_MODEL.model_copy(update={"tie_embeddings": False, "document_mask": True}),
}
NEVER = -1  # an end-of-text that no model says
VOCABULARY = 257
GREEDY = Sampling(temperature=0)
DRAWN = Sampling(temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.2)


def build_model(blocks: str = "gpt2", context_length: int = 16, seed: int = 1) -> GPT:
    params = BLOCKS[blocks].model_copy(update={"context_length": context_length, "dropout": 0.1})
    return sharpen(GPT(params, VOCABULARY, seed, end_of_text=13))


def decode(model: GPT, requests: Sequence[Request], **options: object) -> list[list[int]]:
    """The new tokens of each request."""
    decoder = Decoder(model, **{"batch": len(requests), "end_of_text": NEVER, **options})  # type: ignore[arg-type]
    texts: list[list[int]] = [[] for _ in requests]
    for token in decoder.decode(requests):
        texts[token.key].append(token.token)
    return texts


def alone(model: GPT, request: Request, **options: object) -> list[int]:
    return decode(model, [request], **options)[0]


def random_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(100 * count + seed)
    tokens: list[int] = torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()
    return tokens


def mixed_requests(sampling: Sampling) -> list[Request]:
    """Prompts of all lengths around the context of 16, two of them equal, each with its own length and seed."""
    lengths = [1, 5, 16, 40, 5, 15, 17, 2]
    return [Request(random_tokens(n), 20 + 5 * place, sampling, place) for place, n in enumerate(lengths)]


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


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 40])
def test_cached_is_recomputed(blocks: str, length: int) -> None:
    model, prompt = build_model(blocks), random_tokens(length)
    new = alone(model, Request(prompt, 50, GREEDY))
    assert new == recompute(model, prompt, 50)
    assert len(set(new)) > 5  # else the comparison says little


@pytest.mark.parametrize("context_length", [2, 3])
def test_the_smallest_contexts(context_length: int) -> None:
    model = build_model(context_length=context_length)
    assert alone(model, Request([1, 2, 3, 4], 9, GREEDY)) == recompute(model, [1, 2, 3, 4], 9)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
@pytest.mark.parametrize("batch", [pytest.param(8, marks=pytest.mark.slow), 3])
def test_a_text_is_the_same_alone_and_among_others(blocks: str, sampling: Sampling, batch: int) -> None:
    model, requests = build_model(blocks), mixed_requests(sampling)
    together = decode(model, requests, batch=batch)  # with 3 rows others take over the place of a text that ended
    assert together == [alone(model, request) for request in requests]
    assert list(map(len, together)) == [request.max_new_tokens for request in requests]


def test_the_seed_decides_the_draws() -> None:
    model = build_model()
    first, again, other = decode(model, [Request([65], 12, DRAWN, seed) for seed in (1, 1, 2)])
    assert first == again != other


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.4, repetition_penalty=0.7)])
def test_drafts_change_nothing_but_the_number_of_forwards(blocks: str, sampling: Sampling) -> None:
    """Also at a temperature: the draws belong to places in the text, so that it is the same text."""
    model = build_model(blocks)
    # A penalty below 1, and greedy decoding of such a model, repeat themselves, which lookup finds.
    requests = [Request([5, 6, 7, 5, 6, 7, 5, *random_tokens(n)], 60, sampling, n) for n in (0, 1, 4, 30)]
    decoder = Decoder(model, batch=4, end_of_text=NEVER, draft_tokens=3)
    drafted: list[list[int]] = [[] for _ in requests]
    for token in decoder.decode(requests):
        drafted[token.key].append(token.token)
    assert drafted == decode(model, requests)
    assert decoder.stats.tokens == 4 * 60
    assert decoder.stats.forwards + decoder.stats.accepted == decoder.stats.tokens
    assert 0 < decoder.stats.accepted < decoder.stats.drafted


class Oracle(Decoder):
    """Proposes what it was told will come, with a mistake in every `period`-th token."""

    text: Sequence[int]
    period: int

    def _propose(self, sequence: ActiveSequence, count: int) -> list[int]:
        length = len(sequence.tokens)
        places = range(length, min(len(self.text), length + count))
        return [self.text[at] + (at % self.period == 0) for at in places]


@pytest.mark.parametrize("draft_tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_any_source_of_drafts_is_checked(draft_tokens: int, sampling: Sampling) -> None:
    model, request = build_model("modern"), Request([1, 2, 3], 50, sampling, seed=4)
    plain = alone(model, request)
    for period in (1, 3, 1000):  # all wrong, some wrong, all right
        decoder = Oracle(model, batch=1, end_of_text=NEVER, draft_tokens=draft_tokens)
        decoder.text, decoder.period = [1, 2, 3, *plain], period
        assert [token.token for token in decoder.decode([request])] == plain
        accepted = decoder.stats.accepted
        assert accepted == 0 if period == 1 else accepted > 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5))
@settings(deadline=None)
def test_lookup_is_the_latest_longest_match(tokens: list[int], count: int) -> None:
    source = PromptLookup()
    for length in range(1, len(tokens) + 1):
        text = tokens[:length]
        expected: list[int] = []
        for match in range(min(LONGEST_MATCH, length), 0, -1):
            ends = [end for end in range(match, length) if text[end - match : end] == text[length - match :]]
            if ends:
                expected = text[ends[-1] : ends[-1] + count]
                break
        assert source.propose(text, count) == expected


def test_drafts_for_one_row_leave_room_for_the_others() -> None:
    """The cache holds just what the texts need, and one of them is at its end while another is drafted for."""
    model = build_model(context_length=64)
    requests = [Request(random_tokens(20), 10, GREEDY), Request([3, 4, 5, 3, 4, 5, 3], 23, GREEDY)]
    drafted = decode(model, requests, capacity=30, draft_tokens=6)
    assert drafted == decode(model, requests)


def test_ends_with_end_of_text() -> None:
    model = build_model()
    new = alone(model, Request([65], 30, GREEDY))
    end = new[4]
    stopped = list(Decoder(model, batch=2, end_of_text=end).decode([Request([65], 30, GREEDY)]))
    assert [token.token for token in stopped] == new[: new.index(end) + 1]
    assert [token.is_last for token in stopped] == [False] * new.index(end) + [True]


def test_forbidden_tokens_are_never_chosen() -> None:
    model = build_model()
    for sampling in (GREEDY, Sampling(temperature=50.0)):
        (new,) = decode(model, [Request([65], 200, sampling, seed=3)], allowed=range(100, 120))
        assert set(new) <= set(range(100, 120))
    assert not set(alone(model, Request([65], 200, Sampling(temperature=50.0), seed=3))) <= set(range(100, 120))


def test_logprobs_are_those_of_the_whole_forward() -> None:
    model, prompt = build_model("grouped"), [65, 66, 67]
    request = Request(prompt, 10, Sampling(temperature=2.0, top_k=9), seed=5, logprobs=3)
    tokens = list(Decoder(model, batch=1, end_of_text=NEVER, allowed=range(0, 250, 3)).decode([request]))
    text = [*prompt, *(token.token for token in tokens)]
    with torch.inference_mode():  # of the whole vocabulary, though these alone are allowed
        expected = model(torch.tensor([text[:-1]]))[0][0].log_softmax(-1)
    for place, token in enumerate(tokens, start=len(prompt) - 1):
        assert token.logprob == pytest.approx(float(expected[place, token.token]), abs=1e-5)
        best = expected[place].topk(3)
        assert [one for one, _ in token.likeliest] == best.indices.tolist()
        assert [value for _, value in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_tokens_come_as_they_are_known() -> None:
    def endless() -> Iterable[Request]:
        place = 0
        while True:
            yield Request([place % 9], 4, GREEDY)
            place += 1

    tokens: list[Token] = list(islice(Decoder(build_model(), batch=3, end_of_text=NEVER).decode(endless()), 30))
    assert [token.key for token in tokens[:6]] == [0, 1, 2, 0, 1, 2]
    assert max(token.key for token in tokens) >= 6
    assert not torch.is_inference_mode_enabled()


def test_a_stream_that_nobody_reads_on_leaves_nothing() -> None:
    decoder = Decoder(build_model(), batch=2, end_of_text=NEVER)
    first = decoder.decode(mixed_requests(GREEDY))
    next(first)
    with pytest.raises(AssertionError, match="another list"):
        next(decoder.decode([Request([1], 3, GREEDY)]))
    first.close()
    expected = alone(build_model(), Request([1], 3, GREEDY))
    assert [token.token for token in decoder.decode([Request([1], 3, GREEDY)])] == expected


def test_a_cancelled_text_makes_room() -> None:
    model, requests = build_model(), mixed_requests(DRAWN)
    decoder = Decoder(model, batch=3, end_of_text=NEVER)
    texts: list[list[int]] = [[] for _ in requests]
    for token in decoder.decode(requests):
        texts[token.key].append(token.token)
        if token.key in (0, 4) and len(texts[token.key]) == 3:
            decoder.cancel(token.key)
    expected = [alone(model, request) for request in requests]
    assert texts == [text[:3] if place in (0, 4) else text for place, text in enumerate(expected)]


@pytest.mark.parametrize("blocks", BLOCKS)
def test_rows_of_different_lengths_in_one_forward(blocks: str) -> None:
    model, params = build_model(blocks), BLOCKS[blocks]
    cache = KeyValueCache(params.n_layers, 3, params.kv_heads, 16, params.head_width)
    texts = torch.tensor([random_tokens(16, seed) for seed in range(3)])
    lengths = [0, 7, 12]
    with torch.inference_mode():
        for row, length in enumerate(lengths):
            if length:
                model.hidden(texts[row : row + 1, :length], cache.extend([0], length, row))
        new = torch.stack([text[length : length + 4] for text, length in zip(texts, lengths, strict=True)])
        found, _ = model(new, cache=cache.extend(lengths, 4))
        expected, _ = model(texts)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row], expected[row, length : length + 4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vocabulary", [65, 257, 50_257])
def test_logprobs_of_many_rows_are_those_of_each_bit_for_bit(vocabulary: int) -> None:
    logits = torch.randn(9, 3, vocabulary, generator=torch.Generator().manual_seed(1)) * 5
    chosen = [[(7 * row + at) % vocabulary for at in range(1 + row % 3)] for row in range(9)]
    counts = [None, 0, 5, 1, 5, None, 300, 0, 20]
    for row, measured in enumerate(measure_logprobs(logits, chosen, counts)):
        for at, (token, (logprob, likeliest)) in enumerate(zip(chosen[row], measured, strict=True)):
            if (count := counts[row]) is None:
                assert (logprob, likeliest) == (None, ())
                continue
            alone = logits[row, at].clone().log_softmax(-1)
            best = alone.topk(min(count, vocabulary))
            assert logprob == float(alone[token])
            assert likeliest == tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
