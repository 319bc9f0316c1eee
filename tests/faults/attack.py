"""An attack on the shared server beside a canary stream: how a row of the table is made of one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial

from tests.faults.bench import Bench, Fault, Outcome
from tests.faults.words import shorten
from tests.triton_world import Serving

HUNG_S = 20.0
"""No stream may stop for as long. The table has the gaps that were measured."""

Send = Callable[[Serving], str]
"""Makes the attack; returns what the attacker sees."""


def attack(
    group: str, name: str, sees: str, send: Send, *, server: str = "goes on", quick: bool = False
) -> Fault:
    """A row. sees: what the attacker sees, exactly, or its beginning before `...`"""
    return Fault(group, name, partial(_inject, send, sees, server), quick=quick)


def _inject(send: Send, sees: str, after: str, bench: Bench) -> Outcome:
    server = bench.shared
    with bench.canary.watching() as seen:
        began = time.monotonic()
        said = send(server)
        seconds = time.monotonic() - began
    begins = sees.endswith("...") and said.startswith(sees[:-3])
    assert said == sees or begins, f"{said[:1000]!r} instead of {sees!r}"
    assert not seen.wrong and seen.streams, seen
    assert seen.gap_s < HUNG_S, seen
    plain = re.fullmatch("[a-z ,:]+", said)
    shown = said if plain else f"`{shorten(said)}`"
    return Outcome(shown, seconds, after, bench.unharmed(), seen.gap_s)
