"""`annotate`: labels by people."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.errors import check_choice
from judge_decoding.text import Tokenizer
from judge_decoding.training import annotate as terminal
from judge_decoding.training.labels import AFTER_ERROR, check_growing


def annotate(
    answers: Annotated[Path, typer.Argument(help="JSONL file of answers.")],
    out: Annotated[str, typer.Option(help="Label file to write, or to go on with.")],
    target: Annotated[
        str, typer.Option(help="The target: a folder or a GGUF file, for its tokenizer.")
    ] = DEMO_TARGET,
    annotator: Annotated[str, typer.Option(help="Whose labels these are.")] = "person",
    after_error: Annotated[
        str,
        typer.Option(
            help="Tokens after the error are bad (negative), not used (ignore) or good "
            "(error_only)."
        ),
    ] = "ignore",
    seed: Annotated[int, typer.Option(help="The seed of court-labels, for the split.")] = 0,
) -> None:
    """Label answers by hand, in a terminal. The screen names the keys."""
    from rich.console import Console

    file, console = resolve(out), Console()
    check_growing(file)
    tokenizer = Tokenizer(resolve(target))
    origin = annotator if annotator == "person" else f"person_{annotator}"
    work = terminal.Work(
        terminal.read_answers(answers, tokenizer),
        file,
        origin,
        seed,
        check_choice("--after-error", after_error, AFTER_ERROR),
    )
    # Ctrl-C ends it as the key q does.
    with work, suppress(KeyboardInterrupt), terminal.key_strokes() as keys:
        terminal.annotate(work, tokenizer, console, keys)
    left = len(work.todo) - work.at
    done = f"{out}: {work.total - left} of {work.total} answers seen, {left} left"
    console.print(done, soft_wrap=True, highlight=False)
