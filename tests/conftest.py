"""A tiny corpus and its tokens, built in the test: nothing is read from outside."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from projects import Project
from tiny import encode_texts, make_texts, tokenizer_params

from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.dataset import TokenDataset, open_dataset
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

# Tests run on all cores at once: threads of a tiny model's operations would only wait for one another.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start
os.environ["DVC_NO_ANALYTICS"] = "true"  # also in repositories that tests make with `dvc init`

# Under nohup, or in the background of a script, they are ignored, and processes that tests start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test of an example is about its time, and a busy machine stalls for longer than any sensible limit.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Two splits of byte tokens, read-only."""
    folder: Path = tmp_path_factory.mktemp("dataset")
    splits = {"train": [make_texts(40, 1)], "validation": [make_texts(8, 2)]}
    tokenizer = train_tokenizer(tokenizer_params("byte"), splits["train"])
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    encode_texts(1000, splits, tokenizer, folder / "tokens")
    return open_dataset(folder / "tokens", load_tokenizer(folder / "tokenizer"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`, committed; for tests marked `finished_once`, which leave it as it was."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.run("dvc", "repro")
    project.commit("results")
    return project
