"""What the launcher tells the processes it starts, and what they tell it: two variables.

JUDGE_DECODING_CONFIG   the deployment file
JUDGE_DECODING_RUN_DIR  a private folder where each process of a running server leaves a note

Ranks of a world that the launcher did not start (`deploy/rank.sh`), other than rank 0, have no such
folder and leave nothing.
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
from judge_decoding.serving.shared_memory import mapped

CONFIG = "JUDGE_DECODING_CONFIG"
RUN_DIR = "JUDGE_DECODING_RUN_DIR"
POLL_S = 0.1
SERVER = "tritonserver"
"""The role of the process that SIGTERM goes to."""


def deployment() -> Deployment:
    """The deployment this process belongs to."""
    path = os.environ.get(CONFIG)
    if not path:
        raise UserError(f"config: {CONFIG} is not set; start with `judge-decoding serve`")
    return load_deployment(path)


class Process(NamedTuple):
    """A process of a running server.

    role      what a message calls it
    segments  MPICH's shared memory that it has mapped: after a death somebody has to remove it
    """

    role: str
    pid: int
    host: str
    segments: Sequence[str] = ()


def announce(role: str, *, pid: int | None = None) -> None:
    """Tell the launcher who this process (or another) is; a rank once it has started MPI."""
    pid = os.getpid() if pid is None else pid
    segments = sorted(map(str, mapped(pid)))
    process = Process(role, pid, os.uname().nodename, segments)
    _leave(f"{process.host}-{process.pid}.process", process._asdict())


def report_failure(message: str) -> None:
    """Tell the launcher that this process can serve nothing more: it stops everything."""
    _leave(f"{os.uname().nodename}-{os.getpid()}.failure", {"message": message})


def secret() -> bytes:
    """What the models of one server know and no client does: whoever asks first makes it."""
    folder = os.environ.get(RUN_DIR)
    if not folder:
        raise UserError(f"serve: {RUN_DIR} is not set; start with `judge-decoding serve`")
    path = Path(folder) / "secret"
    if not path.exists():
        part = path.with_name(f"{os.getpid()}.secret.part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):  # another process was faster
            os.link(part, path)
        part.unlink()
    return path.read_bytes()


def ask_to_drain(folder: Path) -> None:
    """The launcher's word to the process that runs the loop: take in nothing more, finish."""
    (folder / "drain").touch()


def is_drained(folder: Path) -> bool:
    """That process's answer."""
    return (folder / "drained").exists()


def await_drain(drain: Callable[[], object]) -> None:
    """In a thread of that process: once asked to, `drain`, then answer."""
    folder = os.environ.get(RUN_DIR)
    if not folder:
        return
    while not (Path(folder) / "drain").exists():
        time.sleep(POLL_S)
    drain()
    (Path(folder) / "drained").touch()


def processes(folder: Path) -> list[Process]:
    """Who announced itself so far."""
    return [Process(**json.loads(path.read_text())) for path in sorted(folder.glob("*.process"))]


def failures(folder: Path) -> list[str]:
    """What was reported so far."""
    return [
        str(json.loads(path.read_text())["message"]) for path in sorted(folder.glob("*.failure"))
    ]


def _leave(name: str, document: dict[str, object]) -> None:
    folder = os.environ.get(RUN_DIR)
    if not folder:
        return
    part = Path(folder) / f"{name}.part"
    part.write_text(json.dumps(document))
    part.rename(Path(folder) / name)  # whole or not at all
