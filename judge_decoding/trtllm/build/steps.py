"""Long commands that run one after the other, with logs, progress and resumption."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from judge_decoding.errors import UserError

TAIL_LINES = 5
MPIRUN = ("mpirun", "--allow-run-as-root", "--bind-to", "none", "--oversubscribe")
"""Open MPI's launcher. Its default binds each of one or two processes, and all of their threads and
children, to one core; more processes than cores are refused unless they may share them."""


@dataclass(frozen=True)
class BuildStep:
    """One command that makes one folder.

    files    names of the files that the folder holds at the end
    output   the finished folder; the command writes `partial(output)`, which is renamed at the end,
             so that a folder is either complete or missing
    env      added to the environment
    writes   files written before the command starts, with their text
    finish   called with the partial folder once the command has succeeded
    """

    name: str
    command: tuple[str, ...]
    output: Path
    files: tuple[str, ...]
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    writes: dict[Path, str] = field(default_factory=dict)
    finish: Callable[[Path], None] = lambda folder: None

    def shell(self) -> str:
        """The command as typed in a shell."""
        assigned = [f"{key}={shlex.quote(value)}" for key, value in self.env.items()]
        return " ".join([*assigned, shlex.join(self.command)])


def partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def describe(
    steps: Sequence[BuildStep], ready: Sequence[Path] = (), absent: Sequence[str] = ()
) -> str:
    """The text of a dry run: every command, and every file and folder that it would make.

    absent  models that are not on this machine (`preflight.absent_models`)
    """
    lines = [f"absent   {model}" for model in absent]
    lines += [f"ready    {folder}" for folder in ready]
    for step in steps:
        lines += [f"step     {step.name}"]
        lines += [f"writes   {path}\n{text}" for path, text in step.writes.items()]
        lines += [f"command  {step.shell()}"]
        lines += [f"makes    {step.output / name}" for name in step.files]
        lines += [f"log      {step.log}"]
    return "\n".join(lines)


def run_steps(steps: Sequence[BuildStep]) -> None:
    """Run the steps; UserError with the end of the log if one fails. Finished folders stay."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    for number, step in enumerate(steps, 1):
        title = f"[{number}/{len(steps)}] {step.name}"
        with Progress(*columns) as progress:
            task = progress.add_task(title, total=None)
            _run(step, lambda line: progress.update(task, description=f"{title}  {line}"))  # noqa: B023
        print(f"{step.name}: {step.output} is ready")


def _run(step: BuildStep, show: Callable[[str], None]) -> None:
    half = partial(step.output)
    shutil.rmtree(half, ignore_errors=True)
    for path in (step.log, half, *step.writes):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, text in step.writes.items():
        path.write_text(text, encoding="utf-8")
    with step.log.open("a", encoding="utf-8") as log:  # earlier attempts are kept
        log.write(f"# {datetime.now(UTC).isoformat(timespec='seconds')} {step.shell()}\n")
        log.flush()
        try:
            process = subprocess.Popen(
                step.command,
                env=os.environ | step.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise UserError(f"{step.name}: cannot start {step.command[0]} ({error})") from None
        assert process.stdout is not None
        tail: list[str] = []
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                tail = [*tail, line.strip()][-TAIL_LINES:]
                show(line.strip()[:60].replace("[", r"\["))
            code = process.wait()
        finally:
            if process.poll() is None:  # interrupted
                process.terminate()
                process.wait()
    if code != 0:
        raise UserError(
            f"{step.name} failed with exit code {code}; log {step.log}, its end: "
            f"{' | '.join(tail) or '(empty)'}"
        )
    if half.is_dir():
        step.finish(half)
    for name in step.files:
        if not (half / name).is_file():
            raise UserError(f"{step.name} ended well but made no {half / name}; log {step.log}")
    shutil.rmtree(step.output, ignore_errors=True)
    os.replace(half, step.output)
