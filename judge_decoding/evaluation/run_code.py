"""Runs a model's code in a child process with limits on time, memory and files.

This is no sandbox. The child cannot hang or fill memory or disk, and gets an environment and a
folder of its own, but it can use the network and read files. Run it only after an explicit opt-in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

SECONDS = 10
MEMORY_BYTES = 512 * 2**20
FILE_BYTES = 16 * 2**20
DONE = 86
"""The child's exit code once the last line has run; an earlier `exit(0)` is no success."""

_LIMITED = """
import os, resource, sys
for kind, most in (
    (resource.RLIMIT_CPU, {seconds}),
    (resource.RLIMIT_AS, {memory}),
    (resource.RLIMIT_FSIZE, {file}),
    (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(kind, (most, most))
exec(compile(sys.stdin.read(), "answer", "exec"), {{"__name__": "__main__"}})
os._exit({done})
"""


def runs_through(source: str, *, seconds: float = SECONDS) -> bool:
    """Whether the program runs to its last line, in time. Its output is thrown away."""
    limited = _LIMITED.format(
        seconds=int(seconds) + 1, memory=MEMORY_BYTES, file=FILE_BYTES, done=DONE
    )
    with tempfile.TemporaryDirectory(prefix="judge-decoding-") as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", limited],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            child.communicate(source.encode("utf-8", errors="replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(child)
        return child.returncode == DONE


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
