"""A real MPI world for tests: mpiexec runs in its own session and is always cleaned up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from judge_decoding.ranks.shared_memory import Segments

MPIEXEC = Path(sys.executable).parent / "mpiexec"
ROOT = Path(__file__).parent.parent
_MARK = "JUDGE_DECODING_TEST_WORLD"
_LIMIT_S = 120.0
LOCAL_ONLY = {
    "UCX_TLS": "posix,sysv,cma,self",
    "UCX_NET_DEVICES": "lo",
    "HYDRA_IFACE": "lo",
}


class World:
    """`with World(config, workers, *arguments) as world:` rank 0 runs tests.rank_scripts.generate
    with `config` and `arguments`. `world.wait()` -> exit code; output in `out` and `err`."""

    def __init__(
        self,
        config: Path,
        workers: int,
        *arguments: str | Path,
        worker_config: Path | None = None,
        worker_module: str = "judge_decoding.ranks.launch",
    ) -> None:
        self.mark = uuid.uuid4().hex
        leader = [sys.executable, "-m", "tests.rank_scripts.generate", str(config)]
        worker = [sys.executable, "-m", worker_module, "--config", str(worker_config or config)]
        command = [str(MPIEXEC), "-n", "1", *leader, *map(str, arguments)]
        self.process = subprocess.Popen(
            [*command, ":", "-n", str(workers), *worker],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env=os.environ | LOCAL_ONLY | {_MARK: self.mark},
        )
        self._segments = Segments(self.left)  # MPICH leaves its own when a rank is killed
        self.out = self.err = ""
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("out", "err")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, f"std{name}"):
            setattr(self, name, getattr(self, name) + line)

    def until(self, done: Callable[[], Any], what: str) -> Any:
        """Waits until `done()` is true; returns its value. Fails after a long limit."""
        deadline = time.monotonic() + _LIMIT_S
        while not (value := done()):
            self._segments.look()
            ended = self.process.poll() is not None
            assert not ended, f"ended before {what}:\n{self.out}\n{self.err}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.out}\n{self.err}"
            time.sleep(0.02)
        return value

    def pids(self) -> dict[int, int]:
        """Process ids of the workers by rank, once rank 0 has said that rounds are running."""
        found = self.until(lambda: re.search(r"^running (\{.*\})$", self.err, re.M), "round")
        self._segments.look()
        return {int(rank): pid for rank, pid in json.loads(found[1]).items()}

    def wait(self, limit_s: float = _LIMIT_S) -> int:
        deadline = time.monotonic() + limit_s
        while (code := self.process.poll()) is None:
            self._segments.look()  # a world that dies by itself leaves segments too
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("mpiexec", limit_s)
            time.sleep(0.02)
        for reader in self._readers:
            reader.join(10)
        return code

    def results(self) -> list[dict[str, Any]]:
        assert self.wait() == 0, self.err
        answer: list[dict[str, Any]] = json.loads(self.out)
        return answer

    def left(self) -> list[int]:
        """Processes that were started in this world and still run."""
        mark = f"{_MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def ends_clean(self) -> None:
        """Asserts that no process runs a moment after mpiexec has ended."""
        deadline = time.monotonic() + 10
        while left := self.left():
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.05)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._segments.look()
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self._segments.remove()
