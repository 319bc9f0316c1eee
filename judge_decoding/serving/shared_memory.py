"""MPICH's shared memory of one job, removed when the job has ended.

MPICH removes the file itself where the job ends in good order. After a death it stays: some
megabytes of memory a death, until the machine is started again.
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
"""A file that is older and that no process of ours has mapped belongs to another job."""


class Segments:
    """The files of a job. Its name does not say whose a file is: the processes that map it do, so
    `look` has to come by while they live, or they note it themselves."""

    def __init__(self, processes: Callable[[], Iterable[int]]) -> None:
        """processes  the pids of the job, now"""
        self._processes = processes
        self._own: set[Path] = set()
        self._others: set[Path] = set()

    def look(self) -> None:
        """Often: it costs the listing of a folder while there is nothing new in it."""
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
        """Once the processes have ended.

        noted  files that they said are theirs: some do not live from one look to the next
        """
        for path in self._own | set(map(Path, noted)):
            path.unlink(missing_ok=True)


def mapped(pid: int) -> set[Path]:
    """MPICH's files that a process has mapped; empty where it is gone."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return set()
    return {Path(name) for name in _MAPPED.findall(maps)}
