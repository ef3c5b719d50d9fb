"""`lmcore sample` and `lmcore chat`: real commands in a project, next to what the sample stage writes."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from imports import ROOT
from tiny import TINY_MODEL, tokenizer_params

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


def run(*arguments: str, typed: bytes = b"") -> tuple[int, bytes, str]:
    """Exit status, standard output and error of a command of lmcore."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "lmcore", *arguments]
    done = subprocess.run(command, input=typed, capture_output=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr.decode()


def test_the_command_draws_what_the_stage_draws(project: Path) -> None:
    sample.main()
    lines = (project / "reports/samples/samples.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    status, out, told = run("sample")
    assert status == 0
    assert out.decode() == "\n\n----\n".join(texts) + "\n"
    assert "tokens/s" in told


def test_flags_go_over_the_parameters(project: Path) -> None:
    flags = ["--samples", "1", "-n", "30", "--temperature", "0", "--draft-tokens", "3", "--weights", "int8"]
    status, out, told = run("sample", "models/gpt", "-p", "-", *flags, typed="zażółć".encode() + b"\xff")
    assert status == 0
    assert out.startswith("zażółć".encode())
    assert "30 tokens in" in told
    assert "per forward pass" in told


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
def test_a_mistake_is_one_line(project: Path, arguments: list[str], message: str) -> None:
    status, out, told = run("sample", *arguments)
    assert (status, out) == (1, b"")
    assert told.startswith(message)
    assert told.count("\n") == 1


def test_a_conversation_is_one_text(project: Path) -> None:
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
def test_a_broken_section_is_named(project: Path, section: str) -> None:
    text = (project / "params.yaml").read_text()
    before, after = text.split("\nsample:\n")
    (project / "params.yaml").write_text(f"{before}\nsample:\n{section}\nexport:{after.partition('export:')[2]}")
    status, out, told = run("sample")
    assert (status, out) == (1, b"")
    assert told.startswith("error: sample")
    assert told.count("\n") == 1


def test_without_a_compiler_nothing_is_compiled(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
