"""`lmcore serve` as a process: how it begins, what it says, and how it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from imports import ROOT
from serving import wait_until

from lmcore.errors import ArtifactError, ParameterError
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.params import read_params
from lmcore.serve.open_model import open_model
from lmcore.serve.params import ServerParams
from lmcore.serve.server import API_KEY_VARIABLE, bind, read_api_key, serve
from lmcore.tokenizer.base import Tokenizer

pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture
def project(tmp_path: Path, model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a tiny model of bytes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").touch()
    save_model(Path("models/gpt"), model, lineage={})
    tokenizer.save(Path("models/gpt"))
    return tmp_path


Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(project: Path) -> Iterator[Launch]:
    """The command, which is killed after the test if it still runs."""
    started = []

    def launch_one(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "lmcore", "serve", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, env=environment, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield launch_one
    for process in started:
        process.kill()
        process.communicate()


def read_address(server: "subprocess.Popen[str]") -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("models/gpt is served at http://127.0.0.1:"), line + server.communicate()[1]
    return line.split()[4].rstrip(",")


def open_stream(address: str, tokens: int, key: str = "none") -> "openai.Stream[openai.types.Completion]":
    """A stream of which something has come."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
    values = {"model": "models/gpt", "prompt": "a", "max_tokens": tokens, "seed": 1, "temperature": 0}
    stream = client.completions.create(**values, stream=True)  # type: ignore[call-overload]
    next(stream)
    return stream  # type: ignore[no-any-return]


def test_it_ends_with_its_last_answer(launch: Launch) -> None:
    """Asked to end in the middle of a stream, it takes nothing new, brings that to its end, and exits 0."""
    server = launch("--port", "0", "--max-tokens", "100000", "--grace", "60", **{API_KEY_VARIABLE: "secret"})
    address = read_address(server)
    assert httpx.get(f"{address}/v1/models").status_code == 401
    idle = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    stream = open_stream(address, 1000, "secret")
    server.send_signal(signal.SIGTERM)
    wait_until(lambda: not accepts(address))
    reasons = [part.choices[0].finish_reason for part in stream]
    assert reasons[-1] == "length"
    assert len(reasons) > 100
    out, told = server.communicate(timeout=60)
    assert (server.returncode, out, told) == (0, "", "")
    idle.close()


def accepts(address: str) -> bool:
    try:
        httpx.get(f"{address}/health")
    except httpx.HTTPError:
        return False
    return True


@pytest.mark.slow
def test_grace_ends_and_a_second_signal_ends_at_once(launch: Launch) -> None:
    """Two servers at a time: one whose grace is over before its stream, and one that is asked twice."""
    short, patient = (launch("--port", "0", "--max-tokens", "9999999", "--grace", grace) for grace in ("0.5", "600"))
    addresses = [read_address(server) for server in (short, patient)]
    streams = [open_stream(address, 1_000_000) for address in addresses]
    short.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="the server is being shut down"):
        list(streams[0])
    out, told = short.communicate(timeout=30)
    assert (short.returncode, out, told) == (0, "", "")
    patient.send_signal(signal.SIGTERM)
    wait_until(lambda: not accepts(addresses[1]))
    next(streams[1])
    patient.send_signal(signal.SIGTERM)
    assert patient.wait(10) == 128 + signal.SIGTERM
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(streams[1])


@pytest.mark.slow
def test_what_prevents_it_is_one_line(launch: Launch) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        _, told = (server := launch("--port", str(port))).communicate(timeout=60)
    assert server.returncode == 1
    remedy = "Address already in use: choose another --port (0 takes a free one)"
    assert told == f"error: --host 127.0.0.1 --port {port}: {remedy}\n"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no.such.host.invalid", "--host no.such.host.invalid: "),
        ("192.0.2.1", "--host 192.0.2.1 --port 0: Cannot assign"),
        ("ä" * 80, "--host "),
    ],
)
def test_a_host_that_there_is_not(host: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        bind(host, 0)


def test_models_that_cannot_be_had(project: Path) -> None:
    options: dict[str, Any] = {"batch": 1, "draft_tokens": None, "compile": False}
    values = read_params(project / "params.yaml")
    with pytest.raises(ParameterError, match=r"nowhere: .* is not a folder"):
        open_model("nowhere", values, "float32", **options)
    with pytest.raises(ParameterError, match=r"--weights int4: must be one of float32, bfloat16, int8"):
        open_model("models/gpt", values, "int4", **options)
    (project / "models/gpt/tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json does not exist"):
        open_model("models/gpt", values, "float32", **options)


def test_a_server_without_a_key_warns(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"batch": 1, "draft_tokens": None, "compile": False}
    for host, key, is_told in [("0.0.0.0", None, True), ("0.0.0.0", "key", False), ("127.0.0.1", None, False)]:
        with pytest.raises(ParameterError, match="nowhere"):
            serve(
                ServerParams("nowhere", host, 0, api_key=key),
                read_params(project / "params.yaml"),
                "float32",
                **options,
            )
        told = capsys.readouterr().err
        assert told.count("\n") == is_told
        assert ("may use the model: set LMCORE_API_KEY or --api-key-file" in told) == is_told


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "from-there")
    assert read_api_key(None) == "from-there"
    file = tmp_path / "key"
    file.write_text(" of-the-file\n")
    assert read_api_key(file) == "of-the-file"
    for content in ("", "two words", "ä", "a\nb"):
        file.write_text(content)
        with pytest.raises(ParameterError, match="must hold one word of ASCII characters"):
            read_api_key(file)
    with pytest.raises(ParameterError, match="No such file or directory: name a file"):
        read_api_key(tmp_path / "none")
    monkeypatch.setenv(API_KEY_VARIABLE, "")
    with pytest.raises(ParameterError, match="LMCORE_API_KEY: must hold one word of ASCII characters"):
        read_api_key(None)
    monkeypatch.delenv(API_KEY_VARIABLE)
    assert read_api_key(None) is None


@pytest.mark.parametrize(("host", "is_local"), [("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("::", False)])
def test_who_reaches_it(host: str, is_local: bool) -> None:
    assert ServerParams("model", host).is_local == is_local
