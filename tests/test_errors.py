"""Errors: a user's mistake leaves one line and exit status 1; ours keep their traceback."""

import errno

import pytest

from lmcore.errors import SYSTEM_REMEDIES, DataError, report_errors


def test_a_mistake_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, report_errors():
        raise DataError("corpus.txt is empty: give it some text")
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "error: corpus.txt is empty: give it some text\n")


def test_a_name_of_two_lines_stays_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), report_errors():
        raise DataError("a\nb\x1b[31mé\ud800.txt: empty")
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31mé\\ud800.txt: empty\n"


@pytest.mark.parametrize("number", SYSTEM_REMEDIES)
def test_what_the_system_refuses_comes_with_a_way_out(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, report_errors():
        raise OSError(number, "refused", "data/raw")
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: data/raw: {SYSTEM_REMEDIES[number]}\n"


def test_a_copy_names_the_file_that_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), report_errors():
        raise OSError(errno.ENOSPC, "full", "source.txt", None, "target.txt")
    assert capsys.readouterr().err.startswith("error: target.txt: the disk is full")


def test_an_error_without_a_file_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), report_errors():
        raise OSError(errno.ENOSPC, "full")
    assert capsys.readouterr().err.startswith("error: the disk is full")


@pytest.mark.parametrize("ours", [AssertionError("bug"), OSError(errno.EBADF, "bug"), KeyError("bug")])
def test_our_mistakes_pass_through(ours: Exception) -> None:
    with pytest.raises(type(ours), match="bug"), report_errors():
        raise ours


def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving, report_errors():
        raise KeyboardInterrupt
    assert leaving.value.code == 130
    assert capsys.readouterr().err == "interrupted: run the same command again\n"
