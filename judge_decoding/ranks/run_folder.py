"""The run folder: a private folder through which the launcher and the processes of a running server
talk. Two environment variables lead a process to it:

JUDGE_DECODING_CONFIG   the deployment file
JUDGE_DECODING_RUN_DIR  the folder

The launcher sets both. In a world that it did not start (`deploy/rank.sh`) only rank 0 has a
folder; what the other ranks would write there is dropped.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.errors import UserError
from judge_decoding.ranks.shared_memory import mapped

CONFIG_VARIABLE = "JUDGE_DECODING_CONFIG"
FOLDER_VARIABLE = "JUDGE_DECODING_RUN_DIR"
POLL_S = 0.1
SERVER_ROLE = "tritonserver"
"""The role of the process that gets SIGTERM."""


def deployment() -> Deployment:
    """The deployment that this process belongs to."""
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        raise UserError(f"config: {CONFIG_VARIABLE} is not set; start with `judge-decoding serve`")
    return load_deployment(path)


class Process(NamedTuple):
    """A process of a running server.

    role      its name in messages
    segments  files of MPICH's shared memory that it has mapped; the launcher removes them after a
              death
    """

    role: str
    pid: int
    host: str
    segments: Sequence[str] = ()


def announce(role: str, *, pid: int | None = None) -> None:
    """Tell the launcher about this process or another one. A rank calls it once MPI has started."""
    pid = os.getpid() if pid is None else pid
    segments = sorted(map(str, mapped(pid)))
    process = Process(role, pid, os.uname().nodename, segments)
    _write_note(f"{process.host}-{process.pid}.process", process._asdict())


def report_failure(message: str) -> None:
    """Tell the launcher that this process cannot serve any longer; it then stops all processes."""
    _write_note(f"{os.uname().nodename}-{os.getpid()}.failure", {"message": message})


def folder() -> Path:
    """The run folder; UserError for a process without one."""
    path = os.environ.get(FOLDER_VARIABLE)
    if not path:
        raise UserError(f"serve: {FOLDER_VARIABLE} is not set; start with `judge-decoding serve`")
    return Path(path)


def secret() -> bytes:
    """32 bytes that one server's models share and no client knows. The first call makes them."""
    path = folder() / "secret"
    if not path.exists():
        part = path.with_name(f"{os.getpid()}.secret.part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):  # another process made it first
            os.link(part, path)
        part.unlink()
    return path.read_bytes()


def ask_to_drain(folder: Path) -> None:
    """The launcher asks the process that runs the loop to accept no more requests and to finish."""
    (folder / "drain").touch()


def is_drained(folder: Path) -> bool:
    """Whether that process has finished."""
    return (folder / "drained").exists()


def drain_when_asked(drain: Callable[[], object]) -> None:
    """Wait until the launcher asks, call `drain`, and report the end. It runs in a thread of the
    process with the loop."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    while not (Path(folder) / "drain").exists():
        time.sleep(POLL_S)
    drain()
    (Path(folder) / "drained").touch()


def processes(folder: Path) -> list[Process]:
    """The processes that have announced themselves so far."""
    return [Process(**json.loads(path.read_text())) for path in sorted(folder.glob("*.process"))]


def failures(folder: Path) -> list[str]:
    """The failures that have been reported so far."""
    return [
        str(json.loads(path.read_text())["message"]) for path in sorted(folder.glob("*.failure"))
    ]


def _write_note(name: str, document: dict[str, object]) -> None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    part = Path(folder) / f"{name}.part"
    part.write_text(json.dumps(document))
    part.rename(Path(folder) / name)  # a reader never sees half a note
