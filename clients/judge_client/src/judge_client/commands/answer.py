"""Print one answer as it comes, and cancel it with Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from judge_client import terminal
from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError
from judge_client.wire import Answer, Chunk, GenerateRequest

if TYPE_CHECKING:
    from rich.console import Console


def show(
    client: JudgeClient,
    request: GenerateRequest,
    out: Console,
    *,
    request_id: str,
    stream: bool = True,
) -> Answer:
    """Print an answer and return it. Ctrl-C cancels it; the answer is then what came so far.

    A second Ctrl-C does not wait for the server and raises KeyboardInterrupt.
    """
    painter, answer = terminal.Painter(colour=terminal.has_colour(out)), Answer()
    with _cancelling(client, request_id):
        if stream:
            for chunk in client.stream(request, request_id=request_id):
                answer.add(chunk)
                terminal.write(out, painter.paint(terminal.pieces(chunk)), end="")
        else:
            answer = client.generate(request, request_id=request_id)
            whole = Chunk(answer.text, answer.tokens, None, None, None, None)
            terminal.write(out, painter.paint(terminal.pieces(whole)), end="")
    terminal.write(out, painter.close())
    return answer


def speed_line(answers: Sequence[Answer], seconds: float) -> str:
    """The line under answers; see `terminal.speed_line`."""
    tokens = sum(answer.num_output_tokens for answer in answers)
    records = [answer.record for answer in answers if answer.record is not None]
    line = terminal.speed_line(tokens, seconds, records)
    cancelled = any(answer.finish_reason == "cancelled" for answer in answers)
    return f"{line}, cancelled" if cancelled else line


@contextmanager
def _cancelling(client: JudgeClient, request_id: str) -> Iterator[None]:
    """The first Ctrl-C inside asks the server to end the request; the second is Python's own."""

    def ask() -> None:
        with suppress(JudgeClientError):  # the stream itself reports a server that has gone
            client.cancel(request_id)

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        # In a thread: the handler may have interrupted the main thread inside a call of the client.
        threading.Thread(target=ask, daemon=True).start()

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
