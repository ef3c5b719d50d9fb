"""Scores of continuations against log-softmax computed plainly, one pair at a time."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GPT2_MODEL, TINY_MODEL, disturb, tokenizer_params

from lmcore.evaluate import loglikelihood as score_module
from lmcore.evaluate.loglikelihood import Pair, Score, encode_pair, score_pairs
from lmcore.model.gpt import GPT
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

VOCABULARY, END = 50, 7
CONTEXT_LENGTH = TINY_MODEL.context_length
MODELS = {
    "modern": TINY_MODEL,
    "GPT-2": GPT2_MODEL,
    "documents": TINY_MODEL.model_copy(update={"document_mask": True}),
    "capped": TINY_MODEL.model_copy(update={"logit_softcap": 2.0}),
}
SENTENCES = ["the cat sat on a mat", "näive 日本 cats\n\n  and dogs", "one two three " * 20]


BUILT = {name: disturb(GPT(params, VOCABULARY, seed=3, end_of_text=END), 0.2) for name, params in MODELS.items()}


def score_plainly(model: GPT, pair: Pair) -> Score:
    """The definition, for one pair in one pass."""
    count = len(pair.continuation)
    tokens = torch.tensor([(pair.context + pair.continuation)[-(CONTEXT_LENGTH + 1) :]])
    with torch.no_grad():
        logits = model(tokens[:, :-1])[0][0, -count:].double()
    targets = tokens[0, -count:]
    nats = logits.log_softmax(dim=-1).gather(1, targets[:, None]).sum().item()
    return Score(nats, bool((logits.argmax(dim=-1) == targets).all()))


def assert_equal(found: list[list[Score]], expected: list[list[Score]]) -> None:
    assert [len(group) for group in found] == [len(group) for group in expected]
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one.loglikelihood == pytest.approx(other.loglikelihood, rel=1e-5, abs=1e-5)
        assert one.greedy == other.greedy


tokens = st.integers(0, VOCABULARY - 1)
contexts = st.lists(tokens, min_size=1, max_size=40)
continuations = st.lists(tokens, min_size=1, max_size=CONTEXT_LENGTH)


@st.composite
def groups(draw: st.DrawFn) -> list[Pair]:
    """Pairs of one context mostly, as multiple choice has them."""
    context = draw(contexts)
    pairs = draw(st.lists(st.tuples(st.one_of(st.just(context), contexts), continuations), max_size=5))
    return [Pair(*pair) for pair in pairs]


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=40)
@given(st.lists(groups(), max_size=5), st.integers(1, 9))
def test_scores_are_those_of_each_pair_alone(name: str, some: list[list[Pair]], batch_size: int) -> None:
    """Whatever is batched with whatever, cut on the left, and begins alike."""
    model = BUILT[name]
    expected = [[score_plainly(model, pair) for pair in group] for group in some]
    assert_equal(score_pairs(model, some, batch_size), expected)


def test_greedy_is_what_greedy_decoding_writes() -> None:
    model = BUILT["modern"]
    written = [1, 2, 3]
    for _ in range(5):
        with torch.no_grad():
            written.append(int(model(torch.tensor([written]))[0][0, -1].argmax()))
    wrong = [*written[3:-1], (written[-1] + 1) % VOCABULARY]
    right, other = score_pairs(model, [[Pair([1, 2, 3], written[3:]), Pair([1, 2, 3], wrong)]], 8)[0]
    assert right.greedy
    assert not other.greedy
    assert right.loglikelihood > other.loglikelihood


def test_what_choices_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = BUILT["modern"], [5, 4, 3, 2, 1, 6, 8, 9]
    computed = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, cache=None: computed.append(tokens.numel()) or hidden(tokens, cache)
    )
    score_pairs(model, [[Pair(context, [token]) for token in (10, 11, 12, 13)]], 8)
    assert computed == [7, 4], "the context without its last token, and then that one for each choice"


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By rows, by tokens and by logits, also where one group is larger than a batch; the scores stay."""
    model = BUILT["GPT-2"]
    some = [[Pair([token, 2, 3, 4], [5, number]) for number in range(20)] for token in range(3)]
    expected = score_pairs(model, some, 100)
    shapes = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, cache=None: shapes.append(tokens.shape) or hidden(tokens, cache)
    )
    monkeypatch.setattr(score_module, "TOKENS_AT_ONCE", 40)
    monkeypatch.setattr(score_module, "LOGITS_BYTES", 3 * 4 * VOCABULARY)
    assert_equal(score_pairs(model, some, 7), expected)
    assert max(rows for rows, _ in shapes) == 7
    monkeypatch.setattr(score_module, "TOKENS_AT_ONCE", 1)
    assert_equal(score_pairs(model, some, 7), expected)


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_a_pair_is_the_whole_text_cut_in_two(kind: str) -> None:
    tokenizer = train_tokenizer(tokenizer_params(kind), [SENTENCES])
    for text in SENTENCES:
        for place in range(1, len(text)):
            context, continuation = encode_pair(tokenizer, text[:place], text[place:])
            whole = tokenizer.encode(text)
            before = tokenizer.encode(text[:place].rstrip())
            assert context == (before or [tokenizer.end_of_text])
            assert continuation == whole[len(before) :]


@pytest.mark.parametrize("context", ["", " ", "\n\n "])
def test_an_empty_context_is_the_beginning_of_a_document(context: str) -> None:
    tokenizer = train_tokenizer(tokenizer_params("byte"), [])
    assert encode_pair(tokenizer, context, "a") == ([tokenizer.end_of_text], tokenizer.encode(context + "a"))
