"""The server's metrics page (docs/operations/metrics.md), read as numbers."""

from __future__ import annotations

import re
import time

from judge_client.connection import DIRECT
from judge_client.errors import JudgeClientError

RUNNING = "judge_decoding_num_requests_running"
WAITING = "judge_decoding_num_requests_waiting"
ALIVE = "judge_decoding_loop_alive_timestamp_seconds"
"""The decoding loop publishes it last, so that all else on the page is at least as new."""
FRESH_S = 120.0
"""Seconds to wait for a publication; longer than any round."""

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})? ([^ ]+)")


def read_metrics(url: str, *, fresh: bool = False) -> dict[str, float]:
    """The value of every metric, summed over its labels. See `read_page`."""
    return parse_metrics(read_page(url, fresh=fresh))


def read_page(url: str, *, fresh: bool = False) -> str:
    """The page as text.

    url    http://HOST:PORT/metrics
    fresh  wait until the loop publishes the next time (1 s), so that no value is older than this
           call

    OSError where nobody answers, JudgeClientError where the loop publishes nothing for FRESH_S.
    """
    wanted = time.time()
    while True:
        with DIRECT.open(url, timeout=10) as page:
            text = str(page.read().decode("utf-8"))
        if not fresh:
            return text
        # Then read once more: this page may have begun before a publication and ended after it.
        fresh = parse_metrics(text).get(ALIVE, 0.0) < wanted
        if not fresh:
            continue
        if time.time() > wanted + FRESH_S:
            raise JudgeClientError(f"{url}: no metrics of the loop since {FRESH_S:g} s")
        time.sleep(0.02)


def parse_metrics(text: str) -> dict[str, float]:
    totals = dict[str, float]()
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            totals[match[1]] = totals.get(match[1], 0.0) + float(match[2])
    return totals
