"""Training with masks: where blocks come, that their loss is the paper's, and that it is exact however it is cut."""

from pathlib import Path

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, TINY_TRAIN
from torch import Tensor
from training import Training

from lmcore.errors import ArtifactError, ParameterError
from lmcore.evaluate.loss import measure_loss
from lmcore.files import read_json
from lmcore.model import gpt
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.save_load import load_model
from lmcore.model.tidar import TidarMask
from lmcore.params import parse_section
from lmcore.tokens.dataset import TokenDataset
from lmcore.train import loss
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.mask_blocks import choose_mask_blocks

SIZE = 4


def with_masks(params: ModelParams = TINY_MODEL, **changes: object) -> ModelParams:
    chosen = {"block_size": SIZE, "start_fraction": 0.0, "block_fraction": 0.5, **changes}
    return params.model_copy(update={"diffusion": params.diffusion.model_copy(update=chosen)})


@pytest.fixture
def training(tmp_path: Path, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path / "project", dataset, monkeypatch)


def choose(params: ModelParams, step: int = 5, batch_size: int = 200) -> Tensor:
    blocks = choose_mask_blocks(params, 1, 10, batch_size, step)
    assert blocks is not None
    return blocks


def test_blocks_lie_side_by_side_and_within_the_context() -> None:
    params = with_masks(block_fraction=1.0)
    blocks = choose(params)
    assert blocks.shape == (200, 3)
    assert (blocks.diff(dim=1) == SIZE).all()
    assert blocks.min() == 0
    assert set((blocks % SIZE).flatten().tolist()) == set(range(SIZE))
    assert blocks.max() + SIZE == params.context_length - 1  # learned positions end there
    fixed = choose(with_masks(block_fraction=1.0, random_offset=False))
    assert fixed.unique(dim=0).tolist() == [[0, 4, 8]]


def test_some_blocks_are_drawn_anew_at_each_step() -> None:
    params = with_masks(TINY_MODEL.model_copy(update={"context_length": 64}), block_fraction=0.25)
    blocks, counts = choose(params, batch_size=1000), {}
    assert blocks.shape == (1000, 4)
    assert (blocks.diff(dim=1) >= SIZE).all()
    for place in (blocks // SIZE).flatten().tolist():
        counts[place] = counts.get(place, 0) + 1
    assert sorted(counts) == list(range(15))
    assert all(4000 / 15 * 0.75 < count < 4000 / 15 * 1.25 for count in counts.values())
    assert torch.equal(blocks, choose(params, batch_size=1000))
    assert not torch.equal(blocks, choose(params, step=6, batch_size=1000))


def test_first_the_text_alone() -> None:
    params = with_masks(start_fraction=0.6)
    assert [choose_mask_blocks(params, 1, 10, 2, step) is None for step in range(10)] == [True] * 6 + [False] * 4
    assert choose_mask_blocks(TINY_MODEL, 1, 10, 2, 9) is None


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("params", [TINY_MODEL, GPT2_MODEL], ids=["modern", "gpt2"])
def test_the_loss_is_the_papers(params: ModelParams, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over all masks and over all tokens, weighted; its value, its gradients and its parts."""
    monkeypatch.setattr(loss, "WHOLE_LOGITS_BYTES", 2000 if pieces else 1 << 20)
    tokens = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    blocks = torch.tensor([[0, 5], [1, 9], [3, 10]])
    gradients = []
    for ours in (True, False):
        model = GPT(with_masks(params, weight=0.5), 61, seed=1)
        if ours:
            total, parts = LanguageModelLoss(model)(inputs, targets, blocks)
        else:
            logits = model.logits(model.hidden(inputs, mask_blocks=blocks))
            text = torch.nn.functional.cross_entropy(logits[:, :16].flatten(0, 1), targets.flatten())
            places = (blocks[:, :, None] + torch.arange(SIZE)).flatten(1)
            wanted = targets.gather(1, places)
            each = torch.nn.functional.cross_entropy(logits[:, 16:].mT, wanted, reduction="none")
            expected = [text, *each.view(-1, SIZE).mean(dim=0)]
            alone = (text + 0.5 * each.mean()) / 1.5
            torch.testing.assert_close(total, alone)
            torch.testing.assert_close(parts, torch.stack(expected))
            total = alone
        total.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_a_card_computes_the_same() -> None:
    """By FlexAttention, whose backward no processor has."""
    wide = TINY_MODEL.model_copy(update={"d_model": 64, "context_length": 64})
    tokens = torch.randint(61, (3, 65), generator=torch.Generator().manual_seed(1))
    blocks, results = choose(with_masks(wide), batch_size=3), []
    for device in ("cpu", "cuda"):
        model = GPT(with_masks(wide), 61, seed=1).to(device)
        given = (tokens[:, :-1].to(device), tokens[:, 1:].to(device), blocks.to(device))
        losses = LanguageModelLoss(model)(*given)
        losses.total.backward()
        results.append([losses.total, *(weight.grad for weight in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-3, atol=1e-4)


def test_before_the_first_block_it_is_a_plain_training(training: Training, tmp_path: Path) -> None:
    """All of it, where the blocks come too late: to the bit, and the masks' row has only decayed."""
    plain = training.run()
    other = Training(tmp_path / "other", training.dataset, training.monkeypatch)
    late = other.run(model_params=with_masks(start_fraction=0.999))
    weights = late.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in plain.state_dict().items())
    kept = [{key: value for key, value in record.items() if "diffusion" not in key} for record in other.steps()]
    assert kept == training.steps()


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_how_a_batch_is_cut_does_not_matter(micro_batch_size: int, training: Training, tmp_path: Path) -> None:
    other = Training(tmp_path / "other", training.dataset, training.monkeypatch)
    for each, size in ((training, 4), (other, micro_batch_size)):
        each.run(model_params=with_masks(start_fraction=0.5), micro_batch_size=size)
    whole, cut = training.steps(), other.steps()
    assert [record.keys() for record in whole] == [record.keys() for record in cut]
    for one, two in zip(whole, cut, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_both_losses_and_each_places_are_logged(training: Training) -> None:
    training.run(model_params=with_masks(start_fraction=0.5))
    records = training.steps()
    names = {"diffusion_loss", *(f"diffusion_loss_{place}" for place in range(1, SIZE + 1))}
    assert [names <= record.keys() for record in records] == [False] * 6 + [True] * 6
    assert ["val_diffusion_loss" in record for record in records] == [step in (8, 12) for step in range(1, 13)]
    assert not names & records[5].keys()
    last = records[-1]
    places = [last[f"diffusion_loss_{place}"] for place in range(1, SIZE + 1)]
    assert last["diffusion_loss"] == pytest.approx(sum(places) / SIZE)
    metrics = read_json(training.folder / "reports" / "metrics" / "train.json", "")
    assert {"val_diffusion_loss", "val_diffusion_loss_4"} <= metrics.keys()
    header = (training.folder / "reports" / "plots" / "training.csv").read_text().splitlines()[0]
    assert header.endswith(",diffusion_loss,val_diffusion_loss")


LONGER = TINY_TRAIN.model_copy(
    update={"max_steps": 300, "eval_every": 300, "checkpoint_every_steps": None, "batch_size": 8}
)


class SeesAll(TidarMask):
    """The mistake that makes the masks' loss collapse: the answer lies open before them."""

    def __call__(self, batch: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        return super().__call__(batch, head, query, key) | (key < self.time)


@pytest.mark.slow
def test_further_ahead_is_harder(training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T11: the first mask knows no more than the text itself does, each further one less; or it would show."""
    wide = TINY_MODEL.model_copy(update={"context_length": 32, "tie_embeddings": False})
    training.run(params=LONGER, model_params=with_masks(wide))
    last = training.steps()[-1]
    places = [last[f"val_diffusion_loss_{place}"] for place in range(1, SIZE + 1)]
    assert last["val_loss"] - 0.15 < places[0] < places[3] < 5
    monkeypatch.setattr(gpt, "TidarMask", SeesAll)
    other = Training(tmp_path / "other", training.dataset, training.monkeypatch)
    other.run(params=LONGER, model_params=with_masks(wide))
    last = other.steps()[-1]
    assert last["val_diffusion_loss_1"] < last["val_loss"] - 0.5


@pytest.mark.parametrize(("start_fraction", "step"), [(0.25, 3), (0.0, 6), (0.9, 6)])
def test_a_longer_run_branches_off_before_the_first_block(
    start_fraction: float, step: int, training: Training, tmp_path: Path
) -> None:
    """From there on the two differ, unless both have masks from the beginning; and its checkpoint is kept."""
    params, model = TINY_TRAIN.model_copy(update={"schedule": "wsd"}), with_masks(start_fraction=start_fraction)
    long = params.model_copy(update={"max_steps": 20})
    training.run(params=params, model_params=model)
    training.run(params=long, model_params=model)
    (branch,) = (training.folder / "runs").glob("*/branch.json")
    assert read_json(branch, "")["step"] == step
    other = Training(tmp_path / "other", training.dataset, training.monkeypatch)
    other.run(params=long, model_params=model)
    weights = [(each.folder / "models" / "gpt" / "model.safetensors").read_bytes() for each in (training, other)]
    assert weights[0] == weights[1]


def test_windows_too_short_for_a_block_are_passed_over(dataset: TokenDataset) -> None:
    """The last window of a split may hold any number of tokens."""
    model = GPT(with_masks(), dataset.train.vocab_size, 1)
    shards, lengths = dataset.validation, dataset.tokenizer.byte_lengths
    for context_length in range(9, 17):
        model.params = model.params.model_copy(update={"context_length": context_length})
        measured = measure_loss(model, shards, lengths, windows=None, batch_size=4, with_masks=True)
        assert len(measured.mask_losses) == SIZE
        assert all(5 < loss < 6 for loss in measured.mask_losses)


def test_a_folder_without_the_masks_row_is_refused(training: Training) -> None:
    training.run(model_params=with_masks())
    folder = training.folder / "models" / "gpt"
    assert load_model(folder).mask_embedding.weight.shape == (1, TINY_MODEL.d_model)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"block_size": 4', '"block_size": null'))
    with pytest.raises(ArtifactError, match="does not fit"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 1}, r"model\.diffusion\.block_size=1: must be greater than or equal to 2"),
        ({"block_size": 9}, r"model\.diffusion\.block_size=9: must be at most half of model\.context_length=16"),
        ({"block_fraction": 0}, r"model\.diffusion\.block_fraction=0: must be greater than 0"),
        ({"start_fraction": 1}, r"model\.diffusion\.start_fraction=1: must be less than 1"),
        ({"blok_size": 4}, r"model\.diffusion\.blok_size=4: unknown key, did you mean model\.diffusion\.block_size\?"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, object], message: str) -> None:
    values = TINY_MODEL.model_dump()
    values["diffusion"] |= change
    with pytest.raises(ParameterError, match=f"^{message}"):
        parse_section(ModelParams, "model", values)
