"""What the client commands share: options, coloured provenance, one-line errors, Ctrl-C.

On a terminal provenance is a colour. Without colour (a pipe, a log, NO_COLOR) it is a pair of
marks around every run of such tokens.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from clients.client import JudgeClient
from clients.wire import Answer, Chunk, JudgeClientError, Request

PLAIN_WIDTH = 140
"""Columns where there is no terminal to ask."""

Url = Annotated[str, typer.Option("-u", "--url", help="HOST:PORT of the server's gRPC endpoint.")]
Model = Annotated[str, typer.Option(help="The server's model.")]
Timeout = Annotated[float | None, typer.Option(min=0.001, help="Seconds an answer may take.")]
Rule = Annotated[str | None, typer.Option(help="Acceptance rule.")]
Threshold = Annotated[float | None, typer.Option(help="The judge's, in [0, 1].")]
MaxTokens = Annotated[int | None, typer.Option(help="New tokens at most.")]
MaxDraftLen = Annotated[int | None, typer.Option(help="Drafted tokens a round.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="0 is off.")]
TopP = Annotated[float | None, typer.Option(help="1 is off.")]
Seed = Annotated[int | None, typer.Option(help="Of the sampling.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document on one line.")]

DEFAULT_URL = "127.0.0.1:8001"


class Look(NamedTuple):
    """How tokens of one provenance are shown: in colour, or between marks."""

    style: str
    opening: str
    closing: str
    meaning: str


LOOKS = {
    "aligned": Look("green", "", "", "drafted, and what the target itself would have written"),
    "judged": Look("bold yellow", "⟦", "⟧", "drafted, accepted by the judge (or a gate) alone"),
    "target": Look("cyan", "‹", "›", "written by the target"),
}
UNKNOWN = Look("", "", "", "")


def run(command: Callable[..., Any] | Sequence[Callable[..., Any]], name: str) -> NoReturn:
    """Run a function as a command, or several as its commands by their names.

    Complaints are one line on stderr, and exit code 2.
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
    except JudgeClientError as error:
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


def print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, allow_nan=False), flush=True)


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def has_colour(out: Console) -> bool:
    return out.color_system is not None and not out.no_color


class Painter:
    """Turns chunks into coloured text as they stream in."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._last = UNKNOWN

    def paint(self, chunk: Chunk) -> Text:
        painted = Text()
        for origin, run in groupby(chunk.tokens, key=lambda token: token.provenance):
            text = "".join(token.text for token in run)
            if text:
                self._append(painted, text, LOOKS.get(origin, UNKNOWN))
        if not chunk.tokens:  # a server that was not asked, or does not say
            self._append(painted, chunk.text, UNKNOWN)
        return painted

    def close(self) -> Text:
        """The mark that ends the answer, where one is open."""
        last, self._last = self._last, UNKNOWN
        return Text("" if self._colour else last.closing)

    def _append(self, painted: Text, text: str, look: Look) -> None:
        if not self._colour and look != self._last:
            painted.append(self._last.closing).append(look.opening)
        painted.append(text, look.style if self._colour else "")
        self._last = look


def print_legend(out: Console) -> None:
    colour = has_colour(out)
    for name, look in LOOKS.items():
        sample = name if colour else f"{look.opening}{name}{look.closing}"
        line = Text("  ").append(f"{sample:<10}", look.style if colour else "")
        out.print(line.append(look.meaning), soft_wrap=True)


def speed_line(answers: Sequence[Answer], seconds: float) -> str:
    """The line under an answer, or under several: wall time, prefill included."""
    tokens = sum(answer.num_output_tokens for answer in answers)
    parts = [f"{tokens} tokens", f"{tokens / max(seconds, 1e-9):.1f} tok/s"]
    records = [answer.record for answer in answers if answer.record is not None]
    steps, accepted, judged = (
        sum(int(record.get(key, 0)) for record in records)
        for key in ("num_spec_steps", "num_accepted_draft_tokens", "num_judged_tokens")
    )
    if steps:  # the token after the draft, correction or bonus, is counted
        parts += [f"acceptance length {1 + accepted / steps:.2f}", f"{judged} judged"]
    if any(answer.finish_reason == "cancelled" for answer in answers):
        parts.append("cancelled")
    return ", ".join(parts)


def show(
    client: JudgeClient, request: Request, out: Console, *, request_id: str, stream: bool = True
) -> Answer:
    """Print an answer as it comes and return it; Ctrl-C cancels it, and then it is what came.

    A second Ctrl-C does not wait for the server to agree: KeyboardInterrupt.
    """
    painter, answer = Painter(colour=has_colour(out)), Answer()
    with cancelling(client, request_id):
        if stream:
            for chunk in client.stream(request, request_id=request_id):
                answer.add(chunk)
                write(out, painter.paint(chunk))
        else:
            answer = client.generate(request, request_id=request_id)
            write(out, painter.paint(as_chunk(answer)))
    out.print(painter.close())
    return answer


def write(out: Console, text: Text) -> None:
    """An answer's text. rich makes spaces of tabs and drops carriage returns: right on a terminal;
    elsewhere it goes out as it is."""
    if out.is_terminal:
        out.print(text, end="", soft_wrap=True)
    else:
        out.file.write(text.plain)
    out.file.flush()


def as_chunk(answer: Answer) -> Chunk:
    return Chunk(answer.text, answer.tokens, None, None, answer.finish_reason, answer.record)


@contextmanager
def cancelling(client: JudgeClient, request_id: str) -> Iterator[None]:
    """The first Ctrl-C inside asks the server to end the request; the second is Python's own."""

    def ask() -> None:
        with suppress(JudgeClientError):  # the stream itself reports a server that has gone
            client.cancel(request_id)

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        # A thread: the handler may have stopped the main one inside of a call of the client's.
        threading.Thread(target=ask, daemon=True).start()

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
