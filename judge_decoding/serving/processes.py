"""Processes of this host as /proc has them."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path


def is_running(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def session(leader: int) -> list[int]:
    """The pids of its session."""
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [pid for pid in pids if _stat(pid)[3:4] == [str(leader)]]


def become_child(number: signal.Signals) -> None:
    """In a new process: get this signal when its parent is gone, however it went."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def _stat(pid: int) -> list[str]:
    """A process's /proc stat: [state, parent, group, session, ...]; [] where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
