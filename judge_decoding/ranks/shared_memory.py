"""MPICH's shared memory of one job, removed when the job has ended.

MPICH removes its files when the job ends in good order. If a process dies they stay, and each keeps
some megabytes of memory until the machine is restarted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")
_PATTERN = "mpich_shm_*"
_MAPPED = re.compile(rf"{FOLDER}/mpich_shm_\w+")
_SETTLED_S = 10.0
"""Seconds. An older file that no process of ours has mapped belongs to another job."""


class Segments:
    """The files of a job. Only the processes that map a file tell which job owns it. So `look` must
    be called while they live, or they must note their files themselves."""

    def __init__(self, processes: Callable[[], Iterable[int]]) -> None:
        """processes  returns the job's present pids"""
        self._processes = processes
        self._own: set[Path] = set()
        self._others: set[Path] = set()

    def look(self) -> None:
        """Find new files. Call it often: it only lists a folder while there are none."""
        new = set(FOLDER.glob(_PATTERN)) - self._own - self._others
        if not new:
            return
        for pid in self._processes():
            self._own |= new & mapped(pid)
        for path in new - self._own:
            with suppress(OSError):
                if time.time() - path.stat().st_ctime > _SETTLED_S:
                    self._others.add(path)

    def remove(self, noted: Iterable[str] = ()) -> None:
        """Remove the files, once the processes have ended.

        noted  files that the processes noted as theirs: some end before the next `look`
        """
        for path in self._own | set(map(Path, noted)):
            path.unlink(missing_ok=True)


def mapped(pid: int) -> set[Path]:
    """MPICH's files that a process has mapped; none if it has ended."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return set()
    return {Path(name) for name in _MAPPED.findall(maps)}
