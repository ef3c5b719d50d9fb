"""Adapters: they alone learn, they end in a plain model, and a killed training goes on bit for bit."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sabotage.trials import MODEL, TRAIN, Project, open_nursery
from tiny import GPT2_MODEL, TINY_MODEL, TINY_TRAIN

from lmcore.errors import ParameterError
from lmcore.evaluate.loss import Loss, measure_loss
from lmcore.hardware.distributed import World
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.save_load import load_model, save_model
from lmcore.params import parse_section
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens.dataset import TokenDataset
from lmcore.tracking.description import TrackedRun
from lmcore.train.lora import AdaptedLinear, adapt_model, merge_adapters
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.memory import estimate_memory
from lmcore.train.params import TrainParams
from lmcore.train.plan import RunContext
from lmcore.train.schedule import plan_schedule
from lmcore.train.sharding import distribute
from lmcore.train.trainer import open_batches, run_training

LORA = TINY_TRAIN.model_copy(update={"init_from": "base", "lora_rank": 3, "lora_alpha": 6.0})
LONGER = {"max_steps": 150, "eval_every": 150, "checkpoint_every_steps": None}  # past single letters' frequencies
MODELS = {"modern": TINY_MODEL, "gpt2": GPT2_MODEL}
TOKENS = torch.arange(12)[None]


def make_adapted(params: ModelParams) -> GPT:
    """A model whose adapters have learnt something."""
    model = GPT(params, 61, seed=3)
    adapt_model(model, LORA)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".up"):
                weight.normal_(0.0, 0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)
def test_at_first_the_model_is_as_it_was(params: ModelParams) -> None:
    plain, adapted = GPT(params, 61, seed=3), GPT(params, 61, seed=3)
    adapt_model(adapted, LORA)
    assert sum(isinstance(layer, AdaptedLinear) for layer in adapted.modules()) == 4 * params.n_layers
    assert torch.equal(plain(TOKENS)[0], adapted(TOKENS)[0])
    names = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert names == {name for name, _ in adapted.named_parameters()} - {name for name, _ in plain.named_parameters()}


@pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)
def test_merged_it_computes_the_same(params: ModelParams) -> None:
    adapted = make_adapted(params)
    merged = merge_adapters(adapted)
    torch.testing.assert_close(merged(TOKENS)[0], adapted(TOKENS)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(GPT(params, 61, seed=3)(TOKENS)[0], merged(TOKENS)[0], atol=1e-3)
    assert merged.state_dict().keys() == GPT(params, 61).state_dict().keys()
    assert (merged.head.weight is merged.token_embedding.weight) == params.tie_embeddings
    assert merge_adapters(merged) is merged


def test_blocks_that_are_computed_again_give_the_same_gradients() -> None:
    gradients = []
    for again in (False, True):
        model = make_adapted(TINY_MODEL).train()
        module = distribute(LanguageModelLoss(model), World(), "replicate", "cpu", activation_checkpointing=again)
        module(TOKENS, TOKENS).total.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * 4 * TINY_MODEL.n_layers
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@contextmanager
def untracked(_: TrackedRun) -> Iterator[None]:
    yield


def test_a_fine_tuning_learns_by_its_adapters_alone(
    tmp_path: Path, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def validate(model: GPT, *, with_masks: bool = False) -> Loss:
        return measure_loss(
            model, dataset.validation, dataset.tokenizer.byte_lengths, windows=32, batch_size=4, with_masks=with_masks
        )

    def train(model: GPT, params: TrainParams, **origin: object) -> GPT:
        hardware = Hardware("cpu", "cpu", "fp32", 4, compile=False, compile_reason="a test", threads=1)
        batches = open_batches(params, TINY_MODEL.context_length, dataset, World())
        context = RunContext(plan_schedule(params, batches.context_length, batches.tokens), hardware, World())
        run_training(model, context, dataset, batches, origin=origin, validate=validate, track=untracked)
        return load_model(tmp_path / "models" / "gpt")

    base = train(GPT(TINY_MODEL, dataset.train.vocab_size, seed=5), TINY_TRAIN.model_copy(update=LONGER))
    params = LORA.model_copy(update={**LONGER, "max_steps": 240, "lora_rank": 16, "lora_alpha": 32.0})
    model = load_model(tmp_path / "models" / "gpt")
    trained = train(model, params, init_from={"weights": "abc", "run_key": None})
    assert validate(trained).loss < validate(base).loss - 0.1
    torch.testing.assert_close(trained(TOKENS)[0], model.eval()(TOKENS)[0], atol=1e-5, rtol=1e-5)
    found = dict(trained.named_parameters())
    for name, weight in base.named_parameters():
        is_adapted = name.split(".")[-2] in ("qkv", "projection", "up")
        assert torch.equal(found[name], weight) != is_adapted, name


def test_the_masks_row_is_trained_too() -> None:
    """The model that is adapted may never have seen a mask."""
    masks = TINY_MODEL.model_copy(update={"diffusion": TINY_MODEL.diffusion.model_copy(update={"block_size": 4})})
    model = make_adapted(masks)
    LanguageModelLoss(model)(TOKENS, TOKENS, torch.tensor([[0, 4]])).total.backward()
    row = model.mask_embedding.weight
    assert row.grad is not None
    assert row.grad.abs().sum() > 0
    assert torch.equal(merge_adapters(model).mask_embedding.weight, row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": None}, r"^train\.lora_rank=3: adapts a model that is there: set train\.init_from$"),
        ({"optimizer": "muon"}, r"^train\.lora_rank=3: set train\.optimizer=adamw"),
        ({"lora_rank": 0}, r"^train\.lora_rank=0: must be greater than or equal to 1$"),
    ],
)
def test_what_does_not_go_together_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_section(TrainParams, "train", {**LORA.model_dump(), **changes})


def test_the_estimate_knows_that_few_numbers_learn() -> None:
    model = GPT(TINY_MODEL, 512)
    adapt_model(model, LORA)
    hardware = Hardware("cpu", "cpu", "fp32", 4, compile=False, compile_reason="a test", threads=1)
    estimated = estimate_memory(hardware, LORA, TINY_MODEL, 512)
    learning = 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert estimated.parameters == 4 * sum(weight.numel() for weight in model.parameters())
    assert (estimated.gradients, estimated.optimizer) == (learning, 2 * learning)


@pytest.mark.slow
def test_killed_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    template = Project.create(tmp_path / "template")
    tokenizer = ByteTokenizer.create()
    save_model(template.folder / "base", GPT(MODEL, tokenizer.vocab_size, seed=5), {})
    tokenizer.save(template.folder / "base")
    train = TRAIN.model_copy(update={"init_from": "base", "lora_rank": 2, "optimizer": "adamw"})
    template.write_params(train)
    with open_nursery(template.copy(tmp_path / "practice")) as nursery:
        whole, killed = template.copy(tmp_path / "whole"), template.copy(tmp_path / "killed")
        assert nursery.run(whole).status == 0
        for line in (5, 4):
            assert nursery.run(killed, f"KILL open metrics.jsonl {line}").status == -signal.SIGKILL
        last = nursery.run(killed)
    assert last.status == 0, last.output
    assert "going on from step" in last.output
    for name in ("models/gpt/model.safetensors", "models/gpt/lineage.json", "reports/metrics/train.json"):
        assert (killed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    states = [project.find_run(train) / "checkpoints" / "step-00000012.safetensors" for project in (killed, whole)]
    assert states[0].read_bytes() == states[1].read_bytes()
