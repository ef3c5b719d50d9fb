"""Laws of `model.document_mask`: a document in a window is what it is alone, forward, backward and cached."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from tiny import GPT2_MODEL, TINY_MODEL, disturb
from torch import Tensor

from lmcore.errors import ArtifactError, ParameterError
from lmcore.generate.decoder import Decoder, Request
from lmcore.generate.sampling import Sampling, choose
from lmcore.model import attention, gpt
from lmcore.model.attention import attend, mask_documents, number_documents
from lmcore.model.gpt import GPT
from lmcore.model.kv_cache import KeyValueCache
from lmcore.model.params import ModelParams
from lmcore.model.save_load import load_model, save_model
from lmcore.train.loss import LanguageModelLoss

VOCABULARY, END = 50, 7
LONG = {"document_mask": True, "context_length": 256}  # more than a block of queries
ROTARY = {
    "modern": TINY_MODEL.model_copy(update=LONG),
    "all heads": TINY_MODEL.model_copy(update={**LONG, "n_kv_heads": None, "qk_norm": False}),
}
MODELS = {**ROTARY, "learned": GPT2_MODEL.model_copy(update=LONG)}
each_model = pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)


def build_model(params: ModelParams) -> GPT:
    return disturb(GPT(params, VOCABULARY, seed=3, end_of_text=END))


def text(length: int, seed: int) -> Tensor:
    """(1, length) tokens without an end-of-text."""
    tokens = torch.randint(VOCABULARY - 1, (1, length), generator=torch.Generator().manual_seed(seed))
    return tokens + (tokens >= END)


def document(length: int, seed: int) -> Tensor:
    """(1, length) tokens, the first of which opens it."""
    return torch.cat((torch.tensor([[END]]), text(length - 1, seed)), dim=1)


def windows() -> Tensor:
    """(3, 201): documents of many lengths; a row begins within one, a row ends with an end-of-text."""
    first = torch.cat((document(1, 1), document(2, 2), document(130, 3), document(68, 4)), dim=1)
    second = torch.cat((text(60, 5), document(100, 6), document(1, 7), document(39, 8), document(1, 9)), dim=1)
    return torch.cat((first, second, text(201, 10)))


@pytest.mark.parametrize("params", ROTARY.values(), ids=ROTARY)
def test_a_packed_document_is_what_it_is_alone(params: ModelParams) -> None:
    model, parts = build_model(params), [document(90, 1), document(50, 2), document(1, 3), document(60, 4)]
    with torch.inference_mode():
        packed = model(torch.cat(parts, dim=1))[0]
        alone = torch.cat([model(part)[0] for part in parts], dim=1)
        model.params = params.model_copy(update={"document_mask": False})
        unmasked = model(torch.cat(parts, dim=1))[0]
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(packed, unmasked, atol=1e-2)


@each_model
def test_what_another_document_says_does_not_matter(params: ModelParams) -> None:
    """Learned positions are not restarted: a document is the same wherever others are of the same lengths."""
    model, last = build_model(params), document(60, 4)
    with torch.inference_mode():
        packed = [model(torch.cat((text(90, seed), last), dim=1))[0][:, 90:] for seed in (1, 2)]
    assert torch.equal(*packed)


@each_model
def test_gradients_stay_in_their_document(params: ModelParams) -> None:
    model, embedded = build_model(params), []
    model.token_embedding.register_forward_hook(lambda *call: (call[-1].retain_grad(), embedded.append(call[-1]))[0])
    logits, _ = model(torch.cat((document(90, 1), document(60, 2)), dim=1))
    logits[:, 90:].square().sum().backward()
    sizes = embedded[0].grad.abs().sum(-1)[0]
    assert not sizes[:90].any()
    assert sizes[90:].all()


def attend_alone(tokens: Tensor) -> Any:
    """Attention in the place of `attend`: one document of one row after the other, without any mask of documents."""

    def naive(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        rows = []
        groups = query.shape[1] // key.shape[1]
        for number, row in enumerate(tokens.tolist()):
            starts = [0, *(place for place, token in enumerate(row) if token == END and place), len(row)]
            heads = []
            for head in range(query.shape[1]):
                q, k, v = query[number, head], key[number, head // groups], value[number, head // groups]
                mixed = [
                    ((q[place] @ k[start : place + 1].mT) / q.shape[-1] ** 0.5).softmax(-1) @ v[start : place + 1]
                    for start, end in pairwise(starts)
                    for place in range(start, end)
                ]
                heads.append(torch.stack(mixed))
            rows.append(torch.stack(heads))
        return torch.stack(rows)

    return naive


@pytest.fixture(params=["eager", "blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The way of attention; the blocks' is that of a compiled step on a CPU, here not compiled."""
    taken = []
    blocks = attention._attend_in_blocks
    monkeypatch.setattr(attention, "_attend_in_blocks", lambda *heads: taken.append("blocks") or blocks(*heads))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "blocks")
    yield request.param
    assert bool(taken) == (request.param == "blocks")


@each_model
def test_loss_and_gradients_are_those_of_documents_one_by_one(
    params: ModelParams, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = windows()
    results = []
    for naive in (False, True):
        model = build_model(params)
        if naive:
            monkeypatch.setattr(gpt, "attend", attend_alone(tokens[:, :-1]))
        loss = LanguageModelLoss(model)(tokens[:, :-1], tokens[:, 1:]).total
        loss.backward()
        results.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_mask_by_hand() -> None:
    tokens = torch.tensor([[1, END, 2, END, END, 3]])
    mask = mask_documents(number_documents(tokens, END))
    expected = [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert mask[0, 0].int().tolist() == [*expected, [0, 0, 0, 0, 1, 1]]
    cache = KeyValueCache(1, 1, 1, 8, 2)
    cache.extend([0], 4).mask_documents(tokens[:, :4], END)
    assert torch.equal(cache.extend([4], 2).mask_documents(tokens[:, 4:], END), mask[:, :, 4:])


def test_grouped_heads_are_repeated_where_no_kernel_takes_them_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device but the CPU; `meta` stands for a card here."""
    kernel = Mock(side_effect=lambda query, *_, **__: query)
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    query, key = (torch.empty(2, heads, 16, 8, device="meta") for heads in (4, 2))
    attend(query, key, key, mask=torch.empty(2, 1, 16, 16, dtype=torch.bool, device="meta"))
    assert [heads.shape[1] for heads in kernel.call_args.args] == [4, 4, 4]
    assert not kernel.call_args.kwargs["enable_gqa"]


@each_model
@pytest.mark.parametrize("prompt", [document(20, 1), torch.cat((text(30, 1), document(20, 2), document(5, 3)), dim=1)])
def test_generation_continues_the_last_document(params: ModelParams, prompt: Tensor) -> None:
    """Also past an end of text that the model itself says, if nobody stops it, and where the context is full."""
    model = build_model(params.model_copy(update={"context_length": 64}))
    sampling, draws = (
        Sampling(temperature=3.0),
        torch.rand(90, generator=torch.Generator().manual_seed(4), dtype=torch.float64),
    )
    request = Request(prompt[0].tolist(), 90, sampling, seed=4)
    new = [token.token for token in Decoder(model, batch=1, end_of_text=-1).decode([request])]
    tokens, window = prompt[0].tolist(), prompt[0].tolist()
    for draw in draws:
        window = tokens[-32:] if len(window) > 64 else window
        with torch.inference_mode():
            logits = model(torch.tensor([window]))[0][:, -1]
        window = [*window, int(choose(logits, sampling, draw[None], [tokens]))]
        tokens.append(window[-1])
    assert END in new
    assert new == tokens[prompt.shape[1] :]


def test_a_model_folder_knows_its_end_of_text(tmp_path: Path) -> None:
    model = build_model(MODELS["modern"])
    save_model(tmp_path, model, {})
    loaded = load_model(tmp_path)
    assert (loaded.params, loaded.end_of_text) == (model.params, END)
    assert torch.equal(loaded(windows())[0], model(windows())[0])


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        place = config["model"] if name == "document_mask" else config
        if value == "absent":
            del place[name]
        else:
            place[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_from_before_the_mask_has_none(tmp_path: Path) -> None:
    model = build_model(TINY_MODEL)
    save_model(tmp_path, model, {})
    change_config(tmp_path, document_mask="absent", end_of_text="absent")
    assert load_model(tmp_path).params == TINY_MODEL


@pytest.mark.parametrize("end_of_text", ["absent", None, VOCABULARY, -1, "7"])
def test_a_mask_without_its_token_is_refused(tmp_path: Path, end_of_text: object) -> None:
    save_model(tmp_path, build_model(MODELS["modern"]), {})
    change_config(tmp_path, end_of_text=end_of_text)
    with pytest.raises(
        ArtifactError,
        match=r"config\.json: end_of_text=.*: (model\.document_mask needs this|must be a) token",
    ):
        load_model(tmp_path)


def test_a_key_that_is_missing_for_no_reason_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, build_model(TINY_MODEL), {})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"]["qk_norm"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParameterError, match="qk_norm is missing"):
        load_model(tmp_path)
