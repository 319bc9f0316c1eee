"""Progress of long work, on a terminal and in a log."""

from __future__ import annotations

import pytest

from judge_decoding import console


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("search") as step:
        step(20, 100)  # an earlier run's, which tells nothing of this one's speed
        for done in (30, 40, 50):
            clock.now += 20
            step(done, 100, f"{done} labels")
    captured = capsys.readouterr()
    assert captured.err == "search: 40 of 100, 40 labels, 120 s left\n"
    assert captured.out == ""


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.track([1, 2, 3], "hidden states")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_tracked_work_is_counted_when_it_is_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in console.track(range(3), "hidden states"):
        clock.now += 31
    assert capsys.readouterr().err == (
        "hidden states: 1 of 3, 62 s left\nhidden states: 2 of 3, 31 s left\n"
        "hidden states: 3 of 3, 0 s left\n"
    )
