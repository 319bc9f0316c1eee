"""The program perf_analyzer: found, given the libraries that it misses, and run once per point.

It comes in tritonclient's wheel (2.51.0, extra `serve`), which is built for a container with libb64
and the CUDA runtime. nvidia-pytriton's wheel has both under other names; links to them are enough.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from judge_client.errors import JudgeClientError, plain
from judge_client.wire import MODEL

LIMIT_S = 900.0
"""Seconds for one run of the program; a server that hangs would hold it for ever."""
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}

Mode = Literal["concurrency", "request_rate"]


class PerfLoad(NamedTuple):
    """Streams that are always busy (`concurrency`), or Poisson arrivals per second."""

    mode: Mode
    value: float

    def __str__(self) -> str:
        if self.mode == "request_rate":
            return f"{self.value:g}/s"
        return f"{self.value:g} stream{'s' if self.value > 1 else ''}"

    def options(self) -> list[str]:
        if self.mode == "concurrency":
            return ["--concurrency-range", f"{self.value:g}"]
        return ["--request-rate-range", f"{self.value:g}", "--request-distribution", "poisson"]


class Analyzer:
    """The program, ready to run."""

    def __init__(self, folder: Path) -> None:
        """folder  private to this run; it gets links to the libraries"""
        beside = Path(sys.executable).parent / "perf_analyzer"
        found = str(beside) if beside.exists() else shutil.which("perf_analyzer")
        if found is None:
            raise JudgeClientError(
                "perf_analyzer: no such program; pip install tritonclient==2.51.0 (later ones "
                "leave it out), or run in NVIDIA's Triton SDK container"
            )
        self._program = found
        self._environment = os.environ | library_path(folder)
        self.version = self._version()

    def _version(self) -> str:
        done = self._run(["--version"], 60.0)
        said = " ".join(f"{done.stdout} {done.stderr}".split())
        match = re.search(r"Version (\S+)", said)  # on stderr, with exit code 99
        if match is None:
            raise JudgeClientError(f"perf_analyzer: {self._program} does not start: {said[-300:]}")
        return match[1]

    def run(self, url: str, inputs: Path, load: PerfLoad, count: int, export: Path) -> None:
        """`count` requests at that load, every response's time and tensors written to `export`.

        JudgeClientError with the server's message where it refused one.
        """
        arguments = command(url, inputs, load, count, export)
        try:
            done = self._run(arguments, LIMIT_S)
        except subprocess.TimeoutExpired:
            raise JudgeClientError(f"perf_analyzer: no end within {LIMIT_S:g} s") from None
        if done.returncode or not export.exists():
            raise JudgeClientError(f"perf_analyzer: {complaint(done.stdout, done.stderr)}")

    def _run(self, arguments: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
        )


def command(url: str, inputs: Path, load: PerfLoad, count: int, export: Path) -> list[str]:
    """The arguments of one run."""
    options = ["-m", MODEL, "-i", "grpc", "-u", url, "--async", "--streaming"]
    options += ["--input-data", str(inputs), *load.options(), "--request-count", str(count)]
    return [*options, "--profile-export-file", str(export)]


def complaint(stdout: str, stderr: str) -> str:
    """What went wrong, in one line: the server's message where there is one."""
    if refused := re.search(r"had error: (.*)", stderr):
        return plain(refused[1])
    lines = [line.strip() for line in stderr.splitlines() + stdout.splitlines() if line.strip()]
    return lines[0].removeprefix("error: ") if lines else "it failed and said nothing"


def library_path(folder: Path) -> dict[str, str]:
    """The environment in which the program finds its libraries; {} where it needs no help."""
    spec = find_spec("pytriton")
    carried = (
        Path(spec.origin).parents[1] / "nvidia_pytriton.libs" if spec and spec.origin else None
    )
    if carried is None or not carried.is_dir():
        return {}
    for name, pattern in LIBRARIES.items():
        for file in sorted(carried.glob(pattern))[:1]:
            (folder / name).symlink_to(file)
    # Last, so that the machine's own libraries go first.
    paths = [path for path in (os.environ.get("LD_LIBRARY_PATH"), str(folder)) if path]
    return {"LD_LIBRARY_PATH": os.pathsep.join(paths)}
