"""Processes of this host, as read from /proc."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_POLL_S = 0.05


def is_running(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def is_stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP) or a debugger has stopped the process."""
    return _stat(pid)[:1] in (["T"], ["t"])


class Deaths:
    """Which watched processes have ended, in the order of their ends, however late one looks.

    epoll returns what became ready first. Where the kernel or a container's rules have no
    pidfd_open, the order is the one in which the ends are seen.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pids: dict[int, int] = {}  # descriptor -> pid of those that have not ended
        self._unwatched: list[int] = []
        self._ended: list[int] = []

    def watch(self, pids: Iterable[int]) -> None:
        """Watch these processes too. One that is gone already counts as ended now."""
        known = {*self._pids.values(), *self._unwatched, *self._ended}
        for pid in set(pids) - known:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                self._ended.append(pid)
                continue
            except OSError:
                self._unwatched.append(pid)
                continue
            self._pids[descriptor] = pid
            self._epoll.register(descriptor, select.EPOLLIN)

    def ended(self) -> list[int]:
        """The pids of the ended processes, the first to end first."""
        for descriptor, _ in self._epoll.poll(0, max(1, len(self._pids))):
            self._epoll.unregister(descriptor)
            os.close(descriptor)
            self._ended.append(self._pids.pop(descriptor))
        for pid in [pid for pid in self._unwatched if not is_running(pid)]:
            self._unwatched.remove(pid)
            self._ended.append(pid)
        return list(self._ended)


def session(leader: int) -> list[int]:
    """The pids of the session that `leader` leads."""
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [pid for pid in pids if _stat(pid)[3:4] == [str(leader)]]


def become_child(number: signal.Signals) -> None:
    """Called in a new process: send it this signal when its parent ends, however that happens.

    And let a write beyond a file's size limit fail (EFBIG) instead of ending the process: see
    `serving.regions`.
    """
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether the process ignores this signal; False if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def wait_until(condition: Callable[[], bool], limit_s: float) -> None:
    """Return once the condition holds, or the time is over."""
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(_POLL_S)


def _stat(pid: int) -> list[str]:
    """A process's /proc stat: [state, parent, group, session, ...]; [] if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
