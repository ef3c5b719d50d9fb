"""Checkpoints: everything that the next step depends on, written whole or not at all.

The batch, the learning rate and the dropout masks of a step are pure functions of the seed and the step, so weights,
optimizer state and the step itself are the whole state: there is no loader or generator to lose.
"""

import hashlib
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from lmcore.errors import ArtifactError
from lmcore.files import read_json, write_file, write_json
from lmcore.progress import warn
from lmcore.train.optimizer import collect_state, restore_state


class Checkpoints:
    """The folder of one run's checkpoints: step-00000100.safetensors and, written after it, step-00000100.json.

    The second file holds the first one's SHA-256; a checkpoint without it, or not matching it, does not count.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Write the state after `step` updates and remove all but the last `keep`."""
        weights = {f"model/{name}": weight.detach() for name, weight in model.named_parameters()}
        content = save(
            {name: tensor.cpu().contiguous() for name, tensor in {**weights, **collect_state(optimizer, model)}.items()}
        )
        path = self.folder / f"step-{step:08d}.safetensors"
        with write_file(path) as file:
            file.write(content)
        write_json(path.with_suffix(".json"), {"step": step, "sha256": hashlib.sha256(content).hexdigest()})
        for stale in self._seals()[: -self.keep]:
            stale.unlink()
        for weights_path in self.folder.glob("step-*.safetensors"):
            if not weights_path.with_suffix(".json").exists():
                weights_path.unlink()

    def restore(self, model: nn.Module, optimizer: Optimizer) -> int:
        """Put the newest sound checkpoint back and return its step; 0, and nothing changed, when there is none."""
        for seal in reversed(self._seals()):
            try:
                step, tensors = self._read(seal)
            except ArtifactError as error:
                # Removed, so that it does not count among the last ones that are kept.
                warn(f"{error}: passed over")
                seal.unlink()
                continue
            weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
            missing, unexpected = model.load_state_dict(weights, strict=False)
            assert not unexpected, unexpected
            assert set(missing) <= {"head.weight"}, missing  # a tied head is the embedding, stored once
            restore_state(optimizer, model, tensors)
            return step
        return 0

    def _seals(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.json"))

    def _read(self, seal: Path) -> tuple[int, dict[str, Tensor]]:
        record = read_json(seal, "it was removed, or its disk is failing")
        path = seal.with_suffix(".safetensors")
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist") from None
        if not isinstance(record, dict) or hashlib.sha256(content).hexdigest() != record.get("sha256"):
            raise ArtifactError(f"{path} is torn or changed (its SHA-256 differs)")
        return int(record["step"]), load(content)
