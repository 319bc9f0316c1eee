"""Reads lines within bounds, from a plain file or a gzipped one.

A line has at most `LINE_BYTES`, and `BLANK_LINES` may be blank. A gzipped file may expand
`EXPANSION`-fold: real labels expand less than 20-fold, and a bomb 1,000-fold.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from judge_decoding.errors import UserError

LINE_BYTES = 16 << 20
"""More than 100,000 tokens with their ids and text."""
BLANK_LINES = 100_000
EXPANSION = 200
_FREE = 16 << 20
"""Bytes that any gzipped file may expand to."""


class Line(NamedTuple):
    """A line without its line feed; `number` counts from 1, and counts blank lines, too.

    whole  whether it ended in a line feed; only a file's last line may not
    """

    number: int
    text: str
    whole: bool


def read_lines(path: Path, what: str, *, torn: bool = False, blank: bool = False) -> Iterator[Line]:
    """The lines of a file, gzipped if its name ends in .gz.

    Blank lines are left out. Only a line feed ends a line: str.splitlines() would also split at
    U+2028 inside a string.
    UserError with one line that begins with `what` if the file cannot be read, is not UTF-8, or
    exceeds a bound.

    torn  the writer may have been interrupted: a gzipped file may be cut off, and bytes that are
          not UTF-8 become U+FFFD
    blank  yield blank lines, too
    """
    packed = path.suffix == ".gz"
    try:
        size = path.stat().st_size
        most = max(_FREE, EXPANSION * size)
        read = number = empty = 0
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            while data := file.readline(LINE_BYTES + 1):
                number, read = number + 1, read + len(data)
                if len(data) > LINE_BYTES:
                    raise UserError(
                        f"{what}: {path}:{number}: the line is longer than {LINE_BYTES:,} bytes"
                    )
                if packed and read > most:
                    raise UserError(
                        f"{what}: {path}: {size:,} bytes expand to more than {most:,}; unpack it"
                    )
                if data.isspace() and not blank:
                    empty += 1
                    if empty > BLANK_LINES:
                        raise UserError(
                            f"{what}: {path}:{number}: it holds more than {BLANK_LINES:,} blank "
                            "lines"
                        )
                    continue
                whole = data.endswith(b"\n")
                try:
                    text = data.decode(errors="replace" if torn else "strict")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{what}: {path}:{number}: it is not UTF-8 (byte {error.start} of the line)"
                    ) from None
                yield Line(number, text.removesuffix("\n"), whole)
    except EOFError as error:
        if not torn:
            raise UserError(f"{what}: {path}: it cannot be read ({error})") from None
    except (OSError, zlib.error) as error:
        raise UserError(f"{what}: {path}: it cannot be read ({error})") from None
