"""`lmcore sample` and `lmcore chat`: real commands in a project, next to what the sample stage writes."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from imports import ROOT
from tiny import TINY_MODEL, tokenizer_params

from lmcore.cli import main
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.params import read_params
from lmcore.serve.terminal import Writer, converse, show
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer
from stages import sample


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a tiny model of bytes."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").touch()
    tokenizer = train_tokenizer(tokenizer_params("byte"), [])
    save_model(Path("models/gpt"), GPT(TINY_MODEL, tokenizer.vocab_size, end_of_text=tokenizer.end_of_text), lineage={})
    tokenizer.save(Path("models/gpt"))
    return tmp_path


Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A command of lmcore in this process: exit status, standard output and error."""

    def run(*arguments: str, typed: bytes = b"") -> tuple[int, bytes, str]:
        written, told = io.BytesIO(), io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["lmcore", *arguments])
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
            patch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="utf-8", write_through=True))
            patch.setattr("sys.stderr", told)
            with pytest.raises(SystemExit) as ended:
                main()
            return int(ended.value.code or 0), written.getvalue(), told.getvalue()

    yield run
    torch.set_num_threads(1)  # as in conftest.py: a command takes the machine's


def test_the_command_draws_what_the_stage_draws(project: Path, run: Run) -> None:
    sample.main()
    lines = (project / "reports/samples/samples.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    status, out, told = run("sample")
    assert status == 0
    assert out.decode() == "\n\n----\n".join(texts) + "\n"
    assert "tokens/s" in told


def test_flags_go_over_the_parameters(project: Path) -> None:
    """In a process of its own, whose standard input holds any bytes."""
    command = [sys.executable, "-m", "lmcore", "sample", "models/gpt", "-p", "-", "--samples", "1", "-n", "30"]
    command += ["--temperature", "0", "--draft-tokens", "3", "--weights", "int8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, input="zażółć".encode() + b"\xff", capture_output=True, check=False, env=environment)
    assert done.returncode == 0
    assert done.stdout.startswith("zażółć".encode())
    assert "30 tokens in" in done.stderr.decode()
    assert "per forward pass" in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere: "),
        (["-p", "a", "--temperature", "-1"], "error: sample.temperature=-1.0: must be greater than or equal to 0"),
        (["-p", "a", "-p", "a"], "error: sample.prompts: 'a' is there 2 times"),
        (["-p", "-", "-p", "-"], "error: --prompt -: standard input can be read once"),
        (["-p", "a", "--weights", "int4"], "error: sample.weights='int4': must be"),
    ],
)
def test_a_mistake_is_one_line(project: Path, run: Run, arguments: list[str], message: str) -> None:
    status, out, told = run("sample", *arguments)
    assert (status, out) == (1, b"")
    assert told.startswith(message)
    assert told.count("\n") == 1


def test_a_conversation_is_one_text(project: Path, run: Run) -> None:
    """What a person types goes behind what the model wrote; an empty line lets it go on; /new begins anew."""
    typed = b"ab\n\n/new\nab\n"
    status, out, told = run("chat", "-n", "12", "--temperature", "2", typed=typed)
    assert status == 0
    first, second, _, again, _ = out.decode(errors="replace").split("> ")[1:]
    assert first == again
    assert second != first
    assert "36 tokens in" in told


def test_ctrl_c_ends_a_turn_and_not_the_conversation(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = read_params(project / "params.yaml")
    writer = Writer("models/gpt", values, {"max_new_tokens": 9, "temperature": 2.0}, compile=False)
    shown: list[str] = []

    def show_some(text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("lmcore.serve.terminal.show", show_some)
    lines = iter(["ab", "", "/new", "ab"])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    converse(writer, read)
    assert "21 tokens in" in capsys.readouterr().err  # 3 of the first turn, 9 of each other


@pytest.mark.parametrize("section", ["", "  prompts: abc\n"])
def test_a_broken_section_is_named(project: Path, run: Run, section: str) -> None:
    text = (project / "params.yaml").read_text()
    before, after = text.split("\nsample:\n")
    (project / "params.yaml").write_text(f"{before}\nsample:\n{section}\nexport:{after.partition('export:')[2]}")
    status, out, told = run("sample")
    assert (status, out) == (1, b"")
    assert told.startswith("error: sample")
    assert told.count("\n") == 1


def test_without_a_compiler_nothing_is_compiled(project: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, _, told = run("sample", "--compile")
    assert status == 1
    assert told == "error: --compile: no C++ compiler found (no-such-compiler); leave it out\n"


def test_nothing_that_a_terminal_obeys_is_shown_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    show("a\x1b[2J\tü\n\x07🙂")
    assert terminal.getvalue() == "a\ufffd[2J\tü\n\ufffd🙂"
