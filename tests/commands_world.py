"""The commands of `judge_decoding.commands.registry`, run in the test's own process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from judge_decoding.commands import one_line, registry


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


def run_command(name: str, *arguments: str) -> Done:
    """Runs `python build/NAME.py ARGUMENTS` in this process; exceptions but UserError pass on."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        command = registry.load(name)
        try:
            one_line.run(
                lambda: command.main(list(arguments), prog_name=name, standalone_mode=False)
            )
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
