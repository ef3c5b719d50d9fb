"""The estimate against what autograd keeps and torch's own accounting says; the micro-batch that fits; refusals."""

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, TINY_TRAIN
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker

from lmcore.errors import ParameterError
from lmcore.hardware.distributed import World
from lmcore.hardware.params import Precision
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.mask_blocks import choose_mask_blocks
from lmcore.train.memory import (
    MemoryEstimate,
    choose_micro_batch,
    estimate_memory,
    explain_obstacle,
    find_micro_batch,
    fit_to_memory,
    format_memory,
)
from lmcore.train.optimizer import build_optimizers
from lmcore.train.params import TrainParams
from lmcore.train.sharding import distribute

MODERN = TINY_MODEL.model_copy(update={"n_layers": 3, "d_model": 64, "d_ff": 192, "context_length": 64})
CLASSIC = GPT2_MODEL.model_copy(update={"n_layers": 3, "d_model": 64, "context_length": 64})


def with_masks(params: ModelParams) -> ModelParams:
    chosen = {"block_size": 4, "block_fraction": 0.5}
    return params.model_copy(update={"diffusion": params.diffusion.model_copy(update=chosen)})


SHAPES = {
    "modern": MODERN,
    "classic": CLASSIC,
    "plain attention": MODERN.model_copy(update={"qk_norm": False, "n_kv_heads": None}),
    "learned positions": MODERN.model_copy(update={"position": "learned"}),
    "squared relu, capped": MODERN.model_copy(update={"mlp": "relu2", "logit_softcap": 15.0}),
    "dropout": MODERN.model_copy(update={"dropout": 0.1}),
    "document mask": MODERN.model_copy(update={"document_mask": True}),
    "classic, document mask": CLASSIC.model_copy(update={"document_mask": True}),
    "dropout, document mask": MODERN.model_copy(update={"document_mask": True, "dropout": 0.1}),
    "wide heads": MODERN.model_copy(update={"d_head": 24}),
    "wide heads, plain": MODERN.model_copy(update={"d_head": 24, "qk_norm": False, "n_kv_heads": None}),
    "masks": with_masks(MODERN),
    "classic, masks": with_masks(CLASSIC),
    "untied": CLASSIC.model_copy(update={"tie_embeddings": False}),
}
VOCAB_SIZE, ROWS = 512, 4
# 3 layers x 256, GPT-2's vocabulary: memory that a real card could lack.
LARGE = MODERN.model_copy(update={"d_model": 256, "d_ff": 768, "context_length": 256})


def on_cpu(precision: Precision = "fp32", **changes: Any) -> Hardware:
    described = {"compile": False, "compile_reason": "a test", "threads": 1, "micro_batch_asked": False}
    given = {"profile": "cpu", "device": "cpu", "precision": precision, "micro_batch_size": ROWS}
    return Hardware(**{**given, **described, **changes})


def estimate_shape(params: ModelParams, vocab_size: int, shards: int = 1, **changes: Any) -> MemoryEstimate:
    """`changes` are fields of TrainParams or of Hardware."""
    of_train = {name: changes.pop(name) for name in set(changes) & set(TrainParams.model_fields)}
    hardware = on_cpu(**changes) if shards == 1 else on_cpu(**changes, processes=shards, sharding="full")
    return estimate_memory(hardware, TINY_TRAIN.model_copy(update=of_train), params, vocab_size)


estimate = functools.partial(estimate_shape, LARGE, 50_257)
estimate_on = functools.partial(estimate_memory, params=TINY_TRAIN, model_params=LARGE, vocab_size=50_257)


def build(
    params: ModelParams, *, checkpointing: bool = False, optimizer: str = "adamw", vocab_size: int = VOCAB_SIZE
) -> tuple[GPT, Any, list[torch.optim.Optimizer]]:
    """A model after its first update, when gradients and the optimizer's state are there."""
    model = GPT(params, vocab_size, end_of_text=1).train()
    objective = distribute(
        LanguageModelLoss(model), World(), "replicate", "cpu", activation_checkpointing=checkpointing
    )
    optimizers = build_optimizers(model, TINY_TRAIN.model_copy(update={"optimizer": optimizer}))
    step(params, objective, "fp32")
    for each in optimizers:
        each.step()
    return model, objective, optimizers


def step(params: ModelParams, objective: Any, precision: Precision) -> None:
    tokens = torch.zeros(ROWS, params.context_length, dtype=torch.int64)
    with on_cpu(precision).autocast():
        loss = objective(tokens, tokens, place_masks(params)).total
    loss.backward()


def place_masks(params: ModelParams) -> Tensor | None:
    return choose_mask_blocks(params, 1, 10, ROWS, 9)


def kept_by_autograd(params: ModelParams, precision: Precision) -> int:
    """Bytes of the tensors that one forward pass to the final hidden state keeps, each storage once, no weights."""
    model = GPT(params, VOCAB_SIZE, end_of_text=1).train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), on_cpu(precision).autocast():
        hidden = model.hidden(
            torch.zeros(ROWS, params.context_length, dtype=torch.int64), mask_blocks=place_masks(params)
        )
    assert hidden.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in weights)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_what_autograd_keeps(shape: str, precision: Precision) -> None:
    estimated = estimate_shape(SHAPES[shape], VOCAB_SIZE, precision=precision)
    assert estimated.activations == pytest.approx(kept_by_autograd(SHAPES[shape], precision), rel=0.05)


COMBINATIONS = [
    (shape, *logits, checkpointing, precision)
    for shape in ("modern", "classic", "squared relu, capped", "document mask", "masks")
    for logits in ((64, 64 << 20), (4096, 64 << 20), (16_384, 4 << 20))
    for checkpointing in (False, True)
    for precision in ("fp32", "bf16")
]


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(
    ("shape", "vocab_size", "whole_logits", "checkpointing", "precision"),
    # Every seventh of these sixty has each shape, each size of the logits and each switch both ways.
    [pytest.param(*each, marks=[pytest.mark.slow] if place % 7 else []) for place, each in enumerate(COMBINATIONS)],
)
def test_the_total_is_the_peak_of_a_step(
    shape: str,
    vocab_size: int,
    whole_logits: int,
    checkpointing: bool,
    precision: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By torch's own accounting of every tensor; with the logits whole, and in pieces."""
    monkeypatch.setattr("lmcore.train.loss.WHOLE_LOGITS_BYTES", whole_logits)
    monkeypatch.setattr("lmcore.train.memory.WHOLE_LOGITS_BYTES", whole_logits)
    params = SHAPES[shape]
    model, objective, optimizers = build(params, checkpointing=checkpointing, vocab_size=vocab_size)
    tracker = MemTracker()
    tracker.track_external(model, *optimizers)
    with tracker:
        step(params, objective, precision)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    estimated = estimate_shape(params, vocab_size, activation_checkpointing=checkpointing, precision=precision)
    assert estimated.total == pytest.approx(peak["Total"], rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_lasts_is_exact(shape: str, optimizer: str) -> None:
    model, _, optimizers = build(SHAPES[shape], optimizer=optimizer)
    estimated = estimate_shape(SHAPES[shape], VOCAB_SIZE, optimizer=optimizer)
    states = [tensor for each in optimizers for state in each.state.values() for tensor in state.values()]
    assert estimated.parameters == count_bytes(model.parameters())
    assert estimated.gradients == count_bytes(weight.grad for weight in model.parameters() if weight.grad is not None)
    assert estimated.optimizer == count_bytes(tensor for tensor in states if tensor.dim())  # without counts of steps


def count_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def test_the_average_of_the_weights_is_one_more_of_each() -> None:
    assert estimate(ema_decay=0.9).optimizer - estimate().optimizer == estimate().parameters


def test_shards_divide_the_weights_and_gather_some() -> None:
    whole, half = estimate(), estimate(shards=2)
    for part in ("parameters", "gradients", "optimizer"):
        assert getattr(half, part) == pytest.approx(getattr(whole, part) / 2, abs=1)
    assert half.logits == whole.logits
    embeddings = 4 * 50_257 * 256
    assert 2 * embeddings < half.activations - whole.activations < 2 * whole.parameters
    deep = functools.partial(estimate_shape, MODERN.model_copy(update={"d_model": 512}), 64)
    few = deep(shards=64, micro_batch_size=1, activation_checkpointing=True)
    assert few.activations + few.logits == deep().parameters, "a validation puts all weights together"


def test_muon_needs_room_to_work_where_activations_are_few() -> None:
    wide = functools.partial(estimate_shape, MODERN.model_copy(update={"d_model": 512, "d_ff": 2048}), VOCAB_SIZE)
    one = {"micro_batch_size": 1}
    matrices = 3 * 512 * 4096
    assert wide(**one, optimizer="muon").activations > wide(**one).activations
    assert wide(**one, optimizer="muon").activations > 4 * 4 * matrices
    assert wide(micro_batch_size=256, optimizer="muon").activations == wide(micro_batch_size=256).activations


def test_compiled_attention_keeps_matrices_on_a_cpu_alone() -> None:
    long = functools.partial(estimate_shape, MODERN.model_copy(update={"context_length": 512}), VOCAB_SIZE)
    added = long(compile=True).activations - long().activations
    assert added == 3 * ROWS * 4 * 8 * 128 * (128 + 256 + 384 + 512)  # layers, rows, heads, bytes, blocks
    assert long(compile=True, device="cuda") == long(device="cuda")


def test_the_document_mask_is_kept_once_and_as_numbers_in_each_block() -> None:
    params = MODERN.model_copy(update={"context_length": 1024})
    plain = functools.partial(estimate_shape, params, VOCAB_SIZE)
    masked = functools.partial(estimate_shape, params.model_copy(update={"document_mask": True}), VOCAB_SIZE)
    square = ROWS * 1024**2
    assert masked().activations - plain().activations == square * (1 + 3 * 4)
    assert masked(compile=True) == masked(), "too long for blocks"
    grouped = ROWS * 1024 * 3 * 4 * 2 * 32  # keys and values of half the heads, on a card
    assert masked(device="cuda").activations - plain(device="cuda").activations == square * (1 + 3 * 4) + grouped


def test_the_largest_size_that_fits_is_chosen() -> None:
    up_to_64, up_to_8, needed = (
        on_cpu(micro_batch_size=64),
        on_cpu(micro_batch_size=8),
        estimate(micro_batch_size=11).total,
    )
    assert choose_micro_batch(estimate_on, up_to_64, needed) == 11
    assert choose_micro_batch(estimate_on, up_to_64, needed - 1) == 10
    assert choose_micro_batch(estimate_on, up_to_8, needed) == 8
    assert choose_micro_batch(estimate_on, up_to_8, 0) == 1


@pytest.mark.parametrize(
    ("changes", "fits", "way_out"),
    [
        ({}, {"micro_batch_size": 3}, "set hardware.micro_batch_size=3"),
        (
            {},
            {"micro_batch_size": 1, "activation_checkpointing": True},
            "set hardware.micro_batch_size=1 and hardware.activation_checkpointing=true",
        ),
        (
            {"processes": 8},
            {"micro_batch_size": 1, "activation_checkpointing": True, "shards": 8},
            "set hardware.micro_batch_size=1, activation_checkpointing=true and sharding=full",
        ),
        ({"processes": 8}, None, "free some, or make model.n_layers, model.d_model or model.context_length smaller"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cheapest_way_out(
    changes: dict[str, Any], fits: dict[str, Any] | None, way_out: str
) -> None:
    hardware = on_cpu(**changes, compile=True)
    usable = estimate(**fits, compile=True).total if fits else 1_000_000
    message = explain_obstacle(estimate_on, hardware, usable * hardware.processes)
    assert message is not None
    assert message.startswith(
        f"hardware.micro_batch_size=4: a training step needs {format_memory(estimate(compile=True))}, but of"
    )
    assert message.endswith(f"; {way_out}")
    assert "\n" not in message
    if fits:
        fitting = {name: value for name, value in fits.items() if name != "shards"}
        sharding = "full" if "shards" in fits else "replicate"
        changed = replace(hardware, sharding=sharding, **fitting)
        assert explain_obstacle(estimate_on, changed, usable * hardware.processes) is None


def test_eager_tensors_cannot_fill_the_heap() -> None:
    needed = estimate().total
    assert explain_obstacle(estimate_on, on_cpu(compile=True), estimate(compile=True).total) is None
    assert "a process can fill" in (explain_obstacle(estimate_on, on_cpu(), needed) or "")
    assert explain_obstacle(estimate_on, on_cpu(), needed * 2) is None


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine's memory, to be set: how much it has and how much of that is free."""
    sizes = {"total": 1e12, "available": 1e12}
    monkeypatch.setattr("lmcore.train.memory.total_memory", lambda _: sizes["total"])
    monkeypatch.setattr("lmcore.train.memory.available_memory", lambda _: sizes["available"])
    return sizes


def fit(hardware: Hardware) -> Hardware:
    return fit_to_memory(hardware, TINY_TRAIN, MODERN, VOCAB_SIZE).require_fit()


def test_the_micro_batch_follows_from_the_machine_and_not_from_the_moment(memory: dict[str, float]) -> None:
    assert fit(on_cpu()) == on_cpu()
    needed = estimate_shape(MODERN, VOCAB_SIZE, micro_batch_size=2).total
    memory["total"] = needed / 0.5 / 0.6 + 4  # the half of it, and of that what the heap lets tensors fill
    assert fit(on_cpu()).micro_batch_size == 2
    memory["available"] = needed / 0.6 + 4
    assert fit(on_cpu()).micro_batch_size == 2
    memory["available"] = needed / 0.6 * 0.98
    with pytest.raises(ParameterError, match=r"micro_batch_size=2: .* set hardware.micro_batch_size=1"):
        fit(on_cpu())


def test_an_explicit_micro_batch_is_kept_or_refused(memory: dict[str, float]) -> None:
    memory["total"] = 1
    assert fit(on_cpu(micro_batch_asked=True)).micro_batch_size == ROWS
    memory["available"] = 1
    with pytest.raises(ParameterError, match="micro_batch_size=4: a training step needs"):
        fit(on_cpu(micro_batch_asked=True))


def test_processes_share_main_memory_and_have_a_card_each(memory: dict[str, float]) -> None:
    needed = estimate_shape(MODERN, VOCAB_SIZE).total
    memory["available"] = needed * 3
    assert fit(on_cpu()).micro_batch_size == ROWS
    with pytest.raises(ParameterError, match="a process can fill"):
        fit(on_cpu(processes=2))
    card = Hardware("gpu", "cuda", "fp32", ROWS, compile=False, compile_reason="", threads=1, processes=2)
    assert fit(card) == card


def test_a_trial_halves_until_the_card_bears_it() -> None:
    tried = []

    def run_out_above_five(size: int) -> None:
        tried.append(size)
        if size > 5:
            raise torch.OutOfMemoryError

    assert find_micro_batch(run_out_above_five, 24) == 3
    assert tried == [24, 12, 6, 3]


def test_a_trial_that_fails_with_one_sequence_says_so() -> None:
    def run_out(size: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(ParameterError, match=r"micro_batch_size=1: one sequence does not fit into the card's memory"):
        find_micro_batch(run_out, 4)


def test_other_errors_of_a_trial_are_not_about_memory() -> None:
    def stumble(size: int) -> None:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        find_micro_batch(stumble, 4)


def test_a_real_step_is_tried_once() -> None:
    _, objective, _ = build(MODERN)
    tried = []

    def try_step(size: int) -> None:
        tried.append(size)
        tokens = torch.zeros(size, MODERN.context_length, dtype=torch.int64)
        objective(tokens, tokens).total.backward()

    assert find_micro_batch(try_step, 6) == 6
    assert tried == [6]


def test_the_estimate_is_one_line() -> None:
    shown = format_memory(MemoryEstimate(1_000_000_000, 1_000_000_000, 2_000_000_000, 260_400_000, 12))
    assert shown == "4.3 GB (parameters 1 GB, gradients 1 GB, optimizer 2 GB, activations 260 MB, logits 12 B)"
