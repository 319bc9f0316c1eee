"""The file of `--ready-file`: it exists exactly while its server is ready.

It is JSON: the addresses `http`, `grpc` and `metrics`, and `pid`, the launcher's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.serving import ports


class ReadyFile:
    """The ready file of one run. It may be None: then nothing is written."""

    def __init__(self, path: Path | None) -> None:
        """Removes the file of a run that was killed: a pod's volume outlives its containers.

        UserError if it belongs to a server that runs, or cannot be removed.
        """
        self.path = path
        self._text: str | None = None
        if path is None:
            return
        if (pid := _owner(path)) is not None:
            whose = f"the server of process {pid}" if pid else "another server"
            raise UserError(
                f"serve: the ready file {path} belongs to {whose}, which runs; choose another "
                "--ready-file"
            )
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"serve: cannot remove the old ready file {path} ({error.strerror})"
            ) from None

    def write(self, addresses: Mapping[str, str]) -> None:
        """Write the file at once as a whole. OSError if that fails."""
        if self.path is None:
            return
        text = json.dumps({**addresses, "pid": os.getpid()}) + "\n"
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            part.write_text(text)
            self._text = text
            part.rename(self.path)
        finally:
            part.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file if it is this run's."""
        if self.path is not None and self._text is not None:
            with suppress(OSError):
                if self.path.read_text() == self._text:
                    self.path.unlink()


def _owner(path: Path) -> int | None:
    """The pid of the running server that wrote the file; None if it does not run.

    The port's lock tells, not the pid: each container of a pod counts pids from 1 again.
    """
    try:
        host, _, port = str(json.loads(path.read_text())["grpc"]).rpartition(":")
        addresses = [(host, int(port))]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if host == "127.0.0.1":
        addresses.append(("0.0.0.0", int(port)))  # a server on every address is reached there
    return next((pid for at in addresses if (pid := ports.owner(*at)) is not None), None)
