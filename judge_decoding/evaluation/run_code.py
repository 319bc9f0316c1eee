"""Runs a model's code in a child process without network, with limits on time, memory and files.

This is no sandbox. The child cannot hang, fill memory or disk, or open a socket, and it gets an
environment and a folder of its own, but it can read files. Run it only after an explicit opt-in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from judge_decoding.errors import UserError

SECONDS = 10
MEMORY_BYTES = 512 * 2**20
FILE_BYTES = 16 * 2**20
DONE = 86
"""The child's exit code once the last line has run; an earlier `exit(0)` is no success."""
NO_NETWORK_LIMIT = 87
"""The child's exit code if this system cannot take the network away."""

_LIMITED = """
import os, resource, sys
for kind, most in (
    (resource.RLIMIT_CPU, {seconds}),
    (resource.RLIMIT_AS, {memory}),
    (resource.RLIMIT_FSIZE, {file}),
    (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(kind, (most, most))
exec(compile(open({no_network!r}).read(), "no_network", "exec"), limits := {{}})
try:
    limits["take_network_away"]()
except OSError:
    os._exit({no_limit})
exec(compile(sys.stdin.read(), "answer", "exec"), {{"__name__": "__main__"}})
os._exit({done})
"""


def runs_through(source: str, *, seconds: float = SECONDS) -> bool:
    """Whether the program runs to its last line, in time. Its output is thrown away.

    UserError if this system cannot keep the program from the network.
    """
    limited = _LIMITED.format(
        seconds=int(seconds) + 1,
        memory=MEMORY_BYTES,
        file=FILE_BYTES,
        no_network=str(Path(__file__).with_name("no_network.py")),
        no_limit=NO_NETWORK_LIMIT,
        done=DONE,
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
        if child.returncode == NO_NETWORK_LIMIT:
            raise UserError(
                "--run-code: the model's code cannot be kept from the network here; that needs "
                "Linux with seccomp on x86_64 or aarch64"
            )
        return child.returncode == DONE


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
