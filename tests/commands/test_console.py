"""Text from outside, and the progress of long work, on a terminal and in a log."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from judge_decoding import progress as reporting
from judge_decoding.commands import console
from judge_decoding.decoding.contracts import Provenance
from judge_decoding.decoding.loop import Result
from judge_decoding.decoding.sequence import AcceptanceRecord
from judge_decoding.text import Tokenizer


class Code(Tokenizer):
    """Three tokens of a program."""

    def __init__(self) -> None:
        pass

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(("all:\n", "\techo ", "hi\r\n")[i] for i in ids)


def answer() -> Result:
    """One token each: `aligned`, `judged`, `target`."""
    sources: list[Provenance] = ["aligned", "judged", "target"]
    return Result(
        Code().decode([0, 1, 2]), [0, 1, 2], "stop", sources, [None] * 3, AcceptanceRecord()
    )


def test_a_pipe_gets_an_answer_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Regression: tabs came out as spaces, which breaks a Makefile."""
    console.print_result(console.console(), answer(), Code())
    assert capsys.readouterr().out == "all:\n⟦\techo ⟧‹hi\r\n›\n"


def test_a_terminal_gets_an_answer_with_tabs_spelled_out() -> None:
    screen = io.StringIO()
    out = Console(file=screen, force_terminal=True, color_system="standard", width=80)
    console.print_result(out, answer(), Code())
    assert "\x1b[1;33m" in screen.getvalue() and "⟦" not in screen.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()) == "all:\n        echo hi\n\n"


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with reporting.progress("search") as step:
        step(20, 100)  # of an earlier run; it says nothing about this one's speed
        for done in (30, 40, 50):
            clock.now += 20
            step(done, 100, f"{done} labels")
    captured = capsys.readouterr()
    assert captured.err == "search: 40 of 100, 40 labels, 120 s left\n"
    assert captured.out == ""


def test_nothing_is_estimated_before_anything_was_measured(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression: a benchmark that had warmed up for 30 s said "1 of 10, 0 s left"."""
    with reporting.progress("answers") as step:
        clock.now += 31
        step(1, 10)
        clock.now += 31
        step(2, 10)
    assert capsys.readouterr().err == "answers: 1 of 10\nanswers: 2 of 10, 248 s left\n"


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(reporting.track([1, 2, 3], "hidden states")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_tracked_work_is_counted_when_it_is_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in reporting.track(range(3), "hidden states"):
        clock.now += 31
    assert capsys.readouterr().err == (
        "hidden states: 1 of 3, 62 s left\nhidden states: 2 of 3, 31 s left\n"
        "hidden states: 3 of 3, 0 s left\n"
    )
