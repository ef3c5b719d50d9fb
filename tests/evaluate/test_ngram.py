"""The model of n-grams against the textbook's formula in dictionaries, and as a distribution."""

import math
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from imports import ROOT
from tiny import encode_texts, make_texts, tokenizer_params

from lmcore.evaluate import ngram
from lmcore.evaluate.ngram import measure_nats, predict, read_sample
from lmcore.tokens.shards import TokenShards
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

VOCAB_SIZE = 7
NOTHING = -1


def draw_text(length: int, seed: int) -> np.ndarray:
    """Tokens that depend on the two before them; those above 5 never occur."""
    source = np.random.default_rng(seed)
    tokens = [0, 1]
    while len(tokens) < length:
        likely = (2 * tokens[-1] + tokens[-2]) % 5
        tokens.append(likely if source.random() < 0.6 else int(source.integers(6)))
    return np.array(tokens[:length])


def chen_goodman(train: list[int], order: int) -> "list[tuple[dict[tuple[int, ...], int], list[float]]]":
    """The counts and the discounts of each length as the paper defines them."""
    grams = [Counter(tuple(train[at : at + n]) for at in range(len(train) - n + 1)) for n in range(1, order + 1)]
    levels = []
    for n in range(1, order + 1):
        counts = dict(grams[n - 1])
        if n < order:
            before = defaultdict(set)
            for gram in grams[n]:
                before[gram[1:]].add(gram[0])
            counts = {gram: max(1, len(before[gram])) for gram in counts}
        of = Counter(counts.values())
        if of[1] and of[2] and of[3]:
            ratio = of[1] / (of[1] + 2 * of[2])
            raw = [count - (count + 1) * ratio * of[count + 1] / of[count] for count in (1, 2, 3)]
            discounts = [0.0, *(min(max(0.05, value), n - 0.05) for n, value in enumerate(raw, start=1))]
        else:
            discounts = [0.0, 0.5, 0.5, 0.5]
        levels.append((counts, discounts))
    return levels


def probability(levels: "list[tuple[dict[tuple[int, ...], int], list[float]]]", past: list[int], token: int) -> float:
    result = 1 / VOCAB_SIZE
    for length, (counts, discounts) in enumerate(levels):
        if length > len(past):
            break
        context = tuple(past[len(past) - length :])
        follow = {gram: count for gram, count in counts.items() if gram[:-1] == context}
        if not follow:
            break
        taken = {gram: discounts[min(count, 3)] for gram, count in follow.items()}
        gram = (*context, token)
        share = follow[gram] - taken[gram] if gram in follow else 0.0
        result = (share + sum(taken.values()) * result) / sum(follow.values())
    return result


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("length", [3, 40, 600])
def test_probabilities_are_the_formula(order: int, length: int) -> None:
    train, text = draw_text(length, 1), draw_text(200, 2)
    text[[20, 90]] = NOTHING
    text[30] = VOCAB_SIZE - 1  # a token that training has not
    levels = chen_goodman(train.tolist(), min(order, length))
    expected, past = [], []
    for token in text.tolist():
        expected.append(probability(levels, past, token))
        past = [] if token == NOTHING else [*past, token]
    real = text != NOTHING
    assert predict(train, text, VOCAB_SIZE, order)[real] == pytest.approx(np.array(expected)[real], rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_probabilities_sum_to_one(order: int) -> None:
    train = draw_text(500, 1)
    for past in ([], [0], [6], [1, 2, 0, 3, 4], train[-5:].tolist(), draw_text(9, 3).tolist()):
        text = np.concatenate([[NOTHING, *past, token] for token in range(VOCAB_SIZE)])
        ends = np.arange(1, VOCAB_SIZE + 1) * (len(past) + 2) - 1
        found = predict(train, text, VOCAB_SIZE, order)[ends]
        assert found.sum() == pytest.approx(1.0, rel=1e-12)
        assert (found > 0).all()


def test_text_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    train, text = draw_text(500, 1), draw_text(100, 2)
    whole = predict(train, text, VOCAB_SIZE)
    monkeypatch.setattr(ngram, "CHUNK_TOKENS", 7)
    assert (predict(train, text, VOCAB_SIZE) == whole).all()


def test_a_window_sees_itself_alone() -> None:
    train, text = draw_text(500, 1), draw_text(101, 2)
    windows = [text[start : start + 11] for start in range(0, 100, 10)]
    alone = [-np.log(predict(train, np.append(NOTHING, window), VOCAB_SIZE)[2:]).sum() for window in windows]
    assert measure_nats(train, iter(windows), VOCAB_SIZE) == pytest.approx(sum(alone), rel=1e-12)
    assert measure_nats(train, [text], VOCAB_SIZE) < sum(alone)


def test_a_text_of_one_token_can_be_counted() -> None:
    # Half of its count is held back and shared out, to itself too.
    one = predict(np.array([3]), np.array([3, 4]), VOCAB_SIZE)
    assert one == pytest.approx([0.5 + 0.5 / VOCAB_SIZE, 0.5 / VOCAB_SIZE])


def test_what_is_counted_is_bounded_and_evenly_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(40, 1)
    tokenizer = train_tokenizer(tokenizer_params("byte"), [])
    encode_texts(1000, {"train": [texts], "validation": [texts[:1]]}, tokenizer, tmp_path)
    shards = TokenShards.open(tmp_path, "train")
    whole = shards.read(1, shards.tokens)
    assert (read_sample(shards) == whole).all()
    monkeypatch.setattr(ngram, "STRETCH_TOKENS", 100)
    assert (read_sample(shards) == whole).all()
    sample = read_sample(shards, 450)
    assert len(sample) == 400
    places = [whole.tobytes().index(sample[start : start + 100].tobytes()) // 8 for start in range(0, 400, 100)]
    assert places[0] == 0
    assert np.diff(places) == pytest.approx(shards.tokens / 4, abs=100)


def test_a_million_tokens_take_seconds() -> None:
    source = np.random.default_rng(0)
    train = np.minimum(source.zipf(1.3, 1_000_000), 5000) - 1
    started = time.process_time()
    nats = measure_nats(train, [train[:10_000]], 5000)
    assert time.process_time() - started < 10  # about 1; one loop of Python over the tokens takes longer
    assert math.isfinite(nats)


def test_it_needs_no_torch() -> None:
    program = "import sys, lmcore.evaluate.baselines; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
