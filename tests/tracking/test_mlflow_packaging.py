"""A finished model from MLflow: registered by `lmcore register`, served by `mlflow models serve`, the same texts."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT, import_closure, imported_packages
from mlflow_server import answers, wait_until
from tiny import TINY_MODEL, sharpen, tokenizer_params
from tracked import log, make_params, make_run
from typer.testing import CliRunner

from lmcore.cli import app
from lmcore.errors import ArtifactError, ParameterError
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.params import read_params
from lmcore.tracking.mlflow_packaging import PACKAGES, PARAMETERS, describe_signature, list_requirements
from lmcore.tracking.registry import register_model
from lmcore.tracking.session import track_run
from lmcore.tracking.store import connect
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and its libraries' own


@pytest.fixture
def trained(stored: Path) -> Path:
    """A project whose run has ended; its model is a tiny one of bytes."""
    shutil.copy(ROOT / "params.yaml", stored)
    (stored / "dvc.yaml").touch()
    tokenizer = train_tokenizer(tokenizer_params("byte"), [])
    model = sharpen(GPT(TINY_MODEL, tokenizer.vocab_size, end_of_text=tokenizer.end_of_text))
    run = make_run(stored)
    save_model(run.artifact, model, lineage={"run_key": run.folder.name})
    tokenizer.save(run.artifact)
    with track_run(run, read_params(), make_params("mlflow")):
        log(run, 1)
    return stored


def register(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["register", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout.splitlines()


@contextmanager
def serve(command: str, folder: Path) -> Iterator[str]:
    """Run the printed command, at a free port, where another lmcore would be imported that breaks at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "elsewhere" / "lmcore").mkdir(parents=True)
    (folder / "elsewhere" / "lmcore" / "__init__.py").write_text("raise RuntimeError('not the code of the model')")
    words = shlex.split(command.partition(": ")[2])
    settings = dict(word.split("=", 1) for word in words[: words.index("mlflow")])
    arguments = [*words[words.index("mlflow") + 1 : -1], str(port)]
    environment = {**os.environ, **settings, "PYTHONPATH": str(folder / "elsewhere")}
    with (folder / "serve.log").open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/ping"), server)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def sample(prompt: str, *flags: str) -> str:
    """What `lmcore sample` writes."""
    return CliRunner().invoke(app, ["sample", "--samples", "1", "-p", prompt, *flags]).stdout.removesuffix("\n")


@pytest.mark.slow
def test_a_served_model_writes_what_the_command_does(trained: Path) -> None:
    *_, command = register()
    with serve(command, trained) as url:
        asked = {"max_new_tokens": 12, "temperature": 0.9, "top_k": 50, "seed": 3}
        flags = ["-n", "12", "--temperature", "0.9", "--top-k", "50", "--seed", "3"]
        status, answer = post(url, {"inputs": ["the cat", "", "the cat"], "params": asked})
        cat, empty = sample("the cat", *flags), sample("", *flags)
        assert (status, answer) == (200, {"predictions": [cat, empty, cat]})
        assert cat.startswith("the cat")
        # Without parameters the project's own hold.
        assert post(url, {"inputs": ["a"]}) == (200, {"predictions": [sample("a")]})
        short = post(url, {"inputs": ["a"], "params": {"max_new_tokens": 2, "temperature": 0.0, "top_p": None}})[1]
        assert short["predictions"] == [sample("a", "-n", "2", "--temperature", "0")]
        stopped = post(url, {"inputs": ["the cat"], "params": {**asked, "stop": [cat[8]]}})[1]
        assert stopped["predictions"] == [cat[: cat.index(cat[8], 7)]]
        # What is wrong is the client's, and is named.
        for body, named in [
            ({"inputs": ["a"], "params": {"max_new_tokens": "many"}}, "max_new_tokens"),
            ({"inputs": ["a"], "params": {"max_new_tokens": 2.5}}, "max_new_tokens"),
            ({"inputs": ["a"], "params": {"temperature": -1.0}}, "params.temperature=-1.0: must be greater than"),
            ({"dataframe_split": {"columns": ["prompt"], "data": [[1]]}}, "a prompt must be text, not 1"),
            ({"prompts": ["a"]}, "inputs"),
        ]:
            status, answer = post(url, body)
            assert status == 400, body
            assert named in json.dumps(answer)
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda _: post(url, {"inputs": ["the cat"], "params": asked}), range(8)))
        assert together == [(200, {"predictions": [cat]})] * 8


def test_the_same_model_is_registered_once(trained: Path) -> None:
    run, name = make_run(trained), f"gpt-{trained.name}"
    run_id = json.loads((run.folder / "mlflow.json").read_text())["run_id"]
    told, command = register("--name", name)
    assert told == f"{name} version 1, alias champion: run {run.folder.name} ({run_id}), validation loss 2.0000"
    assert f"mlflow models serve --model-uri models:/{name}@champion --env-manager local" in command
    for wanted in (run_id, run.folder.name):
        assert register(wanted, "--name", name, "--alias", "")[0].startswith(f"{name} version 1: ")
    # A second training of the same run: another model, a second version, and the alias goes over.
    shutil.rmtree(run.folder)
    run.folder.mkdir()
    with track_run(run, {}, make_params("mlflow")):
        log(run, 1, 2)
    assert register("--name", name)[0].startswith(f"{name} version 2, alias champion: ")
    client = connect()
    assert str(client.get_model_version_by_alias(name, "champion").version) == "2"
    assert len(client.search_model_versions(f"name = '{name}'")) == 2


def test_what_cannot_be_registered(trained: Path) -> None:
    folder, run = trained / "models" / "gpt", make_run(trained)
    with pytest.raises(ParameterError, match=r"nobody: MLflow at .* has no run with this id, key or name; the last"):
        register_model("nobody", "gpt", "champion", folder)
    with pytest.raises(ParameterError, match=r"--alias latest: 'latest' alias name .* is reserved"):
        register_model("", "gpt", "latest", folder)
    with pytest.raises(ParameterError, match=r"--name a/b --alias champion: "):
        register_model("", "a/b", "champion", folder)
    shutil.rmtree(run.folder)
    run.folder.mkdir()
    with pytest.raises(SystemExit), track_run(run, {}, make_params("mlflow")):
        raise SystemExit(143)
    with pytest.raises(ArtifactError, match=r"has no model: only a training that has come to its end has"):
        register_model("", "gpt", "champion", folder)
    (folder / "lineage.json").write_text('{"run_key": "elsewhere"}')
    with pytest.raises(ArtifactError, match=r"was made by run elsewhere, which MLflow at .* does not have"):
        register_model("", "gpt", "champion", folder)
    (folder / "lineage.json").unlink()
    with pytest.raises(ArtifactError, match=r"lineage\.json does not exist: run dvc repro train, or name a run"):
        register_model("", "gpt", "champion", folder)


def test_the_signature_has_the_projects_values() -> None:
    settings = {"sample.temperature": 0.5, "sample.stop": None, "sample.top_k": None, "sample.seed": 9}
    params = {param.name: param.default for param in describe_signature(settings).params}
    assert params == {name: value for name, (_, value) in PARAMETERS.items()} | {"temperature": 0.5, "seed": 9}


def test_requirements_are_what_the_code_imports() -> None:
    code = Path("lmcore/serve/mlflow_pyfunc.py")
    imported = {package for path in (code, *import_closure(code)) for package in imported_packages(path)}
    # Parts of pydantic and tiktoken, and what only a name on a hub would need.
    own = {"lmcore", "pydantic_core", "tiktoken_ext", "huggingface_hub"}
    assert {name.partition(".")[0] for name in PACKAGES} == imported - set(sys.stdlib_module_names) - own
    assert all("+" not in requirement for requirement in list_requirements())
