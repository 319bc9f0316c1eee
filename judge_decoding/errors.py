"""The one exception that a user's mistake raises; the command line prints it and exits with 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from judge_client.echo import shown

Choice = TypeVar("Choice", bound=str)


class UserError(ValueError):
    """Bad configuration, input, file or version. The message names the value and the fix."""


def check_choice(option: str, value: str, choices: Sequence[Choice]) -> Choice:
    """Return `value` with the type of `choices`; UserError if it is none of them."""
    for choice in choices:
        if value == choice:
            return choice
    raise UserError(f"{option}: {shown(value)} is not one of {', '.join(choices)}")
