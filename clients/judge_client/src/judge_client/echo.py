"""Values that messages repeat: at most ECHO characters of each, however large it is.

A message travels to the client and into the log, and a value may have megabytes.
"""

from __future__ import annotations

from reprlib import Repr

ECHO = 200
"""Characters of a value that a message repeats."""
_LONG_INTEGER = 256
"""Bits. Python refuses to write integers of more than 4,300 digits."""


class _Short(Repr):
    """Writes only the first items and characters, so that large values take no time either."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = ECHO

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return repr(x) if bits <= _LONG_INTEGER else f"an integer of {bits} bits"


def shown(value: object) -> str:
    """The value as Python writes it, cut to ECHO characters; a text that was cut gives its size."""
    if isinstance(value, (str, bytes)):
        size, unit = len(value), "bytes" if isinstance(value, bytes) else "characters"
        text = repr(value[:ECHO])
        return text if size <= ECHO and len(text) <= ECHO + 2 else f"{_head(text)} ({size} {unit})"
    text = _Short().repr(value)
    return text if len(text) <= ECHO else _head(text)


def cut(text: str, most: int = ECHO) -> str:
    """A text of somebody else, such as another library's error, without quotes."""
    if len(text) <= most:
        return text
    return f"{text[: most - 3]}... ({len(text)} characters)"


def _head(text: str) -> str:
    return f"{text[: ECHO - 3]}..."
