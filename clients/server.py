"""A server that a tool starts, watches and stops: `judge-decoding serve` on free ports.

Linux only, like Triton: processes and their memory are read from /proc.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from judge_client.errors import JudgeClientError

START_S = 900.0
"""Seconds until it is ready: loading models and the warm-up round."""
STOP_S = 60.0
"""Seconds until it has stopped, draining included."""


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    url          Triton's gRPC endpoint
    metrics_url  its metrics page
    openai_url   the OpenAI-compatible endpoint, whose `/` is the playground; None where it is off
    """

    url: str
    metrics_url: str
    process: subprocess.Popen[bytes]
    openai_url: str | None = None

    def rss(self) -> dict[str, int]:
        """Resident bytes of the launcher and everything it started: `name:pid` -> bytes."""
        return {
            f"{name}:{pid}": rss
            for pid, (name, rss) in sorted(descendants(self.process.pid).items())
        }


def command() -> str:
    """The library's command: beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / "judge-decoding"
    found = str(beside) if beside.exists() else shutil.which("judge-decoding")
    if found is None:
        raise JudgeClientError("judge-decoding: no such command; install the package, or use -u")
    return found


@contextmanager
def serving(config: Path, *, openai: bool = False) -> Iterator[ServerProcess]:
    """Start a server on free ports of loopback, wait until it is ready, and stop it afterwards.

    openai  with the OpenAI-compatible endpoint
    """
    with tempfile.TemporaryDirectory(prefix="judge-decoding-") as folder, ExitStack() as stack:
        ready, log = Path(folder) / "ready", Path(folder) / "log"
        grpc, metrics, door = free_ports(3)
        out = stack.enter_context(log.open("wb"))
        options = {
            "--config": config,
            "--ready-file": ready,
            "--http-port": "off",
            "--grpc-port": grpc,
            "--metrics-port": metrics,
        }
        if openai:
            options["--openai-port"] = door
        process = subprocess.Popen(
            [command(), "serve", *(str(part) for option in options.items() for part in option)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(stop, process)
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None:
                raise JudgeClientError(f"serve: it exited with {process.returncode}: {tail(log)}")
            if time.monotonic() > deadline:
                raise JudgeClientError(f"serve: not ready within {START_S:g} s: {tail(log)}")
            time.sleep(0.1)
        yield ServerProcess(
            f"127.0.0.1:{grpc}",
            f"http://127.0.0.1:{metrics}/metrics",
            process,
            f"http://127.0.0.1:{door}" if openai else None,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, time to drain, then SIGKILL for whatever is left."""
    left = set(descendants(process.pid))
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        left |= set(descendants(process.pid))
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def tail(log: Path) -> str:
    """The last line that is not blank."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return last.removeprefix("judge-decoding: ")


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens now."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


def descendants(root: int) -> dict[int, tuple[str, int]]:
    """`root` and every process below it: pid -> (name, resident bytes)."""
    page = os.sysconf("SC_PAGE_SIZE")
    parents, facts = dict[int, int](), dict[int, tuple[str, int]]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):  # it has ended
            # "pid (name) state ppid ...": the name may hold anything, a parenthesis included.
            head, _, rest = (entry / "stat").read_text(errors="replace").rpartition(") ")
            pid = int(entry.name)
            parents[pid] = int(rest.split()[1])
            facts[pid] = (
                head.partition("(")[2],
                int((entry / "statm").read_text().split()[1]) * page,
            )
    found = {root} & facts.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: facts[pid] for pid in found if pid in facts}
