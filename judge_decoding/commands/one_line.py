"""How every command ends: a user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from judge_decoding.errors import UserError

USER_ERROR, INTERRUPTED = 2, 130


def run(command: Callable[[], object], prefix: str = "") -> NoReturn:
    """Run a command and exit with its code, with 2 for a mistake and with 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal's charset may lack characters
            stream.reconfigure(errors="replace")
    try:
        code = command()
    except UserError as error:
        fail(prefix, str(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Typer's own complaints; their base class has moved between its versions.
        if not hasattr(error, "format_message"):
            raise
        fail(prefix, error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def fail(prefix: str, message: str) -> NoReturn:
    print(f"{prefix}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(USER_ERROR)
