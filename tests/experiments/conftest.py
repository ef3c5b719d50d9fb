"""A project with real DVC experiments, whose stage writes metrics at once, and the same runs in a real MLflow store."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lmcore.tracking.store import connect

PARAMS = """\
train:
  seed: 1
  learning_rate: 0.1
  max_steps: 10
  ema_decay:
sample:
  seed: 1
hardware:
  workers: auto
profiles:
  cpu: {device: cpu}
"""
# A seed of 9 fails. The loss is the learning rate and a hundredth of the seed.
MEASURE = """\
test $1 != 9 || exit 1
mkdir -p reports/metrics
echo "{\\"val_loss\\": $2$1, \\"baselines\\": {\\"xz\\": 1.5}}" > reports/metrics/evaluate.json
echo "{\\"tokens\\": $((1024 * $3)), \\"dtype\\": \\"uint16\\"}" > reports/metrics/train.json
"""
PIPELINE = """\
stages:
  evaluate:
    cmd: sh measure.sh ${train.seed} ${train.learning_rate} ${train.max_steps}
    params: [train]
    metrics:
      - reports/metrics/evaluate.json: {cache: false}
      - reports/metrics/train.json: {cache: false}
"""


DVC = (sys.executable, "-m", "dvc")
# Names, seeds and learning rates.
ENDED = [
    *(("slow-1", 1, 0.1), ("slow-2", 2, 0.1), ("slow-3", 3, 0.1)),
    *(("fast-1", 1, 0.3), ("fast-2", 2, 0.3), ("killed", 7, 0.3)),
]


def run(folder: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, *DVC, *arguments)


def queue(folder: Path, name: str, *settings: str) -> None:
    dvc(folder, "exp", "run", "--queue", "--name", name, *(f"--set-param={setting}" for setting in settings))


@pytest.fixture(scope="session")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates, slow-1 to slow-3 and fast-1, fast-2 by their seeds; `broken` failed, `waiting` is queued."""
    folder = tmp_path_factory.mktemp("experiments")
    for name, text in {"params.yaml": PARAMS, "measure.sh": MEASURE, "dvc.yaml": PIPELINE}.items():
        (folder / name).write_text(text)
    (folder / ".gitignore").write_text("/mlflow.db*\n/mlruns/\n/.mlflow.lock\n")
    run(folder, "git", "init", "--quiet", "--initial-branch=main")
    for key, value in {"user.name": "a", "user.email": "a@b"}.items():
        run(folder, "git", "config", key, value)
    dvc(folder, "init", "--quiet")
    dvc(folder, "repro", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message=all")
    queue(folder, "slow", "train.seed=1,2,3")
    queue(folder, "fast", "train.seed=1,2", "train.learning_rate=0.3")
    queue(folder, "broken", "train.seed=9")
    subprocess.run([*DVC, "exp", "run", "--run-all"], cwd=folder, capture_output=True, check=False)
    queue(folder, "waiting", "train.seed=5")
    return folder


@pytest.fixture(scope="session")
def stored(experiments: Path) -> Path:
    """The same project, where an MLflow store has the experiments that ended, and `killed`."""
    head = run(experiments, "git", "rev-parse", "HEAD").strip()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's and its libraries' own
        patch.setenv("DVC_ROOT", str(experiments))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client = connect()
        for name, seed, rate in ENDED:
            created = client.create_run("1", run_name=name, tags={"dvc.baseline_rev": head, "params.sample.seed": "1"})
            values = {
                "train.seed": seed,
                "train.learning_rate": rate,
                "train.max_steps": "10.0",
                "train.ema_decay": None,
            }
            for key, value in values.items():
                client.log_param(created.info.run_id, key, value)
            for key, value in {"evaluate.val_loss": rate + seed / 100, "tokens": 10240.0}.items():
                client.log_metric(created.info.run_id, key, value)
            client.set_terminated(created.info.run_id, "KILLED" if name == "killed" else "FINISHED")
    return experiments
