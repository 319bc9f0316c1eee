"""Replaces a file as a whole: after a crash or on a full disk it is the old one or the new one."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from judge_decoding.errors import UserError


def write_whole(path: Path, data: str | bytes, what: str) -> None:
    """Write a file; a text as UTF-8. It is on disk when this returns.

    A symlink is followed, and something else than a file, as /dev/stdout, is written directly.
    UserError with one line that begins with `what` if it cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        place = path.resolve()
        part = place.with_name(f".{place.name}.part")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if place.exists():
                shutil.copymode(place, part)
            os.replace(part, place)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{what}: cannot write {path} ({reason}); it is what it was") from None
