"""The one exception that a user's mistake raises; the command line prints it and exits with 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Choice = TypeVar("Choice", bound=str)


class UserError(ValueError):
    """Bad configuration, input, file or version. The message names the value and the fix."""


def shown(value: object, most: int = 200) -> str:
    """The value as a message shows it: its repr, shortened to `most` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python converts
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[:most]}..."


def shorten(error: BaseException) -> str:
    """The message of a library's error on one line, at most 200 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_choice(option: str, value: str, choices: Sequence[Choice]) -> Choice:
    """Return `value` with the type of `choices`; UserError if it is none of them."""
    for choice in choices:
        if value == choice:
            return choice
    raise UserError(f"{option}: {value!r} is not one of {', '.join(choices)}")
