"""The launcher's side of the run folder (`ranks.run_folder`), which a cleaner of /tmp may remove.

A server runs for months, and its folder is not written to in that time. systemd's cleaner leaves a
folder alone that is locked; others do not ask. So the launcher remembers what it has read, and
makes the folder again when it is gone.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.ranks import run_folder


class KeptFolder:
    """A run folder that stays there until its launcher removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[int, run_folder.Process] = {}
        self._descriptor = -1
        self._lock()

    def keep(self) -> None:
        """Make the folder again if it has gone, and can be made. Call it often.

        UserError if another user was faster: notes in that folder would say which processes to end.
        """
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.path.mkdir(0o700)
                self._lock()
            except FileExistsError:
                if self.path.lstat().st_uid != os.geteuid():
                    raise UserError(
                        f"serve: the run folder {self.path} was replaced by another user's"
                    ) from None

    def processes(self) -> list[run_folder.Process]:
        """The processes of this host that have ever announced themselves, in their notes' order."""
        for process in run_folder.processes(self.path):
            if process.host == os.uname().nodename:
                self._known[process.pid] = process
        return list(self._known.values())

    def drain(self) -> bool:
        """Ask for the running requests to be finished, as often as one likes; whether they are."""
        self.keep()
        with suppress(OSError):
            run_folder.ask_to_drain(self.path)
        return run_folder.is_drained(self.path)

    def close(self) -> None:
        """Let the lock go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> None:
        self.close()
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
