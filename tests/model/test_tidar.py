"""TiDAR's masks, exactly: what sees what, in training as in decoding, and wrong readings, which must show."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, disturb
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from lmcore.model import attention, gpt
from lmcore.model.attention import attend
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.tidar import FusedMask, Layout, TidarMask, lay_out, spread_masks

SIZE, TIME, VOCABULARY, END = 4, 12, 11, 3
# In float64 and without QK-norm, which computes in float32: what is the same is so to the last few bits.
EXACT = {"n_kv_heads": 2, "qk_norm": False, "context_length": 24}
LEARNT = GPT2_MODEL.model_copy(update={"context_length": 24})
ROTARY = TINY_MODEL.model_copy(update=EXACT)
MODELS = {"learned": LEARNT, "rotary": ROTARY, "documents": ROTARY.model_copy(update={"document_mask": True})}


def with_blocks(params: ModelParams, size: int = SIZE) -> ModelParams:
    return params.model_copy(update={"diffusion": params.diffusion.model_copy(update={"block_size": size})})


def build(name: str, size: int = SIZE) -> GPT:
    return disturb(GPT(with_blocks(MODELS[name], size), VOCABULARY, 1, end_of_text=END).double(), 0.3)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    text: str = request.param
    return text


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def text(rows: int = 2, time: int = TIME, seed: int = 0) -> Tensor:
    """With a document's beginning in the middle of each row, where one is wanted."""
    tokens = torch.randint(VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(seed))
    tokens[tokens == END] = 0
    tokens[:, time // 2] = END
    return tokens


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_text_is_that_of_a_plain_gpt(name: str) -> None:
    """T1: with masks behind it, and in the same model without a row for them."""
    model, tokens = build(name), text()
    hidden = model.hidden(tokens, mask_blocks=torch.tensor([[0, 3, 7], [1, 2, 6]]))
    assert_same(model.logits(hidden[:, :TIME]), model(tokens)[0])
    weights = {key: weight for key, weight in model.state_dict().items() if key != "mask_embedding.weight"}
    plain = GPT.of_weights(MODELS[name], VOCABULARY, weights, end_of_text=END)
    assert torch.equal(model(tokens)[0], plain(tokens)[0])


def find_influences(model: GPT) -> Tensor:
    """Which rows, the text's and then the masks', each token of the text changes: (T, 2 T)."""
    tokens = text(1)

    def compute(tokens: Tensor) -> Tensor:
        output = model.forward_tidar(tokens)
        return torch.cat((output.logits, output.diffusion_logits), dim=1)[0]

    before = compute(tokens)
    influences = []
    for place in range(TIME):
        other = tokens.clone()
        other[0, place] = 1 if tokens[0, place] != 1 else 2
        influences.append((compute(other) != before).any(dim=1))
    return torch.stack(influences)


def expect_influences() -> Tensor:
    row, place = torch.arange(TIME), torch.arange(TIME)[:, None]
    return torch.cat((place <= row, place <= row // SIZE * SIZE), dim=1)


class SeesAll(TidarMask):
    """The mistake of several ports: the answer lies open before the mask."""

    def __call__(self, batch: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        return super().__call__(batch, head, query, key) | (key < self.time)


class SeesEarlierMasks(TidarMask):
    """Another one: a mask sees the blocks before its own."""

    def __call__(self, batch: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        own = super().__call__(batch, head, query, key)
        return own | ((key >= self.time) & ((key - self.time) // self.size <= query // self.size))


def attend_by_blocks(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """BD3LM's text, causal by blocks: it gives away what the next token is."""
    mask = options["mask"]
    if isinstance(mask, FusedMask):
        place = torch.arange(mask.text_length) // SIZE
        options["mask"] = mask._replace(text=place <= place[:, None])
    return attend(query, key, value, **options)


@pytest.mark.parametrize("name", ["learned", "rotary"], indirect=True)
def test_each_row_depends_on_what_it_may_see_and_on_nothing_else(name: str) -> None:
    """T2, by changing each token: the set of rows that change is exactly the one expected."""
    assert torch.equal(find_influences(build(name)), expect_influences())


def test_wrong_readings_of_what_is_seen_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gpt, "TidarMask", SeesAll)
        assert not torch.equal(find_influences(build("learned")), expect_influences())
    with monkeypatch.context() as patch:
        patch.setattr(gpt, "attend", attend_by_blocks)
        assert not torch.equal(find_influences(build("learned")), expect_influences())
    assert torch.equal(find_influences(build("learned")), expect_influences())


def guess_after(model: GPT, prefix: Tensor, size: int = SIZE) -> Tensor:
    """What the masks after `prefix` (T,) guess when decoding, (size, V): with the text before its last token cached."""
    cache = model.build_cache(1, len(prefix), 1 + size)
    if len(prefix) > 1:
        model.hidden(prefix[None, :-1], cache.extend([0], len(prefix) - 1))
    layout = lay_out(0, size, prefix.device)
    tokens = torch.tensor([[int(prefix[-1]), *[VOCABULARY] * size]])
    hidden = model.hidden(tokens, cache.extend([len(prefix) - 1], 1 + size, layout=layout))
    return model.logits(hidden[0, 1:])


def guess_in_training(model: GPT, tokens: Tensor, blocks: Tensor) -> Tensor:
    """What each block of a training sequence guesses, (B, n, size, V)."""
    hidden = model.hidden(tokens, mask_blocks=blocks)[:, tokens.shape[1] :]
    return model.logits(hidden).unflatten(1, (blocks.shape[1], SIZE))


BLOCKS = torch.tensor([[0, 3, 7], [2, 6, 6]])  # anywhere, and one of them twice


def test_training_guesses_what_decoding_guesses(name: str) -> None:
    """T3."""
    model, tokens = build(name), text()
    trained = guess_in_training(model, tokens, BLOCKS)
    for row, places in enumerate(BLOCKS.tolist()):
        for block, last in enumerate(places):
            assert_same(trained[row, block], guess_after(model, tokens[row, : last + 1]))


def test_masks_that_see_other_blocks_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "TidarMask", SeesEarlierMasks)
    model, tokens = build("rotary"), text()
    trained = guess_in_training(model, tokens, BLOCKS)
    assert not torch.allclose(trained[0, 1], guess_after(model, tokens[0, :4]), atol=1e-2)


def test_a_block_does_not_know_of_the_others(name: str) -> None:
    """T4: which is why some of them can be left out."""
    model, tokens = build(name), text()
    together = guess_in_training(model, tokens, BLOCKS)
    for block in range(3):
        assert_same(together[:, block : block + 1], guess_in_training(model, tokens, BLOCKS[:, block : block + 1]))


def take_step(model: GPT, prefixes: list[Tensor], drafts: Tensor, layout: Layout, order: Tensor) -> tuple[Any, Tensor]:
    """One fused step after prefixes of two lengths side by side; the cache afterwards, and scores in the table's order.

    `order` is that of the new tokens in the forward, `layout` theirs.
    """
    starts, count = [len(prefix) - 1 for prefix in prefixes], len(layout.offsets)
    cache = model.build_cache(len(prefixes), max(starts), count)
    for row, prefix in enumerate(prefixes):
        model.hidden(prefix[None, :-1], cache.extend([0], len(prefix) - 1, row))
    last = torch.stack([prefix[-1:] for prefix in prefixes])
    masks = torch.full((len(prefixes), count - 1 - drafts.shape[1]), VOCABULARY)
    tokens = torch.cat((last, drafts, masks), dim=1)[:, order]
    logits = model.logits(model.hidden(tokens, cache.extend(starts, count, layout=layout)))
    return cache, logits[:, order.argsort()]


DRAFTS = torch.tensor([[5, END, 7], [1, 2, 4]])
PREFIXES = [text(1, 9)[0], text(1, 6, 1)[0]]
FUSED = lay_out(3, SIZE, torch.device("cpu"))


def test_one_step_is_many_fresh_forwards(name: str) -> None:
    """T5: every guess's next token, the block for each number of right ones, and the cache that is kept of each."""
    model = build(name)
    cache, logits = take_step(model, PREFIXES, DRAFTS, FUSED, torch.arange(20))
    blocks = logits[:, 4:].unflatten(1, (4, SIZE))
    for row, prefix in enumerate(PREFIXES):
        for right in range(4):
            fresh = torch.cat((prefix, DRAFTS[row, :right]))
            assert_same(logits[row, right], model(fresh[None])[0][0, -1])
            assert_same(blocks[row, right], guess_after(model, fresh))
            after = torch.tensor([[8, 9]])
            goes_on = model(after, cache=cache.extend([len(fresh)], 2, row))[0]
            assert_same(goes_on, model(torch.cat((fresh[None], after), dim=1))[0][:, -2:])
            cache, _ = take_step(model, PREFIXES, DRAFTS, FUSED, torch.arange(20))


def test_a_block_for_one_token_more_would_show() -> None:
    """The mistake of counting from none, where the last token itself is always right."""
    late = FUSED._replace(offsets=torch.where(torch.arange(20) < 4, FUSED.offsets, FUSED.offsets - 1))
    _, logits = take_step(build("rotary"), PREFIXES, DRAFTS, late, torch.arange(20))
    assert not torch.allclose(logits[0, 4:8], guess_after(build("rotary"), PREFIXES[0]), atol=1e-2)


def test_the_order_of_the_new_tokens_does_not_matter() -> None:
    """T5b: each token with its block behind it, as others have it."""
    order = torch.tensor([place for right in range(4) for place in (right, *range(4 + SIZE * right, 8 + SIZE * right))])
    other = Layout(FUSED.offsets[order], FUSED.sees[order][:, order])
    model = build("rotary")
    _, grouped = take_step(model, PREFIXES, DRAFTS, FUSED, torch.arange(20))
    _, interleaved = take_step(model, PREFIXES, DRAFTS, other, order)
    assert_same(interleaved, grouped)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("documents", [None, torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2], [0] * 8])])
def test_flex_attention_sees_the_same(documents: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """T7: forward and as it is written; on a CPU it has no backward."""
    monkeypatch.setattr(attention, "compile_flex_attention", lambda: flex_attention)
    tidar_mask = TidarMask(torch.tensor([[0, 4], [3, 1]]), 3, 8, documents)
    query, key, value = (
        torch.randn(2, heads, time, 16, generator=torch.Generator().manual_seed(time))
        for heads, time in ((4, 6), (2, 14), (2, 14))
    )
    dense, sparse = tidar_mask.densely(), tidar_mask.sparsely()
    places = (torch.arange(count) for count in (2, 1, 6, 14))
    batch, head, mask, other = torch.meshgrid(*places, indexing="ij")
    assert torch.equal(dense, sparse.mask_mod(batch, head, mask, other))
    torch.testing.assert_close(
        attend(query, key, value, mask=sparse), attend(query, key, value, mask=dense), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_flex_attention_sees_the_same() -> None:
    """T7, as a card has it: within a compiled module, behind the text's rows, with new blocks each time."""

    class Module(torch.nn.Module):
        def forward(self, *heads: Tensor, mask: FusedMask) -> Tensor:
            return attend(*heads, mask=mask)

    module = Module()
    module.compile()
    heads = [torch.randn(2, count, 96, 16, generator=torch.Generator().manual_seed(count)) for count in (4, 2, 2)]
    for blocks in ([[0, 40], [30, 10]], [[5, 20], [3, 1]]):
        tidar_mask = TidarMask(torch.tensor(blocks), 16, 64, None)
        ours, expected = (FusedMask(None, way(), 64) for way in (tidar_mask.sparsely, tidar_mask.densely))
        torch.testing.assert_close(module(*heads, mask=ours), attend(*heads, mask=expected), rtol=1e-5, atol=1e-5)


def test_rows_of_the_call_that_people_know_stand_for_its_targets(name: str) -> None:
    """T10: `logits, loss = model(x, y)` whatever the mode, row t of the masks for y[t], and no look at it."""
    model, tokens = build(name), text(2, TIME + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits, loss = model(inputs, targets)
    guesses, guess_loss = model(inputs, targets, mode="diffusion")
    both_logits, both_loss = model(inputs, targets, mode="both")
    parts = model.forward_tidar(inputs, targets)
    assert_same(both_logits, logits)
    assert_same(both_loss, (loss + 0.5 * guess_loss) / 1.5)
    assert_same(parts.logits, logits)
    assert_same(parts.diffusion_logits, guesses)
    assert_same(parts.ar_loss, loss)
    assert_same(parts.diffusion_loss, guess_loss)
    assert_same(parts.loss, both_loss)
    assert model(inputs)[1] is model(inputs, mode="diffusion")[1] is model(inputs, mode="both")[1] is None
    for block in range(TIME // SIZE):
        rows = slice(block * SIZE, (block + 1) * SIZE)
        for row in range(2):
            assert_same(guesses[row, rows], guess_after(model, inputs[row, : block * SIZE + 1]))
    expected = torch.nn.functional.cross_entropy(guesses.float().flatten(0, 1), targets.flatten())
    assert guess_loss == expected


def test_learned_positions_end_with_the_context() -> None:
    """Rotary ones do not, and the last block of a full context may stand behind it."""
    tokens = text(1, 24)
    assert model_rows(build("rotary"), tokens) == 24
    assert model_rows(build("learned"), tokens) == 20


def model_rows(model: GPT, tokens: Tensor) -> int:
    return model(tokens, tokens, mode="diffusion")[0].shape[1]


def test_without_a_mask_row_there_is_no_guessing() -> None:
    model = GPT(ROTARY, VOCABULARY)
    with pytest.raises(AssertionError, match=r"set model\.diffusion\.block_size"):
        model(text(), mode="diffusion")


def test_the_mask_is_an_input_alone_and_learns() -> None:
    """T12, and that the other weights are drawn as without it."""
    with torch.enable_grad():
        model = GPT(with_blocks(LEARNT), VOCABULARY, 1)
        output = model.forward_tidar(text(), text())
        output.loss.backward()
    assert output.logits.shape[-1] == output.diffusion_logits.shape[-1] == VOCABULARY
    assert model.mask_embedding.weight.grad.abs().sum() > 0
    plain = GPT(LEARNT, VOCABULARY, 1).state_dict()
    assert all(torch.equal(weight, model.state_dict()[key]) for key, weight in plain.items())


def test_masks_have_the_positions_after_the_last_token_that_they_see() -> None:
    assert spread_masks(torch.tensor([[0, 5]]), 3).tolist() == [[1, 2, 3, 6, 7, 8]]
    layout = lay_out(1, 2, torch.device("cpu"))
    assert layout.offsets.tolist() == [0, 1, 1, 2, 2, 3]
    rows = ["100000", "110000", "101100", "101100", "110011", "110011"]
    assert ["".join(map(str, row)) for row in layout.sees.int().tolist()] == rows
