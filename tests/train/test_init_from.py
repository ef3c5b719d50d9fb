"""Training that begins with another model's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, tokenizer_params

from lmcore.errors import ArtifactError, LmcoreError, ParameterError
from lmcore.export.hugging_face import export_model
from lmcore.export.params import ExportParams
from lmcore.files import sha256_file
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.save_load import save_model
from lmcore.tokens.dataset import TokenDataset
from lmcore.train.init_from import load_initial_weights
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer


def save_base(folder: Path, dataset: TokenDataset) -> GPT:
    base = GPT(TINY_MODEL, dataset.train.vocab_size, seed=5)
    save_model(folder, base, {"run_key": "abc"})
    dataset.tokenizer.save(folder)
    return base


def test_the_weights_are_the_others_and_named(tmp_path: Path, dataset: TokenDataset) -> None:
    base = save_base(tmp_path / "base", dataset)
    # What no weight depends on may be another: dropout, the mask and, with rotary positions, the context.
    changed = TINY_MODEL.model_copy(update={"dropout": 0.1, "context_length": 32, "document_mask": True})
    model = GPT(changed, dataset.train.vocab_size, seed=9, end_of_text=dataset.train.end_of_text)
    origin = load_initial_weights(model, str(tmp_path / "base"), dataset.tokenizer)
    for (name, ours), theirs in zip(model.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert model.head.weight is model.token_embedding.weight
    weights = sha256_file(tmp_path / "base" / "model.safetensors")
    assert origin == {"init_from": {"weights": weights, "run_key": "abc"}}


def test_masks_come_and_go(tmp_path: Path, dataset: TokenDataset) -> None:
    """A plain model gets the mean of all tokens for a mask, one with masks may lose them: the text's model is one."""
    base, tokens = save_base(tmp_path / "base", dataset), torch.arange(12)[None]
    masks = TINY_MODEL.model_copy(update={"diffusion": TINY_MODEL.diffusion.model_copy(update={"block_size": 4})})
    model = GPT(masks, dataset.train.vocab_size, seed=9)
    load_initial_weights(model, str(tmp_path / "base"), dataset.tokenizer)
    assert torch.equal(model(tokens)[0], base(tokens)[0])
    torch.testing.assert_close(model.mask_embedding.weight[0], base.token_embedding.weight.mean(dim=0))
    save_model(tmp_path / "masks", model, {})
    dataset.tokenizer.save(tmp_path / "masks")
    plain, again = (GPT(params, dataset.train.vocab_size, seed=3) for params in (TINY_MODEL, masks))
    for other in (plain, again):
        load_initial_weights(other, str(tmp_path / "masks"), dataset.tokenizer)
        assert torch.equal(other(tokens)[0], base(tokens)[0])
    assert torch.equal(again.mask_embedding.weight, model.mask_embedding.weight)


@pytest.mark.parametrize("params", [TINY_MODEL, GPT2_MODEL], ids=["qwen3", "gpt2"])
def test_a_hugging_face_folder_is_as_good(tmp_path: Path, dataset: TokenDataset, params: ModelParams) -> None:
    base = GPT(params, dataset.train.vocab_size, seed=5)
    save_model(tmp_path / "base", base, {})
    dataset.tokenizer.save(tmp_path / "base")
    dtype = ExportParams(name="tiny", dtype="float32", gguf=None)
    export_model(dtype, tmp_path / "base", tmp_path / "export", corpus={"licence": "none"}, figures={})
    model = GPT(params, dataset.train.vocab_size, seed=9)
    origin = load_initial_weights(model, str(tmp_path / "export"), dataset.tokenizer)
    for (name, ours), theirs in zip(model.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert origin == {"init_from": {"weights": sha256_file(tmp_path / "export" / "model.safetensors"), "run_key": None}}


def test_what_follows_may_be_said_and_the_folder_is_found_from_a_copy(
    tmp_path: Path, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = GPT(GPT2_MODEL.model_copy(update={"n_kv_heads": 4, "d_ff": 128}), dataset.train.vocab_size, seed=5)
    save_model(tmp_path / "models" / "base", base, {"run_key": "abc"})
    dataset.tokenizer.save(tmp_path / "models" / "base")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    model = GPT(GPT2_MODEL, dataset.train.vocab_size, seed=9)
    load_initial_weights(model, "models/base", dataset.tokenizer)
    assert torch.equal(model.head.weight, base.head.weight)


def test_a_shorter_context_takes_the_first_positions(tmp_path: Path, dataset: TokenDataset) -> None:
    base = GPT(GPT2_MODEL, dataset.train.vocab_size, seed=5)
    save_model(tmp_path, base, {"run_key": "abc"})
    dataset.tokenizer.save(tmp_path)
    model = GPT(GPT2_MODEL.model_copy(update={"context_length": 6}), dataset.train.vocab_size, seed=9)
    load_initial_weights(model, str(tmp_path), dataset.tokenizer)
    tokens = torch.arange(6)[None]
    assert torch.equal(model.eval()(tokens)[0], base.eval()(tokens)[0])


def test_reserved_tokens_are_refused(tmp_path: Path, dataset: TokenDataset) -> None:
    save_model(tmp_path, GPT(TINY_MODEL, dataset.train.vocab_size + 7, seed=5), {"run_key": "abc"})
    dataset.tokenizer.save(tmp_path)
    model = GPT(TINY_MODEL, dataset.train.vocab_size)
    with pytest.raises(ArtifactError, match="it has 264 tokens and its tokenizer 257"):
        load_initial_weights(model, str(tmp_path), dataset.tokenizer)


def test_without_it_the_weights_are_drawn(dataset: TokenDataset) -> None:
    model = GPT(TINY_MODEL, dataset.train.vocab_size, seed=9)
    assert load_initial_weights(model, None, dataset.tokenizer) == {}
    assert torch.equal(model.head.weight, GPT(TINY_MODEL, dataset.train.vocab_size, seed=9).head.weight)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"d_ff": 64}, ParameterError, "is another model than the model section says: set model.d_ff=48"),
        (
            {"position": "learned", "context_length": 32},
            ParameterError,
            "set model.context_length=16, model.position=rope",
        ),
        (GPT2_MODEL.model_dump(), ParameterError, "set model.n_kv_heads=2, model.d_ff=48, model.norm=rmsnorm"),
    ],
)
def test_another_shape_is_refused(
    tmp_path: Path, dataset: TokenDataset, change: dict[str, Any], error: type[LmcoreError], message: str
) -> None:
    save_base(tmp_path / "base", dataset)
    model = GPT(ModelParams.model_validate({**TINY_MODEL.model_dump(), **change}), dataset.train.vocab_size, seed=9)
    with pytest.raises(error, match=message):
        load_initial_weights(model, str(tmp_path / "base"), dataset.tokenizer)


def test_another_tokenizer_and_a_missing_folder_are_refused(tmp_path: Path, dataset: TokenDataset) -> None:
    save_base(tmp_path / "base", dataset)
    model = GPT(TINY_MODEL, dataset.train.vocab_size, seed=9)
    other = train_tokenizer(tokenizer_params("char"), [["abc"]])
    with pytest.raises(ArtifactError, match=r"its tokenizer \(257 entries.* is not the one that encoded the text"):
        load_initial_weights(model, str(tmp_path / "base"), other)
    with pytest.raises(ParameterError, match=r"^train\.init_from=.*none is not a folder"):
        load_initial_weights(model, str(tmp_path / "none"), dataset.tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"empty/config\.json does not exist"):
        load_initial_weights(model, str(tmp_path / "empty"), dataset.tokenizer)
