"""The audit: finished requests decoded again with the standard rule, in a server's idle time.

    judge-decoding audit --config FILE -u 127.0.0.1:8001 --json

Requests come from the log that the deployment writes (`serving.audit_log`). Each is sent again
with rule `strict`, whose greedy answer is the target's own, and the two answers are compared:

agreement        tokens before the first one that differs, divided by the longer answer's length
identical        requests in which no token differs
diverged_at_judged, diverged_elsewhere
                 requests by whether the first token that differs was overridden. Elsewhere the
                 answers may differ by rounding alone (bfloat16, other batches); many such requests
                 mean that something is wrong: another model, another judge, a broken cache.
judged_share     share of the logged tokens that the standard rule would have refused; it needs no
                 decoding
answers_changed  differing answers, of those in which the parser finds something both times
                 (`answers_compared`)

A request belongs to the window in which it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from judge_decoding import provenance
from judge_decoding.decoding.sequence import Request
from judge_decoding.evaluation.parsers import LETTERS, choice, exact, last_number
from judge_decoding.evaluation.statistics import wilson
from judge_decoding.pipeline import Pipeline
from judge_decoding.serving.audit_log import Logged

Parse = Callable[[str], str | None]

PARSERS: dict[str, Parse] = {
    "number": last_number,
    "choice": lambda text: choice(text, LETTERS),
    "exact": exact,
    "none": lambda text: None,
}
"""How to find the answer of a request that belongs to no task."""

Rule = Literal["strict", "none"]
POLL_S = 0.2


class Deployed(Protocol):
    """Something that can decode a request again."""

    def is_idle(self) -> bool:
        """Whether nobody else's request is running or waiting."""

    def decode(self, logged: Logged) -> list[int]:
        """The standard rule's tokens, an end token included."""


class StrictDecoder:
    """The deployment's models in this process."""

    def __init__(self, pipeline: Pipeline, rule: Rule = "strict") -> None:
        self._decoder = pipeline.decoder
        self._acceptance = pipeline.deployment.default_acceptance(rule=rule)

    def is_idle(self) -> bool:
        return True

    def decode(self, logged: Logged) -> list[int]:
        request = Request(
            logged.prompt_ids,
            logged.max_tokens,
            self._acceptance,
            stop=tuple(logged.stop_words),
            ignore_end=logged.ignore_eos,
            min_tokens=logged.min_tokens,
        )
        return self._decoder.generate([request])[0].token_ids


@dataclass(frozen=True)
class Audited:
    """A logged request and the standard rule's tokens for it."""

    logged: Logged
    standard: list[int]

    @property
    def first_difference(self) -> int | None:
        """Index of the first token that differs or that only one side has; None if all agree."""
        ours = self.logged.token_ids
        for place, (one, other) in enumerate(zip(ours, self.standard, strict=False)):
            if one != other:
                return place
        shorter, longer = sorted((len(ours), len(self.standard)))
        return None if shorter == longer else shorter

    @property
    def agreement(self) -> float:
        place = self.first_difference
        longer = max(len(self.logged.token_ids), len(self.standard))
        return 1.0 if place is None else place / longer

    @property
    def at_judged(self) -> bool:
        """Whether the first token that differs was overridden."""
        place, origins = self.first_difference, self.logged.provenance
        return place is not None and place < len(origins) and origins[place] == "judged"


def audit(
    logged: Sequence[Logged],
    deployed: Deployed,
    *,
    wait_s: float = 300.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Audited]:
    """Decode each request again, one at a time, whenever nothing else runs.

    wait_s  the iterator ends early once the server has been busy for this many seconds at a stretch
    """
    for done, one in enumerate(logged):
        progress(done, len(logged))
        waited = 0.0
        while not deployed.is_idle():
            if waited >= wait_s:
                return
            sleep(POLL_S)
            waited += POLL_S
        yield Audited(one, deployed.decode(one))
    progress(len(logged), len(logged))


def report(
    audited: Iterable[Audited],
    *,
    logged: int,
    torn: int = 0,
    window_s: float,
    parse: Parse,
    decode: Callable[[Sequence[int]], str],
) -> dict[str, Any]:
    """{"windows", "total", "logged", "torn", "audited", "window_s", "provenance"}.

    logged  number of requests to decode; fewer were decoded if the server was never idle
    torn    number of the log's lines that were skipped
    """
    found = sorted(audited, key=lambda one: one.logged.time)
    windows: dict[int, list[Audited]] = {}
    for one in found:
        windows.setdefault(int(one.logged.time // window_s), []).append(one)
    return {
        "windows": [
            {"start": _utc(number * window_s), **_figures(part, parse, decode)}
            for number, part in windows.items()
        ],
        "total": _figures(found, parse, decode),
        "logged": logged,
        "torn": torn,
        "audited": len(found),
        "window_s": window_s,
        "provenance": provenance.collect(),
    }


def _figures(
    part: Sequence[Audited], parse: Parse, decode: Callable[[Sequence[int]], str]
) -> dict[str, Any]:
    tokens = sum(len(one.logged.token_ids) for one in part)
    judged = sum(one.logged.provenance.count("judged") for one in part)
    pairs = [(parse(decode(one.logged.token_ids)), parse(decode(one.standard))) for one in part]
    compared = [(ours, standard) for ours, standard in pairs if None not in (ours, standard)]
    changed = sum(ours != standard for ours, standard in compared)
    apart = [one for one in part if one.first_difference is not None]
    at_judged = sum(one.at_judged for one in apart)
    return {
        "requests": len(part),
        "tokens": tokens,
        "judged_tokens": judged,
        "judged_share": judged / tokens if tokens else None,
        "identical": len(part) - len(apart),
        "agreement": sum(one.agreement for one in part) / len(part) if part else None,
        "diverged_at_judged": at_judged,
        "diverged_elsewhere": len(apart) - at_judged,
        "answers_compared": len(compared),
        "answers_changed": changed,
        "changed_share": changed / len(compared) if compared else None,
        "changed_ci": list(wilson(changed / len(compared), len(compared))) if compared else None,
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
