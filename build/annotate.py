"""Label answers by hand, in a terminal: read the question, go to the first error, mark it.

    python build/annotate.py answers.jsonl --out labels.jsonl --annotator kim

    left right (h l)  a token       up down (k j)  ten tokens       0 $  first, last
    g  all of it is good            e  the first error is here (v first: from v to here)
    i  not to be used               u  back to the answer before    s  later    q  quit

ANSWERS holds lines of {"prompt", "response"} with "group", "domain" and "chat" where they are
known, or label records of another producer, whose labels are not shown. Each decision is on disk
before the next answer is shown; a second run shows what is still to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from cache_path import resolve
from court_spans import error_spans
from court_split import split_in
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.text import Text

from judge_decoding.config import describe
from judge_decoding.errors import UserError
from judge_decoding.labels import AfterError, LabelRecord, Span, check_growing, read_labels
from judge_decoding.text import Tokenizer

STEPS = {"right": 1, "l": 1, "left": -1, "h": -1, "down": 10, "j": 10, "up": -10, "k": -10}
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "0", "F": "$"}
_ESCAPE_S = 0.1  # within it the rest of an arrow's bytes is there
_CTRL_C_S = 0.5  # within it a Ctrl-C is seen, at the latest
KEYS = "move: arrows 0 $   g all good   v..e error   i ignore   u undo   s skip   q quit"


class Answer(BaseModel):
    """What is to be labelled; other keys of a line are not read."""

    prompt: str = Field(min_length=1)
    response: str
    response_ids: list[int] = []
    group: str = ""
    domain: str = "chat"
    chat: bool = True
    split: Literal["train", "heldout"] | None = None

    @property
    def name(self) -> str:
        text = json.dumps([self.prompt, self.response_ids])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_answers(path: Path, tokenizer: Tokenizer) -> list[Answer]:
    if not path.is_file():
        raise UserError(f"annotate: no file {path}")
    answers: dict[str, Answer] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            answer = Answer.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"annotate: {path}:{number}: {describe(error, 'line')}") from None
        if not answer.response_ids:
            answer.response_ids = tokenizer.encode(answer.response, special=False)
        if answer.response_ids:
            answers[answer.name] = answer
    return list(answers.values())


class Work:
    """Answers, decisions, and the file that holds them."""

    def __init__(
        self, answers: list[Answer], out: Path, origin: str, seed: int, after_error: AfterError
    ) -> None:
        self._origin, self._seed, self._after_error = origin, seed, after_error
        done = set()
        if out.is_file() and out.stat().st_size:
            text = out.read_bytes()
            out.write_bytes(text[: text.rfind(b"\n") + 1])  # a line that a crash cut off
            done = {record.id for record in read_labels([out])}
        self.total = len(answers)
        self.todo = [a for a in answers if self._id(a) not in done]
        self.at = 0
        out.parent.mkdir(parents=True, exist_ok=True)
        self._file = out.open("ab")
        self._undo: list[tuple[int, int]] = []

    def _id(self, answer: Answer) -> str:
        return f"{answer.name}-{self._origin}"

    def decide(self, spans: list[Span] | None) -> None:
        """Write a decision, or None to put the answer off, and go on."""
        answer = self.todo[self.at]
        self._undo.append((self.at, self._file.tell()))
        if spans is not None:
            group = answer.group or f"{answer.domain}:{answer.prompt}"
            record = LabelRecord(
                id=self._id(answer),
                group=group,
                domain=answer.domain,
                prompt=answer.prompt,
                response=answer.response,
                response_ids=answer.response_ids,
                spans=spans,
                split=answer.split or split_in(answer.domain, group, self._seed),
                chat=answer.chat,
            )
            self._file.write(f"{record.to_json()}\n".encode())
            self._sync()
        self.at += 1

    def undo(self) -> None:
        """Back to the answer before, its decision taken out of the file."""
        if self._undo:
            self.at, size = self._undo.pop()
            self._file.truncate(size)
            self._file.seek(size)
            self._sync()

    def spans(self, key: str, start: int, end: int) -> list[Span]:
        """g, i: of the whole answer; e: tokens [start, end) are the error."""
        count = len(self.todo[self.at].response_ids)
        if key == "e":
            return error_spans(start, end, count, self._after_error, self._origin)
        label: Literal["good", "ignore"] = "good" if key == "g" else "ignore"
        return [Span(start=0, end=count, label=label, origin=self._origin)]

    def close(self) -> None:
        self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def show(console: Console, work: Work, tokenizer: Tokenizer, cursor: int, mark: int | None) -> None:
    answer = work.todo[work.at]
    ids = answer.response_ids
    text, written = Text(), ""
    low, high = sorted((cursor, cursor if mark is None else mark))
    for n in range(len(ids)):
        whole = tokenizer.decode(ids[: n + 1]).rstrip("\ufffd")
        piece, written = whole[len(written) :], whole
        style = "reverse" if n == cursor else "on red" if low <= n <= high else ""
        text.append(piece.replace("\n", "\\n\n") or "·", style)
    console.clear()
    left = len(work.todo) - work.at
    console.rule(f"{work.total - left + 1} of {work.total}, {answer.domain}")
    console.print(answer.prompt, style="bold", markup=False, highlight=False)
    console.print()
    console.print(text)
    console.print()
    console.print(f"token {cursor + 1} of {len(ids)}   {KEYS}", style="dim", highlight=False)


def annotate(work: Work, tokenizer: Tokenizer, console: Console, keys: Iterator[str]) -> None:
    cursor, mark = 0, None
    while work.at < len(work.todo):
        show(console, work, tokenizer, cursor, mark)
        last = len(work.todo[work.at].response_ids) - 1
        key = next(keys, "q")
        if key == "q":
            return
        if key in STEPS:
            cursor = min(max(cursor + STEPS[key], 0), last)
        elif key in ("0", "$"):
            cursor = last if key == "$" else 0
        elif key == "v":
            mark = None if mark is not None else cursor
        elif key in ("g", "e", "i", "s", "u"):
            if key == "u":
                work.undo()
            else:
                low, high = sorted((cursor, cursor if mark is None else mark))
                work.decide(None if key == "s" else work.spans(key, low, high + 1))
            cursor, mark = 0, None


@contextmanager
def key_strokes() -> Iterator[Iterator[str]]:
    """Keys as they are pressed, arrows by name; the terminal is as before when it ends."""
    if not sys.stdin.isatty():
        raise UserError("annotate: this needs a terminal to read keys from")
    number = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(number)

    def more() -> str:
        # A Ctrl-C just before a read that blocks would wait for the next key.
        while not select.select([number], [], [], _CTRL_C_S)[0]:
            pass
        return os.read(number, 1).decode("latin-1")

    def read() -> Iterator[str]:
        while key := more():
            if key != "\x1b":
                yield key
            elif select.select([number], [], [], _ESCAPE_S)[0] and more() in "[O":
                yield _ARROWS.get(more(), "")

    tty.setcbreak(number)
    try:
        yield read()
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def main(
    answers: Annotated[Path, typer.Argument(help="JSONL file")],
    out: Annotated[str, typer.Option(help="label file to write, or to go on with")],
    target: Annotated[str, typer.Option(help="folder of the target, for its tokenizer")] = (
        "cache:smollm2-135m-instruct"
    ),
    annotator: Annotated[str, typer.Option(help="whose labels these are")] = "person",
    after_error: Annotated[str, typer.Option(help="negative, ignore or error_only")] = "ignore",
    seed: Annotated[int, typer.Option(help="the seed of build/court.py")] = 0,
) -> None:
    console = Console()
    try:
        if after_error not in ("negative", "ignore", "error_only"):
            raise UserError(f"--after-error: {after_error!r} is not negative, ignore or error_only")
        check_growing(resolve(out))
        tokenizer = Tokenizer(resolve(target))
        origin = f"person_{annotator}" if annotator != "person" else annotator
        work = Work(read_answers(answers, tokenizer), resolve(out), origin, seed, after_error)  # type: ignore[arg-type]
        try:
            with key_strokes() as keys:
                annotate(work, tokenizer, console, keys)
        except KeyboardInterrupt:
            pass  # as q: everything decided is written
        finally:
            work.close()
    except UserError as error:
        raise SystemExit(str(error)) from None
    left = len(work.todo) - work.at
    done = f"{out}: {work.total - left} of {work.total} answers seen, {left} left"
    console.print(done, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
