"""What people see: text coloured by provenance, a legend, a line of figures, a conversation.

On a terminal, provenance is a colour. Without colour (a pipe, a log, NO_COLOR), a pair of marks
encloses every run of tokens of one provenance, so that the output still says who wrote what.

It needs `rich`, which is imported when a console is made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from judge_client.wire import Chunk

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 140
"""Columns where there is no terminal to ask; wide enough that no cell of a table is cut."""

Runs: TypeAlias = list[tuple[str, str]]
"""Pieces of text, each with rich's name of its style; "" is no style."""


class Look(NamedTuple):
    """How tokens of one provenance are shown: in colour, or between marks."""

    style: str
    opening: str
    closing: str
    meaning: str


LOOKS: dict[str, Look] = {
    "aligned": Look("green", "", "", "drafted, and what the target itself would have written"),
    "judged": Look("bold yellow", "⟦", "⟧", "drafted, accepted by the judge (or a gate) alone"),
    "target": Look("cyan", "‹", "›", "written by the target"),
}
UNKNOWN = Look("", "", "", "")


def console(*, stderr: bool = False) -> Console:
    """A console on the present stdout or stderr."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def has_colour(out: Console) -> bool:
    return out.color_system is not None and not out.no_color


def write(out: Console, runs: Runs, *, end: str = "\n") -> None:
    """Print text that is not ours.

    On a terminal rich turns tabs into spaces and drops carriage returns, which is right there. In a
    pipe or a file the text stays as it is: a Makefile needs its tabs.
    """
    if out.is_terminal:
        from rich.text import Text

        out.print(Text.assemble(*runs), soft_wrap=True, end=end)
    else:
        out.file.write("".join(text for text, _ in runs) + end)
    out.file.flush()


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on one line of stdout."""
    print(json.dumps(document, allow_nan=False), flush=True)


class Painter:
    """Turns an answer's text into coloured runs as it streams in."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._last = UNKNOWN

    def paint(self, pieces: Iterable[tuple[str | None, str]]) -> Runs:
        """(provenance, text) of each piece -> runs. Text of unknown provenance (None) is plain."""
        painted: Runs = []
        for origin, run in groupby((p for p in pieces if p[1]), key=lambda piece: piece[0]):
            look = LOOKS.get(origin or "", UNKNOWN)
            if not self._colour and look != self._last:
                painted.append((self._last.closing + look.opening, ""))
            text = "".join(text for _, text in run)
            painted.append((text, look.style if self._colour else ""))
            self._last = look
        return painted

    def close(self) -> Runs:
        """The mark that ends the answer, if one is open."""
        last, self._last = self._last, UNKNOWN
        return [("" if self._colour else last.closing, "")]


def pieces(chunk: Chunk) -> list[tuple[str | None, str]]:
    """A chunk's text by provenance, for `Painter.paint`."""
    if not chunk.tokens:  # provenance was not asked for, or the server does not say
        return [(None, chunk.text)]
    return [(token.provenance, token.text) for token in chunk.tokens]


def print_legend(out: Console) -> None:
    from rich.text import Text

    colour = has_colour(out)
    for name, look in LOOKS.items():
        sample = name if colour else f"{look.opening}{name}{look.closing}"
        line = Text("  ").append(f"{sample:<10}", look.style if colour else "")
        out.print(line.append(look.meaning), soft_wrap=True)


def speed_line(tokens: int, seconds: float, records: Sequence[Mapping[str, Any]]) -> str:
    """The line under an answer, or under several.

    tokens   emitted tokens of all answers
    seconds  wall time, prefill included
    records  their acceptance records, as dictionaries
    """
    parts = [f"{tokens} tokens", f"{tokens / max(seconds, 1e-9):.1f} tok/s"]
    steps, accepted, judged = (
        sum(int(record.get(key, 0)) for record in records)
        for key in ("num_spec_steps", "num_accepted_draft_tokens", "num_judged_tokens")
    )
    if steps:  # the token after the draft (correction or bonus) counts too
        parts += [f"acceptance length {1 + accepted / steps:.2f}", f"{judged} judged"]
    return ", ".join(parts)


class TurnRefused(Exception):
    """A turn that got no answer, with the reason; the conversation goes on without it."""


def converse(out: Console, send: Callable[[list[dict[str, str]]], str]) -> None:
    """Chat on stdin and stdout until /quit or the end of input; /new forgets the conversation.

    send  prints the answer to a history of {"role", "content"} that ends with the user's turn, and
          returns its text; it raises TurnRefused where there is none
    """
    print_legend(out)
    history: list[dict[str, str]] = []
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if text == "/quit":
            return
        if text == "/new":
            history.clear()
        elif text:
            history.append({"role": "user", "content": text})
            try:
                answer = send(history)
            except TurnRefused as refused:
                history.pop()
                out.print(str(refused), soft_wrap=True)
            else:
                history.append({"role": "assistant", "content": answer})
