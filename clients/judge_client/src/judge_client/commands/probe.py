"""A health probe that runs a round: a request of two tokens through every part of the server.

    judge-client probe -u 127.0.0.1:8001 -m 127.0.0.1:8002          ready: the request was answered
    judge-client probe -u 127.0.0.1:8001 -m 127.0.0.1:8002 --live   alive: or others are answered

It prints one line and exits with 0 or 1. Triton's own readiness only says that the models are
loaded, even when one of their processes hangs. A server with a full queue is not ready, but it is
alive: `--live` then reads the time stamp that the decoding loop renews while rounds run, so that a
busy server is not restarted for being busy.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from judge_client.client import JudgeClient
from judge_client.commands import options
from judge_client.errors import JudgeClientError
from judge_client.metrics import ALIVE, RUNNING, WAITING, read_metrics
from judge_client.wire import GenerateRequest

ROUND = GenerateRequest("Hi", max_tokens=2, ignore_eos=True)
CANCEL_S = 0.5
"""Seconds for the cancellation of a request that was not answered in time."""
STALE_S = 60.0
"""Seconds without a new time stamp after which the loop counts as dead; longer than any round."""


def probe(
    url: options.Url = options.DEFAULT_URL,
    metrics: Annotated[
        str, typer.Option("-m", "--metrics", help="HOST:PORT of the server's metrics.")
    ] = "127.0.0.1:8002",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for the answer.")] = 5.0,
    live: Annotated[bool, typer.Option("--live", help="A busy server is well too.")] = False,
) -> int:
    """Exit 0 where the server answers a request; with --live also where it is busy with others."""
    began = time.monotonic()
    try:
        with JudgeClient(url, timeout=timeout, control_s=CANCEL_S) as client:
            client.generate(ROUND)
        said, well = f"a round in {1e3 * (time.monotonic() - began):.0f} ms", True
    except JudgeClientError as error:
        said, well = str(error), False
        if live and is_busy(metrics):
            said, well = f"busy with others ({error})", True
    print(("alive: " if live else "ready: ") + said if well else f"not well: {said}")
    return 0 if well else 1


def is_busy(metrics: str) -> bool:
    """Whether there are requests and the loop has lately reported that it works on them.

    metrics  HOST:PORT
    """
    try:
        values = read_metrics(f"http://{metrics}/metrics")
    except OSError:
        return False
    fresh = time.time() - values.get(ALIVE, 0.0) < STALE_S
    return fresh and values.get(RUNNING, 0.0) + values.get(WAITING, 0.0) > 0
