"""Where a measurement comes from: code, versions, machine, date; and the memory it took."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from judge_decoding import __version__
from judge_decoding.torch_engine.linear import can_pack

_PACKAGES = ("torch", "transformers", "numpy", "tokenizers", "safetensors")


def collect() -> dict[str, Any]:
    """JSON-ready facts. A fact that this machine does not reveal is None, never a guess."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_sha": git_sha(),
        "git_dirty": _git_dirty(),
        "versions": {
            "judge-decoding": __version__,
            "python": platform.python_version(),
            **versions(_PACKAGES),
        },
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed versions by name; None for a package that is not installed."""
    return {name: _version(name) for name in packages}


def git_sha() -> str | None:
    """The commit this package was imported from; None if it is not in a repository of its own.

    A package installed into a virtual environment may lie inside somebody else's repository, whose
    commit says nothing about it: only a repository that tracks this very file counts.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("rev-parse", "HEAD")


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far, in MB; None if the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _git_dirty() -> bool | None:
    """Whether tracked files differ from the commit."""
    if git_sha() is None:
        return None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """Model, instruction set and packed kernels: CPUs named "AMD EPYC" differ much in speed."""
    bfloat16 = "bfloat16" if can_pack(torch.bfloat16) else "no bfloat16"
    return f"{_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}, {bfloat16}"


def _cpu_model() -> str | None:
    """`platform.processor()` is empty on most Linux systems."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or None
