"""The search for labels: a coroutine a prompt, the engines' passes batched over all of them.

See mine_labels.py for what is searched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from court_answers import Parser
from target_reader import ReadingTarget, ReadRequest

from judge_decoding.engine.base import Acceptance, Proposal, ProposeRequest, Verdict, VerifyRequest
from judge_decoding.engine.torch_engine import TorchDrafter

NEXT_TOKENS = 20


Ask = ProposeRequest | VerifyRequest | ReadRequest


@dataclass(frozen=True)
class Job:
    """A prompt to mine; `parse` reads the final answer, for `search`."""

    prompt: str
    group: str
    domain: str
    parse: Parser | None = None

    @property
    def name(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:12]


@dataclass
class Swap:
    """The draft's token at place `at` of the answer, and the answer up to and with it."""

    at: int
    good: bool
    ids: list[int]
    score: float = 0.0


@dataclass
class Mined:
    """The answer with its good swaps, and all swaps that were tried."""

    response: list[int]
    swaps: list[Swap] = field(default_factory=list)


@dataclass
class Miner:
    """What the coroutines share.

    stops   whether a token ends an answer besides the end ids (the first line is all of a fact's)
    """

    end_ids: frozenset[int]
    stops: Callable[[int], bool]
    decode: Callable[[Sequence[int]], str]
    max_tokens: int
    draft_len: int
    tau: float
    floor: float

    def go_on(
        self, sequence: int, text: Sequence[int], kept: int, room: int
    ) -> Generator[Ask, Any, list[int]]:
        """The target's greedy continuation of `text`, without what ends it."""
        written: list[int] = []
        pending = list(text[kept:])
        while len(written) < room:
            verdict: Verdict = yield VerifyRequest(
                sequence, kept, pending, acceptance=Acceptance("none")
            )
            token = verdict.next_token
            if token in self.end_ids or self.stops(token):
                break
            kept += len(pending)
            pending = [token]
            written.append(token)
        return written

    def search(self, sequence: int, prompt: Sequence[int], job: Job) -> Generator[Ask, Any, Mined]:
        """AutoJudge's semi-greedy search; no swap where the target gives no answer itself."""
        assert job.parse is not None
        begin = len(prompt)
        text = list(prompt)
        text += yield from self.go_on(sequence, text, 0, self.max_tokens)
        mined = Mined(text[begin:])
        reference = job.parse(self.decode(text[begin:]))
        if reference is None:
            return mined
        walk = _Walk(begin)
        while (yield from self.next_mismatch(sequence, text, walk)):
            at, token = walk.at, walk.token
            if job.parse(self.decode(text[begin:at])) is not None:
                break  # the answer is given: what follows cannot change it
            swapped = [*text[:at], token]
            kept = min(walk.target_kept, at - 1)
            read = yield ReadRequest(sequence, kept, swapped[kept:])
            walk.target_kept = at
            if float(read[-1]) < self.floor:
                continue  # nonsense that changes no answer is no good token either
            kept = at
            room = self.max_tokens - (len(swapped) - begin)
            if room > 0 and not self.stops(token):
                swapped += yield from self.go_on(sequence, swapped, kept, room)
            good = job.parse(self.decode(swapped[begin:])) == reference
            mined.swaps.append(Swap(at - begin, good, [*text[begin:at], token]))
            if good:
                text = swapped
        mined.response = text[begin:]
        return mined

    def judge_likelihood(
        self, sequence: int, prompt: Sequence[int], job: Job
    ) -> Generator[Ask, Any, Mined]:
        """SelfJudge's score; each swap by itself, none is kept."""
        begin = len(prompt)
        text = list(prompt)
        text += yield from self.go_on(sequence, text, 0, self.max_tokens)
        mined = Mined(text[begin:])
        if len(text) - begin < 2:
            return mined
        found: torch.Tensor = yield ReadRequest(sequence, begin - 1, text[begin - 1 :])
        base = [0.0] * begin + found.tolist()
        walk = _Walk(begin)
        while (yield from self.next_mismatch(sequence, text, walk)):
            at, token = walk.at, walk.token
            end = min(len(text), at + 1 + NEXT_TOKENS)
            kept = min(walk.target_kept, at - 1)
            read = yield ReadRequest(sequence, kept, [*text[kept:at], token, *text[at + 1 : end]])
            walk.target_kept = at
            score = float(read[at - 1 - kept :].sum()) - sum(base[at:end])
            ids = [*text[begin:at], token]
            mined.swaps.append(Swap(at - begin, score > self.tau, ids, score))
        return mined

    def next_mismatch(
        self, sequence: int, text: Sequence[int], walk: _Walk
    ) -> Generator[Ask, Any, bool]:
        """Let the draft propose along `text` from walk.next on; True with walk.at and walk.token
        where it differs. As in serving, a round that is accepted whole skips the target's own next
        token; and what `protect_end_ids` keeps from the judge is no mismatch."""
        while walk.next < len(text):
            k = min(self.draft_len, len(text) - walk.next)
            proposal: Proposal = yield ProposeRequest(
                sequence, walk.draft_kept, list(text[walk.draft_kept : walk.next]), k
            )
            n = 0
            while n < len(proposal.tokens) and proposal.tokens[n] == text[walk.next + n]:
                n += 1
            walk.draft_kept = walk.next + min(n, len(proposal.tokens) - 1)
            walk.at = walk.next + n
            walk.next = walk.at + 1
            if n < len(proposal.tokens) and proposal.tokens[n] not in self.end_ids:
                walk.token = proposal.tokens[n]
                return True
        return False


@dataclass
class _Walk:
    """Where the draft stands in the text.

    next           the place it proposes for next
    draft_kept, target_kept  positions of the caches that hold the text's beginning
    at, token      the last mismatch
    """

    next: int
    draft_kept: int = 0
    target_kept: int = 10**9
    at: int = 0
    token: int = 0


def run_all(
    jobs: Iterable[tuple[Job, Callable[[int], Generator[Ask, Any, Mined]]]],
    drafter: TorchDrafter,
    target: ReadingTarget,
) -> Iterator[tuple[Job, Mined]]:
    """Run coroutines, as many at a time as the caches hold sequences, their passes batched."""
    waiting = iter(jobs)
    active: dict[int, tuple[Job, Generator[Ask, Any, Mined]]] = {}
    asked: dict[int, Ask] = {}
    number = 0
    while True:
        answers: dict[int, Any] = {}
        while len(active) < target.max_sequences:
            following = next(waiting, None)
            if following is None:
                break
            active[number] = (following[0], following[1](number))
            answers[number] = None
            number += 1
        if not active:
            return
        for kind, run in (
            (ProposeRequest, drafter.propose),
            (VerifyRequest, target.verify),
            (ReadRequest, target.likelihood),
        ):
            mine = {n: a for n, a in asked.items() if isinstance(a, kind)}
            if mine:
                answers.update(zip(mine, run(list(mine.values())), strict=True))  # type: ignore
        for n, answer in answers.items():
            job, coroutine = active[n]
            try:
                asked[n] = coroutine.send(answer)
            except StopIteration as finished:
                del active[n]
                asked.pop(n, None)
                drafter.release(n)
                target.release(n)
                yield job, finished.value
