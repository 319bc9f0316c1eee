"""Reads JSON within bounds: bytes of a file, depth of nesting, digits of an integer.

Without them a model folder ends a process with a RecursionError, or with all of its memory.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from judge_decoding.errors import UserError

DEPTH = 64
"""Objects and lists inside each other; the files of real models have fewer than ten."""
SETTINGS_BYTES = 16 << 20
"""For a configuration or an index of shards; 405B's index has 0.2 MB."""


class JsonError(ValueError):
    """A text that is not JSON within bounds. The message is one short line."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    JsonError if it is not JSON, is nested deeper than `DEPTH`, or has an integer with more digits
    than Python converts (4,300).
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise JsonError(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise JsonError(str(error)) from None
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8: byte {error.start}") from None
    except ValueError:  # the only other one: Python's limit of digits
        raise JsonError("it holds an integer of more than 4,300 digits") from None
    level, depth = [value], 0
    while level := [node for node in level if type(node) in (dict, list)]:
        depth += 1
        if depth > DEPTH:
            raise JsonError(_TOO_DEEP)
        level = [part for node in level for part in (node.values() if type(node) is dict else node)]
    return value


_TOO_DEEP = f"it is nested deeper than {DEPTH} levels"


def read_bounded(path: Path, most: int) -> bytes:
    """All bytes of a regular file, at the end of any symlinks.

    OSError if it cannot be read, is no regular file (a pipe would block for ever) or holds more
    than `most` bytes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > most:
            raise OSError(f"it has {status.st_size:,} bytes, at most {most:,} are read")
        return file.read(most + 1)[:most]


def read_object(path: Path, what: str = "model", most: int = SETTINGS_BYTES) -> dict[str, Any]:
    """The JSON object in a file; UserError with one line that begins with `what`."""
    try:
        value = parse_json(read_bounded(path, most))
    except FileNotFoundError:
        raise UserError(f"{what}: no file {path}") from None
    except (JsonError, OSError) as error:
        raise UserError(f"{what}: {path} is not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{what}: {path} must hold a JSON object")
    return value
