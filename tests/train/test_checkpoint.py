"""Checkpoints come back exactly, the right ones are kept, and damaged ones are passed over."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import BinaryIO

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lmcore.files import write_file
from lmcore.model.weights import TYPE_NAMES
from lmcore.train import checkpoint
from lmcore.train.checkpoint import FORMAT, Checkpoints

State = dict[str, Tensor]


def make_state(seed: int) -> State:
    """Some of everything: types, shapes, strides, an empty tensor and a weight that wants a gradient."""
    source = torch.Generator().manual_seed(seed)
    wide = torch.randn(6, 4, generator=source)
    return {
        "model/weight": torch.nn.Parameter(wide),
        "model/transposed": wide.T,
        "model/slice": wide[:, 1],
        "model/half": wide.to(torch.bfloat16),
        "optimizer/step": torch.tensor(float(seed)),
        "optimizer/count": torch.tensor([seed, -(2**40)]),
        "optimizer/mask": wide > 0,
        "optimizer/codes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
    }


def is_equal(left: State, right: State) -> bool:
    """Names, types, shapes and bits: -0.0 is not 0.0, and a NaN is itself."""
    return left.keys() == right.keys() and all(
        (mine.dtype, mine.shape) == (right[name].dtype, right[name].shape)
        and mine.detach().contiguous().view(-1).view(torch.uint8).equal(right[name].view(-1).view(torch.uint8))
        for name, mine in left.items()
    )


def steps_in(folder: Path) -> list[int]:
    """Of the tensors on disk; every one of them has its metadata, and there is nothing else."""
    names = sorted(path.name for path in folder.iterdir())
    tensors = [name for name in names if name.endswith(".safetensors")]
    assert names == sorted(tensors + [name.replace(".safetensors", ".json") for name in tensors])
    return [int(name[len("step-") : -len(".safetensors")]) for name in tensors]


def read_metadata(folder: Path, step: int) -> dict[str, object]:
    metadata: dict[str, object] = json.loads((folder / f"step-{step:08d}.json").read_text())
    return metadata


def test_everything_comes_back(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(3, make_state(3), val_loss=1.5, ends_stable_phase=True)
    restored = Checkpoints(tmp_path, keep=2).restore()
    assert restored is not None
    assert restored[0] == 3
    assert is_equal(make_state(3), restored[1])
    assert not is_equal(make_state(4), restored[1])
    assert is_equal(make_state(3), load_file(tmp_path / "step-00000003.safetensors")), "the library reads it otherwise"
    metadata = read_metadata(tmp_path, 3)
    assert metadata.pop("sha256")
    size = (tmp_path / "step-00000003.safetensors").stat().st_size
    assert metadata == {"format": FORMAT, "step": 3, "bytes": size, "val_loss": 1.5, "trunk": True}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name.isprintable() and name != "__metadata__"),
        st.tuples(st.sampled_from(list(TYPE_NAMES)), st.lists(st.integers(0, 3), max_size=3), st.binary(min_size=216)),
        max_size=5,
    )
)
def test_any_bits_come_back(tmp_path: Path, shapes: dict[str, tuple[torch.dtype, list[int], bytes]]) -> None:
    state: State = {}
    for name, (dtype, shape, content) in shapes.items():
        count = torch.Size(shape).numel()
        if dtype == torch.bool:
            state[name] = torch.tensor([byte % 2 == 1 for byte in content[:count]], dtype=dtype).view(shape)
        else:
            state[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)[: count * dtype.itemsize]
            state[name] = state[name].clone().view(dtype).view(shape)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore()
    assert restored is not None
    assert is_equal(state, restored[1])


def test_the_state_may_change_as_soon_as_save_returns(tmp_path: Path) -> None:
    state, gate = make_state(1), Event()
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints._writer.submit(gate.wait, 60)  # the writer comes to our state only afterwards
        checkpoints.save(1, state)
        with torch.no_grad():
            for tensor in state.values():
                tensor.zero_()
        assert not list(tmp_path.iterdir()), "save has waited for the writer"
        gate.set()
        restored = checkpoints.restore()
    assert restored is not None
    assert is_equal(make_state(1), restored[1])


def test_what_was_restored_is_its_own(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, make_state(1))
        restored = checkpoints.restore()
        checkpoints.save(2, make_state(2))
    assert restored is not None
    path = tmp_path / "step-00000001.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(bytes(size))
    assert is_equal(make_state(1), restored[1]), "it is the next save's memory, or the file's"


def test_a_second_save_reuses_the_memory_of_the_first(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        checkpoints.save(1, make_state(1))
        image = checkpoints._image
        checkpoints.save(2, make_state(2))
        assert checkpoints._image is image


@pytest.mark.parametrize(
    "change",
    [
        {"more": torch.ones(2)},
        {"model/weight": torch.ones(1, 1)},
        {"model/half": torch.ones(6, 4, dtype=torch.float16)},
    ],
    ids=["names", "shapes", "types"],
)
def test_a_state_of_another_kind_comes_back_too(tmp_path: Path, change: State) -> None:
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(2, {**make_state(2), **change})
        restored = checkpoints.restore()
    assert restored is not None
    assert is_equal({**make_state(2), **change}, restored[1])


def test_saves_wait_for_one_another(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=99) as checkpoints:
        for step in range(1, 20):
            checkpoints.save(step, make_state(step))
            assert steps_in_progress(tmp_path) <= 1
    for step in range(1, 20):
        assert is_equal(make_state(step), load_file(tmp_path / f"step-{step:08d}.safetensors"))


def steps_in_progress(folder: Path) -> int:
    return len(list(folder.glob(".step-*.safetensors.partial-*")))


def test_leaving_waits_for_the_writer_also_with_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1))
        raise KeyError
    assert steps_in(tmp_path) == [1]


Losses = dict[int, float | None]


@pytest.mark.parametrize(
    ("losses", "stable_ends", "kept"),
    [
        ({1: None, 2: None, 10: None, 30: None}, [], [10, 30]),
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 5.0}, [], [2, 4, 5]),
        ({1: 3.0, 2: 2.0, 3: 1.0}, [], [2, 3]),
        ({1: 1.0, 2: 1.0, 3: 1.0, 4: None}, [], [1, 3, 4]),
        ({1: None, 2: 5.0, 3: None, 4: None, 5: None}, [], [2, 4, 5]),
        ({1: None, 2: None, 3: None, 4: None}, [1], [1, 3, 4]),
        ({1: 9.0, 2: 1.0, 3: 3.0, 4: 4.0, 5: 5.0, 6: 6.0}, [1, 3], [1, 2, 3, 5, 6]),
    ],
    ids=["the last", "the best", "the best is among the last", "equals", "one loss", "a stable phase", "everything"],
)
def test_the_last_the_best_and_ends_of_stable_phases_are_kept(
    tmp_path: Path, losses: Losses, stable_ends: list[int], kept: list[int]
) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, make_state(step), val_loss=loss, ends_stable_phase=step in stable_ends)
    assert steps_in(tmp_path) == kept


def test_another_process_keeps_the_same(tmp_path: Path) -> None:
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 4.0)):
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            checkpoints.save(step, make_state(step), val_loss=loss, ends_stable_phase=step == 1)
    assert steps_in(tmp_path) == [1, 2, 4]


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "cut": lambda tensors, _: rewrite(tensors, lambda content: content[: len(content) // 2]),
    "flipped": lambda tensors, _: rewrite(tensors, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "longer": lambda tensors, _: rewrite(tensors, lambda content: content + b"\0"),
    "empty": lambda tensors, _: tensors.write_bytes(b""),
    "tensors missing": lambda tensors, _: tensors.unlink(),
    "metadata missing": lambda _, record: record.unlink(),
    "metadata cut": lambda _, record: rewrite(record, lambda content: content[:20]),
    "metadata flipped": lambda _, metadata: rewrite(
        metadata, lambda content: content.replace(b'"sha256"', b'"sha257"')
    ),
    "metadata of another step": lambda _, metadata: rewrite(
        metadata, lambda content: content.replace(b": 4,", b": 5,")
    ),
    "metadata of another kind": lambda _, record: record.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(2, make_state(2))
        checkpoints.save(4, make_state(4))
    DAMAGE[damage](tmp_path / "step-00000004.safetensors", tmp_path / "step-00000004.json")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore()
        assert restored is not None
        assert restored[0] == 2
        assert is_equal(make_state(2), restored[1])
        warnings = capsys.readouterr().err
        assert warnings.count("passed over") == (damage != "metadata missing")
        assert warnings.count("step-00000004") == (damage != "metadata missing")
        checkpoints.save(3, make_state(3))
    assert steps_in(tmp_path) == [2, 3], "the damaged one counts among the last"


@pytest.mark.parametrize("version", [None, FORMAT + 1])
def test_another_versions_checkpoint_is_passed_over_and_left_alone(
    tmp_path: Path, version: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(9, make_state(9), val_loss=0.0)
        checkpoints.finish()
        path = tmp_path / "step-00000009.json"
        path.write_text(json.dumps({**read_metadata(tmp_path, 9), "format": version, "more": 1}))
        assert checkpoints.restore() is None
        assert f"{path} belongs to another version of lmcore" in capsys.readouterr().err
        checkpoints.save(1, make_state(1), val_loss=1.0)
        checkpoints.save(2, make_state(2), val_loss=2.0)
    assert steps_in(tmp_path) == [1, 2, 9]


def test_what_a_killed_writer_left_makes_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-00000005.safetensors").write_bytes(b"without metadata")
    (tmp_path / ".step-00000006.safetensors.partial-999999999").mkdir()
    (tmp_path / ".step-00000006.safetensors.partial-999999999" / "new").write_bytes(b"torn")

    def write_into_room(path: Path) -> AbstractContextManager[BinaryIO]:
        assert not list(tmp_path.iterdir())
        return write_file(path)

    monkeypatch.setattr(checkpoint, "write_file", write_into_room)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore() is None
        checkpoints.save(7, make_state(7))
    assert steps_in(tmp_path) == [7]


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", keep=1).restore() is None
    assert not (tmp_path / "none").exists()
