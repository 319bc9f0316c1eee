"""The progress of long work: a bar on a terminal, a line from time to time in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from judge_client.terminal import console

T = TypeVar("T")
LINE_S = 30.0
"""Seconds between two lines of progress in a log."""


class ProgressStep(Protocol):
    """Called with what is done so far; `note` is shown after the numbers.

    The first call says where the work starts. The time left is estimated from the calls after it.
    """

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(what: str) -> Iterator[ProgressStep]:
    """Show progress on stderr: a bar that vanishes at the end, or lines if it is no terminal."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield _Lines(what)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (text[0], BarColumn(), MofNCompleteColumn(), text[1], TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, speed_estimate_period=120) as bar:
        task = bar.add_task(what, total=None, note="")

        def step(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield step


class _Lines:
    """Progress for a log: short work prints nothing, long work a line every `LINE_S` seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began: tuple[float, int] | None = None  # time and `done` of the first call
        self._due = time.monotonic() + LINE_S

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        began, before = self._began = self._began or (now, done)
        if now < self._due:
            return
        self._due = now + LINE_S
        parts = [f"{self._what}: {done} of {total}", note]
        if done > before:  # otherwise nothing has been measured yet
            parts.append(f"{(now - began) / (done - before) * (total - done):.0f} s left")
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items and report how many of them are done."""
    with progress(what) as step:
        step(0, len(items))
        for done, item in enumerate(items, 1):
            yield item
            step(done, len(items))
