"""A process that owns ports and holds no state: the launcher keeps it alive.

Its sockets are bound before anything starts and the launcher holds them, so no second server can
take the ports, and connections wait while the process starts again.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Self

STARTS = 5
"""So many within STARTS_S are too many: then the server ends."""
STARTS_S = 60.0


class KeptProcess:
    """The process, and the sockets that it serves."""

    def __init__(self, title: str, bound: dict[str, socket.socket], line: Sequence[str]) -> None:
        """title  in messages, such as `the HTTP front`
        bound  by name; the process gets a socket's descriptor as `--NAME-fd`
        line   of the command, without the descriptors
        """
        self._title = title
        self._bound = bound
        self._line = list(line)
        for name, one in bound.items():
            self._line += [f"--{name}-fd", str(one.fileno())]
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The process holds nothing that a signal could save."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for bound in self._bound.values():
            bound.close()

    def look(self) -> str | None:
        """Start the process if it does not run; in words, why that is no use any longer."""
        code = self._process.poll() if self._process else None
        if self._process is not None and code is None:
            return None
        now = time.monotonic()
        self._starts = [start for start in self._starts if now - start < STARTS_S]
        if len(self._starts) >= STARTS:
            return f"{self._title} ended {STARTS} times within {STARTS_S:g} s, with {code}"
        self._starts.append(now)
        # Without a preexec_fn, which is not safe beside other threads (the warm-up's, with gRPC).
        # So the process itself asks to end with the launcher.
        self._process = subprocess.Popen(
            self._line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[bound.fileno() for bound in self._bound.values()],
        )
        return None
