"""Models on the hub by name, against a real server like it, in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import COMMIT, Entry, HubHandler, Store, serve
from tiny import GPT2_MODEL, tokenizer_params

from lmcore.errors import ParameterError
from lmcore.export.hugging_face import export_model
from lmcore.export.params import ExportParams
from lmcore.files import sha256_file
from lmcore.hub import find_model
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

# Names the tokenizer and the weights as the stages do.
PROGRAM = """
import json, sys
from lmcore.errors import report_errors
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.tokenizer.load import load_named
from lmcore.train.init_from import load_initial_weights
with report_errors():
    tokenizer = load_named(sys.argv[1])
    model = GPT(ModelParams(**json.loads(sys.argv[2])), tokenizer.vocab_size, seed=3)
    print(json.dumps(load_initial_weights(model, sys.argv[1], tokenizer)))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as Hugging Face's library saves it."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = train_tokenizer(tokenizer_params("byte"), [["abc"]])
    save_model(folder / "gpt", GPT(GPT2_MODEL, tokenizer.vocab_size, seed=5), {})
    tokenizer.save(folder / "gpt")
    params = ExportParams(name="tiny", dtype="float32", gguf=None)
    export_model(params, folder / "gpt", folder / "export", corpus={}, figures={})
    return folder / "export"


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with serve(HubHandler) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        for path in published.iterdir():
            server.entries[path.name] = Entry(path.read_bytes(), lfs=path.suffix == ".safetensors")
        server.entries["pytorch_model.bin"] = Entry(b"a pickle")
        server.entries["onnx/model.safetensors"] = Entry(b"another one")
        yield server


def run(project: Path, name: str) -> tuple[str, str]:
    """What the program prints, and what it complains about."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DVC_ROOT": str(project)}
    command = [sys.executable, "-c", PROGRAM, name, json.dumps(GPT2_MODEL.model_dump())]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    complaints = [line for line in result.stderr.splitlines() if line.startswith("error: ") or "Traceback" in line]
    return result.stdout, "\n".join(complaints)


def test_a_name_is_fetched_once_and_found_without_a_network(hub: Store, published: Path, tmp_path: Path) -> None:
    weights = sha256_file(published / "model.safetensors")
    place = {"repository": "owner/name", "commit": COMMIT}
    expected = {"init_from": {"weights": weights, "run_key": None, **place}}
    output, complaint = run(tmp_path, "owner/name")
    assert complaint == ""
    assert json.loads(output) == expected
    fetched = [path for path, _ in hub.requests]
    assert sorted(fetched) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads(run(tmp_path, f"owner/name@{COMMIT}")[0]) == expected
    hub.shutdown()
    hub.server_close()
    assert json.loads(run(tmp_path, "owner/name")[0]) == expected
    assert [path for path, _ in hub.requests] == fetched


def test_a_folder_of_that_name_goes_first(hub: Store, published: Path, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(published)
    assert json.loads(run(tmp_path, "owner/name")[0])["init_from"].keys() == {"weights", "run_key"}
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("owner/other", "the Hugging Face hub has no owner/other that you may see: check the name, or hf auth login"),
        ("own--er/name", "the Hugging Face hub does not give own--er/name (Cannot have -- or .. in repo_id"),
        ("owner/name@absent", "owner/name on the Hugging Face hub has no revision absent: check it"),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub: Store, tmp_path: Path, name: str, reason: str) -> None:
    folder = tmp_path / name
    told = f"error: train_tokenizer.name={name}: {folder} is not a folder, and {reason}"
    assert run(tmp_path, name)[1].startswith(told)


def test_without_a_network_and_a_cache_it_is_one_line(
    hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    complaint = run(tmp_path, "owner/name")[1]
    assert complaint.endswith(
        "is not a folder, and the Hugging Face hub does not answer, and its cache lacks owner/name@main: connect once"
    )


@pytest.mark.parametrize("name", ["./owner/name", "a/b/c", "owner", "../name", "owner/name@", "/absent", "a b/c"])
def test_what_can_be_no_name_on_the_hub_is_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(
        ParameterError, match=r"^train\.init_from=.* is not a folder; it begins at dvc\.yaml's, or is a"
    ):
        find_model(name, "train.init_from")
