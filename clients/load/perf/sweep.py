"""Many points on one running server: warmed up, interleaved, each with the same prompts.

At every load the systems take turns, beginning with another one in each repeat, so that the
machine's drift hits all of them. All answer the same number of prompts: as many as the first system
answers in about `seconds`, and at least WAVES per stream.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clients.load.perf.analyzer import Analyzer, PerfLoad
from clients.load.perf.export import TimedAnswer, Truncated, read_export
from clients.load.perf.figures import figures, server_figures
from clients.load.perf.inputs import input_data
from judge_client.errors import JudgeClientError
from judge_client.metrics import read_metrics

WAVES = 3
"""Smallest number of requests per stream; tok/s leaves out the last one (figures.py)."""
WARM_UP = 4
"""Smallest number of answers before a point."""
ATTEMPTS = 20
"""Runs before we give up where every export is cut off (export.py). The bytes that perf_analyzer
reads are what its memory held before: on some machines half of all exports are cut off."""


class SweepSystem(NamedTuple):
    """What is compared: a rule at a draft length; None is the deployment's length."""

    rule: str
    draft_len: int | None = None

    def __str__(self) -> str:
        return self.rule if self.draft_len is None else f"{self.rule} k={self.draft_len}"


@dataclass(frozen=True)
class Sweep:
    """The server and its prompts. Where `metrics_url` is None, its counters are not read."""

    analyzer: Analyzer
    folder: Path
    url: str
    metrics_url: str | None
    prompts: Sequence[str]
    max_tokens: int

    def points(
        self,
        systems: Sequence[SweepSystem],
        loads: Sequence[PerfLoad],
        *,
        seconds: float,
        repeats: int = 1,
        progress: Callable[[str], None] = lambda line: None,
    ) -> Iterator[dict[str, Any]]:
        """A row per system and load: {"rule", "draft_len", "mode", "value"}, then the figures, or
        "error" where the server refused a request."""
        for load in loads:
            runs: dict[SweepSystem, list[list[TimedAnswer]]] = {system: [] for system in systems}
            counts: dict[SweepSystem, list[dict[str, Any]]] = {system: [] for system in systems}
            errors = dict[SweepSystem, str]()
            total = 0
            for system in systems:
                try:
                    warm = self._warm_up(system, load)
                except JudgeClientError as error:
                    errors[system] = str(error)
                    continue
                total = total or answers_for(load, warm, seconds)
            for repeat in range(repeats):
                for system in rotated(systems, repeat):
                    if system in errors:
                        continue
                    try:
                        answers, counted = self._run(system, load, total)
                    except JudgeClientError as error:
                        errors[system] = str(error)
                        continue
                    runs[system].append(answers)
                    counts[system].append(counted)
                progress(f"{load}: {repeat + 1} of {repeats} x {total} answers a system")
            for system in systems:
                row = {**system._asdict(), **load._asdict()}
                if system in errors:
                    yield {**row, "error": errors[system]}
                    progress(f"{load}: {system}: {errors[system]}")
                else:
                    yield {**row, **figures(runs[system]), "server": added(counts[system])}

    def _warm_up(self, system: SweepSystem, load: PerfLoad) -> list[TimedAnswer]:
        streams = int(load.value) if load.mode == "concurrency" else WARM_UP
        answers, _ = self._run(system, PerfLoad("concurrency", streams), max(streams, WARM_UP))
        return answers

    def _counters(self) -> dict[str, float]:
        if self.metrics_url is None:
            return {}
        try:
            return read_metrics(self.metrics_url, fresh=True)
        except OSError as error:
            raise JudgeClientError(f"metrics: {self.metrics_url}: {error}") from None

    def _run(
        self, system: SweepSystem, load: PerfLoad, count: int
    ) -> tuple[list[TimedAnswer], dict[str, float]]:
        """`count` answers, and by how much they raised the server's counters.

        A run whose export was cut off is repeated and does not count.
        """
        inputs, export = self.folder / "inputs.json", self.folder / "export.json"
        data = input_data(self.prompts, system.rule, self.max_tokens, system.draft_len)
        inputs.write_text(json.dumps(data), encoding="utf-8")
        for attempt in range(ATTEMPTS):
            export.unlink(missing_ok=True)  # the program refuses to overwrite it
            before = self._counters()
            self.analyzer.run(self.url, inputs, load, count, export)
            try:
                answers = read_export(export)
            except Truncated:
                if attempt + 1 == ATTEMPTS:
                    raise
                continue
            after = self._counters()
            return answers, {name: value - before.get(name, 0.0) for name, value in after.items()}
        raise AssertionError("unreachable")


def answers_for(load: PerfLoad, warm: Sequence[TimedAnswer], seconds: float) -> int:
    """How many answers take about `seconds`, by a warm-up run at that load."""
    if load.mode == "request_rate":  # perf_analyzer wants at least one second of requests
        return max(2 * WARM_UP, math.ceil(load.value), round(load.value * seconds))
    pace = len(warm) / max(answer.end_s for answer in warm)
    return max(WAVES * int(load.value), round(pace * seconds))


def rotated(systems: Sequence[SweepSystem], turn: int) -> list[SweepSystem]:
    turn %= len(systems)
    return [*systems[turn:], *systems[:turn]]


def added(counts: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The server's figures over all repeats."""
    names = {name for one in counts for name in one}
    return server_figures({}, {name: sum(one.get(name, 0.0) for one in counts) for name in names})
