"""Patience with a Python model that does not run for a while, such as one that is swapped out.

Triton gives the process of a Python model (its stub) one second to say that it is alive while a
request is with it. Then it fails the request and frees the memory that the stub still uses, so the
stub crashes once it runs again, and with it the server. No option changes that second.

The sign of life is a byte in shared memory: the stub sets it, and Triton clears it before it waits.
The launcher sets it too, for as long as the process exists. How long a stub may take is then for
the launcher to decide (`server.stall_timeout_s`). Source: Triton's python_backend,
`StubLauncher::ReceiveMessageFromStub` and `IPCControlShm`; the layout is the same in releases 24.05
to 25.10.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from judge_decoding.ranks.shared_memory import FOLDER
from judge_decoding.serving.processes import is_running
from judge_decoding.serving.triton import STUB

BEAT_S = 0.2
"""Seconds between two signs; Triton looks after one second."""
_HEAD = 16
"""Bytes of `AllocatedShmOwnership`, which precedes the control block."""
_FLAGS = 4
"""The block begins with stub_health, parent_health, uses_env and decoupled, a byte each."""


class Patience:
    """A thread that keeps the sign of life of stubs set."""

    def __init__(self) -> None:
        self._signs: dict[int, tuple[mmap.mmap, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self, pids: Iterable[int]) -> list[int]:
        """Begin for the stubs among the processes; returns those whose memory looks different."""
        unknown = []
        for pid in pids:
            if (arguments := _arguments(pid)) is None:
                continue
            if (sign := _sign(arguments)) is None:
                unknown.append(pid)
            else:
                self._signs[pid] = sign
        self._thread.start()
        return unknown

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        for memory, _ in self._signs.values():
            memory.close()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            for pid, (memory, at) in self._signs.items():
                if is_running(pid):
                    memory[at] = 1


def _arguments(pid: int) -> list[str] | None:
    """A stub's arguments; None for any other process."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if Path(words[0]).name == STUB:
            return words[1:]
    return None


def _sign(arguments: list[str]) -> tuple[mmap.mmap, int] | None:
    """The shared memory and the byte's place in it; None where they do not look as they should.

    The arguments are: model, region, size, growth, parent, folder, handle of the control block, ...
    """
    try:
        region, size, handle = arguments[1], int(arguments[2]), int(arguments[6])
        with (FOLDER / region).open("r+b") as file:
            memory = mmap.mmap(file.fileno(), size)
    except (IndexError, ValueError, OSError):
        return None
    at = handle + _HEAD
    flags = memory[at : at + _FLAGS]
    references = int.from_bytes(memory[handle : handle + 4], "little")
    if len(flags) == _FLAGS and set(flags) <= {0, 1} and 1 <= references < 100:
        return memory, at
    memory.close()
    return None
