"""What a person sees: plain lines where there is no terminal, and a speed that counts training alone."""

import pytest

from lmcore.runtime import progress
from lmcore.runtime.progress import BytesProgress, TrainingProgress


class Clock:
    """Stands for time.monotonic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


def test_speed_leaves_out_the_first_step_and_what_is_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    shown = TrainingProgress(first_step=0, max_steps=4, tokens_per_step=10)
    clock.pass_seconds(50)  # the first step compiles
    shown.count_step(1)
    assert shown.tokens_per_second == 0.0
    clock.pass_seconds(7)  # a validation
    shown.resume()
    for step in (2, 3):
        clock.pass_seconds(2)
        shown.count_step(step)
        clock.pass_seconds(30)  # a checkpoint
        shown.resume()
    assert shown.tokens_per_second == 5.0
    clock.pass_seconds(1000)
    assert shown.tokens_per_second == 5.0


def test_the_share_of_a_known_peak_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    shown = TrainingProgress(first_step=0, max_steps=4, tokens_per_step=10, peak_tokens_per_second=20.0)
    shown.resume()
    clock.pass_seconds(2)
    shown.count_step(1)
    assert shown.speed == {"tokens_per_second": 5.0, "mfu": 0.25}
    assert TrainingProgress(first_step=0, max_steps=4, tokens_per_step=10).speed == {"tokens_per_second": 0.0}


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    with TrainingProgress(first_step=0, max_steps=100, tokens_per_step=10) as shown:
        for step in range(1, 101):
            clock.pass_seconds(2)
            shown.count_step(step)
            shown.show({"step": step, "train_loss": 1.5, "learning_rate": 0.001})
            shown.resume()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21  # the first, one in ten seconds, and the last
    assert lines[1] == "step 6/100  loss 1.5000  learning rate 1.00e-03  5 tokens/s  3:08 left"
    assert lines[-1].startswith("step 100/100")
    assert "left" not in lines[-1]


def test_bytes_are_told_every_ten_seconds_with_their_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with BytesProgress("encode", 40_000_000) as shown:
        for item in shown.follow("abcd", [5_000_000, 5_000_000, 10_000_000, 20_000_000]):
            assert item in "abcd"
            clock.pass_seconds(6)
    assert capsys.readouterr().out.splitlines() == ["encode: 20 of 40 MB, 2 MB/s"]


def test_items_and_sizes_belong_together() -> None:
    with BytesProgress("encode", 2) as shown, pytest.raises(ValueError, match="shorter"):
        list(shown.follow("ab", [1]))


def test_sizes_have_two_digits() -> None:
    sizes = {0: "0 B", 97: "97 B", 5_234: "5.2 kB", 999_400: "1 MB", 3e9: "3 GB", 1.55e12: "1.6 TB"}
    assert {size: progress.show_bytes(size) for size in sizes} == sizes
