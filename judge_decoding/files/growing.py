"""A file that grows by whole lines or not at all.

A full disk lets a write end early. What it has written is then taken back, so that the line that is
written once there is space again does not continue half a line.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_PIECE = 1 << 16


class GrowingFile:
    """Opens a file for appending, or creates it, and cuts off a line that a crash left unfinished.

    All methods raise OSError if the file cannot be written; it then ends where it ended before.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, lines: bool = True) -> None:
        """mode   permissions of a new file, before the umask
        lines  false: the bytes are no lines, and a file is taken as it is
        """
        # O_NONBLOCK: a pipe that nobody reads is refused at the seek, and never waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        # An object, so that a file that nobody closes is closed and unlocked when it is dropped.
        self._file = os.fdopen(os.open(path, flags, mode), "ab", buffering=0)
        self._handle = self._file.fileno()
        try:
            # Another writer's bytes may be taken back with one's own.
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lines:
                self._cut_unfinished()
        except BlockingIOError:
            self.close()
            raise BlockingIOError(f"another process is writing {path}") from None
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes that the file holds."""
        return os.lseek(self._handle, 0, os.SEEK_END)

    def append(self, data: bytes, *, sync: bool = False) -> None:
        """Append all of the bytes, or none. sync  they are on disk when this returns"""
        end = self.size
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._handle, left) :]
            if sync:
                os.fsync(self._handle)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._handle, end)
            raise

    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes."""
        os.ftruncate(self._handle, size)
        os.fsync(self._handle)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_unfinished(self) -> None:
        end = at = self.size
        while at:
            start = max(0, at - _PIECE) if at < end else at - 1  # mostly one byte is enough
            found = os.pread(self._handle, at - start, start).rfind(b"\n")
            at = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if at < end:
            # A user may have named a file of another kind, of which nothing is cut off.
            if os.pread(self._handle, 1, at) != b"{":
                raise OSError("its last line is unfinished and no JSON object")
            os.ftruncate(self._handle, at)
