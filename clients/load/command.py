"""Run a measuring tool as a command; the library's complaints are one line too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from judge_client.commands import run as commands
from judge_client.errors import JudgeClientError
from judge_decoding.errors import UserError


def run(command: Callable[..., Any] | Sequence[Callable[..., Any]], name: str) -> NoReturn:
    """See `judge_client.commands.run.run`."""
    commands.run(command, name, mistakes=(JudgeClientError, UserError))
