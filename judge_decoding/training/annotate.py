"""Labelling by hand: answers are shown in the terminal, keys move a cursor and set the labels.

    left right (h l)  one token     up down (k j)  ten tokens     0 $  first, last
    g  all of it is good            e  the first error is here (after v: from there to here)
    i  do not use it                u  back to the previous answer    s  later    q  quit

Each decision is on disk before the next answer is shown, so that a second run shows what is left.
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
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from judge_decoding.config import describe
from judge_decoding.errors import UserError, shorten
from judge_decoding.files import GrowingFile, read_lines
from judge_decoding.text import Tokenizer
from judge_decoding.training.court.spans import error_spans
from judge_decoding.training.court.split import split_in
from judge_decoding.training.labels import AfterError, LabelRecord, Span, read_labels

if TYPE_CHECKING:
    from rich.console import Console

STEPS = {"right": 1, "l": 1, "left": -1, "h": -1, "down": 10, "j": 10, "up": -10, "k": -10}
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "0", "F": "$"}
_ESCAPE_S = 0.1  # the rest of an arrow key's bytes arrives within this time
_CTRL_C_S = 0.5  # a Ctrl-C is seen within this time
KEYS = "move: arrows 0 $   g all good   v..e error   i ignore   u undo   s skip   q quit"


class AnswerToLabel(BaseModel):
    """One answer to label; other keys of its line are ignored.

    response_ids  empty: the tokenizer makes them from `response`
    split         None: by the hash of the group
    """

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


def read_answers(path: Path, tokenizer: Tokenizer) -> list[AnswerToLabel]:
    """The answers of a JSONL file, each once; UserError names the line that is wrong.

    Label records of another producer are accepted too; their labels are ignored.
    """
    if not path.is_file():
        raise UserError(f"annotate: no file {path}")
    answers: dict[str, AnswerToLabel] = {}
    for number, line, _ in read_lines(path, "annotate"):
        try:
            answer = AnswerToLabel.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"annotate: {path}:{number}: {describe(error, 'line')}") from None
        if not answer.response_ids:
            answer.response_ids = tokenizer.encode(answer.response, special=False)
        if answer.response_ids:
            answers[answer.name] = answer
    return list(answers.values())


class Work:
    """The answers to label, the decisions, and the file that holds them.

    origin  the origin of all spans; it says whose labels they are
    seed    the seed of the split, for answers that name no split
    """

    def __init__(
        self,
        answers: list[AnswerToLabel],
        out: Path,
        origin: str,
        seed: int,
        after_error: AfterError,
    ) -> None:
        self._origin, self._seed, self._after_error = origin, seed, after_error
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = GrowingFile(out)
        except OSError as error:
            raise UserError(f"annotate: cannot write {out} ({shorten(error)})") from None
        done = {record.id for record in read_labels([out])}
        self.total = len(answers)
        self.todo = [a for a in answers if self._id(a) not in done]
        self.at = 0
        self._undo: list[tuple[int, int]] = []

    def _id(self, answer: AnswerToLabel) -> str:
        return f"{answer.name}-{self._origin}"

    def decide(self, spans: list[Span] | None) -> None:
        """Write a decision and go on to the next answer; None leaves the answer for a later run."""
        answer = self.todo[self.at]
        self._undo.append((self.at, self._file.size))
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
            try:
                self._file.append(f"{record.to_json()}\n".encode(), sync=True)
            except OSError as error:
                raise UserError(
                    f"annotate: cannot write this decision ({error.strerror}); the earlier ones "
                    "are there: make space and run again"
                ) from None
        self.at += 1

    def undo(self) -> None:
        """Go back to the previous answer and take its decision out of the file."""
        if self._undo:
            self.at, size = self._undo.pop()
            self._file.cut(size)

    def spans(self, key: str, start: int, end: int) -> list[Span]:
        """The spans of a key: g and i label the whole answer, e marks tokens [start, end) bad."""
        count = len(self.todo[self.at].response_ids)
        if key == "e":
            return error_spans(start, end, count, self._after_error, self._origin)
        label: Literal["good", "ignore"] = "good" if key == "g" else "ignore"
        return [Span(start=0, end=count, label=label, origin=self._origin)]

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def show(console: Console, work: Work, tokenizer: Tokenizer, cursor: int, mark: int | None) -> None:
    """Draw the current answer, its cursor, and the marked tokens."""
    from rich.text import Text

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
    """Show one answer after another and do what the keys say, until q or the last answer."""
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
    """Yields keys as they are pressed, arrows by name; the terminal is restored at the end.

    UserError if stdin is not a terminal.
    """
    if not sys.stdin.isatty():
        raise UserError("annotate: this needs a terminal to read keys from")
    number = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(number)

    def more() -> str:
        # A blocking read would not notice a Ctrl-C just before it until the next key.
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
