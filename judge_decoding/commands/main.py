"""The `judge-decoding` command: the parser, its one-line errors, and the commands it knows.

Each command has a file of its own in this folder. A user's mistake is one line on stderr and exit
code 2. With `--json`, the last line of stdout is one JSON document.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from judge_decoding.commands import one_line, registry
from judge_decoding.commands.audit import audit
from judge_decoding.commands.bench import bench
from judge_decoding.commands.chat import chat
from judge_decoding.commands.eval import evaluate
from judge_decoding.commands.generate import generate
from judge_decoding.commands.plan import plan
from judge_decoding.commands.serve import serve


class OneLineErrors(TyperGroup):
    """Commands whose complaints are one line, not a box and not a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        # Bytes that are not UTF-8 become surrogates, as in arguments; `check_unicode` refuses them.
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        run = super().main
        one_line.run(lambda: run(*args, **(extra | {"standalone_mode": False})), "judge-decoding: ")


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Speculative decoding with a learned judge. Lossy by design: see --rule strict.",
)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (generate, chat, bench, serve, plan):
    app.command()(command)
app.command("eval")(evaluate)
app.command()(audit)
registry.add_to(app)


def main() -> None:
    """The console command."""
    app()
