"""Run functions as commands: complaints on one line, exit codes, signals."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer

from judge_client.errors import JudgeClientError


def run(
    command: Callable[..., Any] | Sequence[Callable[..., Any]],
    name: str,
    *,
    mistakes: tuple[type[Exception], ...] = (JudgeClientError,),
) -> NoReturn:
    """Run a function as a command, or several functions as subcommands under their names.

    An error of `mistakes` or a wrong option becomes one line on stderr and exit code 2; Ctrl-C
    becomes exit code 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # text that the terminal cannot show
            stream.reconfigure(errors="replace")
    # As an exception, so that a server that was started for the command is stopped with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for one in [command] if callable(command) else command:
        app.command()(one)
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
    except mistakes as error:
        _fail(name, str(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        # Typer's own complaints; their base class has moved between its versions.
        if not hasattr(error, "format_message"):
            raise
        _fail(name, error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def _fail(name: str, message: str) -> NoReturn:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
