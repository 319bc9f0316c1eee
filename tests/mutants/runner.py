"""Runs tests against mutants, with one warm process that forks for each."""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from tests.mutants.operators import Mutant, mutated

WARM = ("torch", "pytest", "hypothesis", "scipy.stats", "safetensors.torch", "tokenizers")
WARM += ("pydantic", "yaml", "typer.testing", "numpy", "jinja2.sandbox")
WARM += ("transformers.models.llama.modeling_llama",)
OPTIONS = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow and not servers")
OPTIONS += ("--hypothesis-seed=0", "--tb=short")

Outcome = Literal["noticed", "survived", "timeout"]


@dataclass(frozen=True)
class Task:
    """A mutant, or None for the unchanged module, and the tests to run."""

    mutant: Mutant | None
    tests: tuple[str, ...]
    limit_s: float


def warm_up() -> None:
    """Import what the tests need, but nothing of the project, so that every fork has it."""
    for name in WARM:
        importlib.import_module(name)
    assert not any(name.split(".")[0] == "judge_decoding" for name in sys.modules)
    gc.collect()
    gc.freeze()  # pytest collects garbage between tests: half a second each time for these imports


def run(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Outcome, float]]:
    """Yields (task, outcome, seconds) in the order in which the tasks end."""
    waiting, running = list(tasks)[::-1], dict[int, tuple[Task, float]]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    task = waiting.pop()
                    running[_fork(task, folder)] = task, time.monotonic()
                time.sleep(0.02)
                for pid, (task, began) in list(running.items()):
                    seconds = time.monotonic() - began
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if not ended and seconds < task.limit_s:
                        continue
                    _kill(pid, reap=not ended)
                    del running[pid]
                    outcome: Outcome = "survived" if status == 0 else "noticed"
                    yield task, outcome if ended else "timeout", seconds
        finally:
            for pid in running:
                _kill(pid, reap=True)


def _kill(group: int, *, reap: bool) -> None:
    """Kill a fork and the processes that its tests started."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    if reap:
        os.waitpid(group, 0)


def _fork(task: Task, folder: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        code = _test(task, Path(tempfile.mkdtemp(dir=folder)))
    finally:  # whatever happened, this process must not continue as its parent
        os._exit(code)


def _test(task: Task, folder: Path) -> int:
    import pytest

    console, log = os.dup(2), os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder)
    if task.mutant is not None:
        sys.meta_path.insert(0, _Finder(task.mutant))
    code = int(pytest.main([*OPTIONS, f"--basetemp={folder / 'tests'}", *task.tests]))
    if task.mutant is None and code:  # the tests fail without a mutant
        os.write(console, (folder / "log").read_bytes())
    return code


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutant in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.module = mutant.path.removesuffix(".py").replace("/", ".")

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, self.mutant.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        source = Path(self.mutant.path).read_text()
        code = compile(mutated(source, self.mutant.number), self.mutant.path, "exec")
        exec(code, vars(module))
