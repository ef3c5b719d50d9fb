"""Laws of sharing a training out: the number of processes and the way change rounding and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from imports import ROOT
from safetensors.torch import load_file, save_file
from sharded_training import BATCH, STEPS, VOCABULARY, Job, Training
from tiny import GPT2_MODEL, TINY_MODEL
from torch import Tensor

from lmcore.hardware.distributed import World
from lmcore.model.gpt import GPT
from lmcore.train import trainer as session
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.sharding import distribute, gather_tensor, shard_like, sync_gradients, whole_weights
from lmcore.train.state import TrainState

pytestmark = pytest.mark.xdist_group("sharded")  # tests that share the trainings share a process

HALF = STEPS // 2
WAYS = [
    {"sharding": "replicate"},
    {"sharding": "replicate", "micro_batch_size": 2},
    {"sharding": "replicate", "micro_batch_size": 1, "recompute": True},
    {"sharding": "full"},
    {"sharding": "full", "micro_batch_size": 2},
    {"sharding": "full", "micro_batch_size": 1, "recompute": True},
]


def run_in_processes(processes: int, folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each job's result; its tensors are in job-N.safetensors."""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    command = [sys.executable, "-W", "error", "-m", "sharded_training"]
    environment |= {"PROCESSES": str(processes), "JOBS": json.dumps(jobs)}
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True, timeout=240)
    return [json.loads((folder / f"job-{number}.json").read_text()) for number in range(len(jobs))]


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same training in one process."""
    training = Training(World(), Job())
    return training.run(), training.collect()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Every way in two processes, then the second half of a training whose first half one process made."""
    folder = tmp_path_factory.mktemp("shared")
    half = Training(World(), Job(last=HALF))
    half.run()
    save_file({name: tensor.contiguous() for name, tensor in half.collect().items()}, folder / "half.safetensors")
    resumed = [{"sharding": sharding, "first": HALF, "load": "half.safetensors"} for sharding in ("replicate", "full")]
    halves = [{"sharding": sharding, "last": HALF} for sharding in ("replicate", "full")]
    return folder, run_in_processes(2, folder, [*WAYS, *resumed, *halves])


def test_two_processes_begin_as_one(alone: Any, tmp_path: Path) -> None:
    """Ten steps in one way of each kind, and five more from what one process has saved; the whole of it is slow."""
    half = Training(World(), Job(last=HALF))
    half.run()
    save_file({name: tensor.contiguous() for name, tensor in half.collect().items()}, tmp_path / "half.safetensors")
    resumed = {"sharding": "full", "first": HALF, "last": HALF + 5, "load": "half.safetensors"}
    begun = [{**way, "last": 10} for way in (WAYS[1], WAYS[4])]
    *results, gone_on = run_in_processes(2, tmp_path, [*begun, resumed])
    for result in results:
        assert result["losses"] == pytest.approx(alone[0]["losses"][:10], rel=1e-5)
        assert result["norms"] == pytest.approx(alone[0]["norms"][:10], rel=1e-4)
        assert result["parts_are_equal"]
    assert gone_on["losses"] == pytest.approx(alone[0]["losses"][HALF : HALF + 5], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", range(len(WAYS)), ids=[" ".join(map(str, way.values())) for way in WAYS])
def test_two_processes_train_as_one(way: int, alone: Any, shared: Any) -> None:
    result, expected = shared[1][way], alone[0]
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert result["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    assert result["validations"] == pytest.approx(expected["validations"], rel=1e-4)
    assert result["names"] == expected["names"]


@pytest.mark.slow
def test_full_sharding_holds_half(alone: Any, shared: Any) -> None:
    held = [result["numbers_held"] / alone[0]["numbers_held"] for result in shared[1][: len(WAYS)]]
    assert held == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5], rel=0.02)


@pytest.mark.slow
def test_whole_and_part_are_inverse(shared: Any) -> None:
    assert all(result["parts_are_equal"] for result in shared[1])


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1], ids=["replicate", "full"])
def test_saved_by_one_process_and_gone_on_with_two(place: int, alone: Any, shared: Any) -> None:
    assert shared[1][len(WAYS) + place]["losses"] == pytest.approx(alone[0]["losses"][HALF:], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("place", [2, 3], ids=["replicate", "full"])
def test_saved_by_two_processes_and_gone_on_with_one(place: int, alone: Any, shared: Any) -> None:
    path = shared[0] / f"job-{len(WAYS) + place}.safetensors"
    training = Training(World(), Job(load=str(path), first=HALF))
    saved, taken_over = load_file(path), training.collect()
    assert all(torch.equal(saved[name], taken_over[name]) for name in saved)  # exact to the last bit
    assert training.run()["losses"] == pytest.approx(alone[0]["losses"][HALF:], rel=1e-5)


@pytest.mark.slow
def test_three_processes_resume_bit_for_bit(tmp_path: Path) -> None:
    """Three is where the order of a sum shows: with two, a + b is b + a."""
    ways = ("replicate", "full")
    jobs = [{"sharding": way, "last": HALF} for way in ways] + [{"sharding": way} for way in ways]
    jobs += [{"sharding": way, "first": HALF, "load": f"job-{place}.safetensors"} for place, way in enumerate(ways)]
    run_in_processes(3, tmp_path, jobs)
    for place in range(2):
        whole, resumed = (load_file(tmp_path / f"job-{number + place}.safetensors") for number in (2, 4))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), ways[place]


def test_a_gathered_model_still_tells_documents_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "gather_tensor", torch.clone)
    model = GPT(TINY_MODEL.model_copy(update={"document_mask": True}), VOCABULARY, end_of_text=1)
    whole = session.gather_model(TrainState(model, LanguageModelLoss(model), []))
    tokens = torch.arange(8)[None] % 3
    assert whole.token_embedding.weight.data_ptr() != model.token_embedding.weight.data_ptr()
    assert torch.equal(whole(tokens)[0], model(tokens)[0])


def test_alone_nothing_changes() -> None:
    objective = LanguageModelLoss(GPT(GPT2_MODEL, VOCABULARY))
    assert distribute(objective, World(), "full", "cpu", activation_checkpointing=False) is objective
    weight = objective.model.head.weight
    assert gather_tensor(weight) is weight
    assert torch.equal(shard_like(weight.detach(), weight), weight)
    with sync_gradients(objective, False), whole_weights(objective):
        assert objective.model.head.weight is weight


@pytest.mark.slow
def test_masks_come_in_the_middle_in_every_way(tmp_path: Path) -> None:
    """At first their row has no part in the loss, which DDP would wait for, and then it has."""
    ways = [WAYS[1], WAYS[2], WAYS[4], WAYS[5]]
    results = run_in_processes(2, tmp_path, [{**way, "masks_from": HALF} for way in ways])
    expected = Training(World(), Job(masks_from=HALF)).run()
    assert max(expected["losses"][HALF : HALF + 5]) > max(expected["losses"][HALF - 5 : HALF])
    for result in results:
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-4)


@pytest.mark.slow
def test_documents_are_told_apart_in_every_way(tmp_path: Path) -> None:
    ways = [{"sharding": "replicate"}, {"sharding": "full", "micro_batch_size": 2, "recompute": True}]
    results = run_in_processes(2, tmp_path, [{**way, "document_mask": True} for way in ways])
    expected = Training(World(), Job(document_mask=True)).run()
    for result in results:
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert result["validations"] == pytest.approx(expected["validations"], rel=1e-4)


@pytest.mark.parametrize("document_mask", [False, True])
def test_recomputing_changes_no_bit(document_mask: bool) -> None:
    """Dropout included: the masks are drawn a second time."""
    params = GPT2_MODEL.model_copy(update={"dropout": 0.3, "document_mask": document_mask})
    tokens = torch.randint(VOCABULARY, (BATCH, 17), generator=torch.Generator().manual_seed(1))
    gradients = []
    for recompute in (False, True):
        model = GPT(params, VOCABULARY, end_of_text=1)
        objective = distribute(
            LanguageModelLoss(model), World(), "replicate", "cpu", activation_checkpointing=recompute
        )
        torch.manual_seed(3)
        objective(tokens[:, :-1], tokens[:, 1:]).total.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        assert list(model.state_dict()) == list(GPT(GPT2_MODEL, VOCABULARY).state_dict())
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
