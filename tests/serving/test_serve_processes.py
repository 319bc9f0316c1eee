"""Processes of a running server: which died first, and the shared memory that they leave."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from judge_decoding.ranks import run_folder, shared_memory
from judge_decoding.serving.processes import Deaths


def test_deaths_are_known_in_their_order_however_late_one_looks() -> None:
    """Regression: if a model's death made the server abort, both were gone when the launcher
    looked, and it named the server."""
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(4)]
    deaths = Deaths()
    early, *others = children
    early.kill()
    early.wait()
    deaths.watch([child.pid for child in children])
    assert deaths.ended() == [early.pid]  # it is no longer watched
    order = [others[2], others[0], others[1]]
    for child in order:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    deaths.watch([child.pid for child in children])
    assert deaths.ended() == deaths.ended() == [early.pid, *(child.pid for child in order)]
    for child in order:
        child.wait()


def test_where_pidfds_are_forbidden_processes_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under an old container's rules: unwatched processes count as alive."""

    def forbidden(pid: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    with subprocess.Popen(["sleep", "60"]) as child:
        deaths = Deaths()
        deaths.watch([child.pid])
        deaths.watch([child.pid])
        assert deaths.ended() == []
        child.kill()
        child.wait()
        assert deaths.ended() == deaths.ended() == [child.pid]


MAP_A_FILE = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def files() -> Iterator[list[Path]]:
    """Three files as MPICH leaves them."""
    paths = [shared_memory.FOLDER / f"mpich_shm_{uuid.uuid4().hex}_0" for _ in range(3)]
    for path in paths:
        path.write_bytes(bytes(4096))
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def test_shared_memory_of_a_killed_process_is_removed_and_no_other(files: list[Path]) -> None:
    mine, noted, other = files
    command = [sys.executable, "-c", MAP_A_FILE, str(mine)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as process:
        segments = shared_memory.Segments(lambda: [process.pid])
        segments.look()
        assert process.stdout is not None and process.stdout.readline() == b"mapped\n"
        segments.look()  # it was not mapped the first time
        process.kill()
    segments.look()
    segments.remove([str(noted)])
    assert not mine.exists() and not noted.exists()
    assert other.exists()


def test_a_rank_notes_its_shared_memory_itself(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a rank that failed right after MPI's start was gone before the launcher looked,
    and left megabytes behind: 13 times of 72 on a busy machine."""
    monkeypatch.setenv(run_folder.FOLDER_VARIABLE, str(tmp_path))
    run_folder.announce("rank 0")
    with files[0].open("r+b") as file, mmap.mmap(file.fileno(), 0):
        run_folder.announce("rank 1", pid=os.getpid())
    (noted,) = run_folder.processes(tmp_path)  # one process, one note: the later one
    assert noted.role == "rank 1"
    assert noted.segments == [str(files[0])]
