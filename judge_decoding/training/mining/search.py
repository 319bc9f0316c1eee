"""The search for labels: one coroutine per prompt, with the engines' passes batched over all.

`run` explains the methods. The search uses only `decoding.contracts`; `judge_likelihood` also needs
a `TokenReader`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias

import torch

from judge_decoding.decoding.contracts import (
    Acceptance,
    Drafter,
    Proposal,
    ProposeRequest,
    Target,
    Verdict,
    VerifyRequest,
)
from judge_decoding.training.mining.jobs import MiningJob
from judge_decoding.training.target_reader import ReadRequest

NEXT_TOKENS = 20
"""Number of the target's own tokens after a swap whose likelihood enters the score."""

Ask: TypeAlias = ProposeRequest | VerifyRequest | ReadRequest


class TokenReader(Protocol):
    """A target that gives the log-likelihood of given tokens."""

    def likelihood(self, requests: Sequence[ReadRequest]) -> list[torch.Tensor]:
        """float32 [len(tokens) - 1] per request; see `ReadRequest`."""


@dataclass
class Cost:
    """What mining cost. A pass of the target is a batch over all prompts in flight."""

    prompts: int = 0
    good: int = 0
    bad: int = 0
    target_passes: int = 0
    target_tokens: int = 0
    draft_calls: int = 0
    draft_tokens: int = 0
    seconds: float = 0.0
    """Working time, summed over the ranks."""

    def add(self, other: Cost) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


@dataclass
class Swap:
    """The draft's token at place `at` of the answer; `ids` is the answer up to and including it."""

    at: int
    good: bool
    ids: list[int]
    score: float = 0.0


@dataclass
class Mined:
    """The response with its good swaps, and all swaps that were tried. The response ends where its
    final answer is settled."""

    response: list[int]
    swaps: list[Swap] = field(default_factory=list)


@dataclass
class Miner:
    """What the coroutines share.

    max_tokens  limit of an answer if the item has none
    tau         `judge_likelihood`: a swap is good above this score, in nats
    floor       `search`: swaps whose log-probability is lower, in nats, are left out; -inf: none
                is, and the engine does not need rule `typical`
    """

    end_ids: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    max_tokens: int
    draft_len: int
    tau: float
    floor: float

    def is_over(self, job: MiningJob, answer: Sequence[int]) -> bool:
        if len(answer) >= (job.item.max_tokens or self.max_tokens):
            return True
        text = self.decode(answer)
        return job.settled(text) or any(stop in text for stop in job.item.stop)

    def ends(self, job: MiningJob, answer: Sequence[int], token: int) -> bool:
        """Whether `token` ends the answer without being part of it."""
        if token in self.end_ids:
            return True
        stops = job.item.stop
        return bool(stops) and any(stop in self.decode([*answer, token]) for stop in stops)

    def go_on(
        self,
        sequence: int,
        text: Sequence[int],
        begin: int,
        job: MiningJob,
        *,
        kept: int = 0,
        token: int | None = None,
    ) -> Generator[Ask, Any, tuple[list[int], int]]:
        """The target's greedy continuation of `text`, whose answer begins at `begin`.

        kept   positions of `text` that the target's cache holds
        token  the target's next token, if known
        -> the whole text, and the positions of it that are cached
        """
        text = list(text)
        while not self.is_over(job, text[begin:]):
            if token is None:
                verdict: Verdict = yield VerifyRequest(
                    sequence, kept, text[kept:], acceptance=Acceptance("none")
                )
                token, kept = verdict.next_token, len(text)
            if self.ends(job, text[begin:], token):
                break
            text.append(token)
            token = None
        return text, kept

    def search(
        self, sequence: int, prompt: Sequence[int], job: MiningJob
    ) -> Generator[Ask, Any, Mined]:
        """AutoJudge's semi-greedy search; it tries no swap if the target itself gives no answer."""
        begin = len(prompt)
        text, kept = yield from self.go_on(sequence, prompt, begin, job)
        mined = Mined(text[begin:])
        reference = job.answer(self.decode(text[begin:]))
        if reference is None:
            return mined
        walk = _Walk(begin, target_kept=kept)
        while (yield from self.next_mismatch(sequence, text, walk)):
            at, token = walk.at, walk.token
            if job.settled(self.decode(text[begin:at])):
                break  # what follows cannot change the answer
            swapped = [*text[:at], token]
            verdict: Verdict = yield self.swap(sequence, swapped, min(walk.target_kept, at - 1))
            walk.target_kept = at
            if self.floor > -math.inf and not verdict.accepted:
                continue  # nonsense is not good, even if the answer stays the same
            swapped, kept = yield from self.go_on(
                sequence, swapped, begin, job, kept=at + 1, token=verdict.next_token
            )
            good = job.answer(self.decode(swapped[begin:])) == reference
            mined.swaps.append(Swap(at - begin, good, [*text[begin:at], token]))
            if good:
                text, walk.target_kept = swapped, kept
        mined.response = text[begin:]
        return mined

    def swap(self, sequence: int, text: Sequence[int], kept: int) -> VerifyRequest:
        """One pass that tells whether the last token is above the floor, and what follows it."""
        if self.floor == -math.inf:
            rule = Acceptance("none")
            return VerifyRequest(sequence, kept, list(text[kept:]), acceptance=rule)
        # With a delta this large, typical acceptance means "more likely than epsilon".
        rule = Acceptance(
            "typical",
            typical_epsilon=math.exp(self.floor),
            typical_delta=1e9,
            protect_end_ids=False,
        )
        draft = Proposal([text[-1]])
        return VerifyRequest(sequence, kept, list(text[kept:-1]), draft, acceptance=rule)

    def judge_likelihood(
        self, sequence: int, prompt: Sequence[int], job: MiningJob
    ) -> Generator[Ask, Any, Mined]:
        """SelfJudge's score of each swap alone; no swap is kept in the text."""
        begin = len(prompt)
        text, _ = yield from self.go_on(sequence, prompt, begin, job)
        mined = Mined(text[begin:])
        if len(text) - begin < 2:
            return mined
        found: torch.Tensor = yield ReadRequest(sequence, begin - 1, text[begin - 1 :])
        base = [0.0] * begin + found.tolist()
        walk = _Walk(begin, target_kept=len(text))
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

    def score(
        self, sequence: int, prompt: Sequence[int], ids: Sequence[int]
    ) -> Generator[Ask, Any, Mined]:
        """SelfJudge's score of the last of `ids`, as if it were swapped in for the token that the
        target itself would write there."""
        text, begin, kept = [*prompt, *ids[:-1]], len(prompt) + len(ids) - 1, 0
        # At least one token, even if it ends the answer, since the swap replaces it.
        while len(text) < begin + 1 + NEXT_TOKENS:
            verdict: Verdict = yield VerifyRequest(
                sequence, kept, text[kept:], acceptance=Acceptance("none")
            )
            kept = len(text)
            ended = verdict.next_token in self.end_ids
            if not ended or kept == begin:
                text.append(verdict.next_token)
            if ended:
                break
        base = yield ReadRequest(sequence, begin - 1, text[begin - 1 :])
        swapped = [text[begin - 1], ids[-1], *text[begin + 1 :]]
        read = yield ReadRequest(sequence, begin - 1, swapped)
        found = float(read.sum()) - float(base.sum())
        swap = Swap(len(ids) - 1, found > self.tau, list(ids), found)
        return Mined(list(ids), [swap])

    def next_mismatch(
        self, sequence: int, text: Sequence[int], walk: _Walk
    ) -> Generator[Ask, Any, bool]:
        """Let the draft propose along `text` from walk.next on. True: it differs, at walk.at by
        walk.token. As in serving, a fully accepted round skips the target's own next token, and
        tokens that `protect_end_ids` keeps from the judge are no mismatches."""
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
    """How far the draft has followed the text.

    next       the next place to propose for
    target_kept, draft_kept  cached positions that hold the text's beginning
    at, token  the last mismatch
    """

    next: int
    target_kept: int
    draft_kept: int = 0
    at: int = 0
    token: int = 0


Coroutine: TypeAlias = Generator[Ask, Any, Mined]


def run_all(
    jobs: Iterable[tuple[MiningJob, Callable[[int], Coroutine]]],
    drafter: Drafter,
    target: Target,
    reader: TokenReader | None = None,
    *,
    in_flight: int | None = None,
    cost: Cost | None = None,
) -> Iterator[tuple[MiningJob, Mined]]:
    """Run coroutines with their passes batched; as many at a time as the caches hold sequences.

    in_flight  a lower limit on coroutines at a time
    cost       is increased by what is spent
    """
    cost = Cost() if cost is None else cost
    most = min(target.max_sequences, drafter.max_sequences, in_flight or target.max_sequences)
    waiting = iter(jobs)
    active: dict[int, tuple[MiningJob, Coroutine]] = {}
    asked: dict[int, Ask] = {}
    done: list[tuple[MiningJob, Mined]] = []

    def resume(number: int, answer: Any) -> None:
        job, coroutine = active[number]
        try:
            asked[number] = coroutine.send(answer)
        except StopIteration as finished:
            del active[number]
            asked.pop(number, None)
            drafter.release(number)
            target.release(number)
            done.append((job, finished.value))

    def answer_all(kind: type, run: Callable[[list[Any]], list[Any]]) -> list[Any]:
        mine = {n: ask for n, ask in asked.items() if isinstance(ask, kind)}
        requests = list(mine.values())
        if requests:
            for n, answer in zip(mine, run(requests), strict=True):
                resume(n, answer)
        return requests

    number = 0
    while True:
        while len(active) < most and (following := next(waiting, None)) is not None:
            active[number] = (following[0], following[1](number))
            resume(number, None)
            number += 1
        if not active:
            yield from done
            return
        # Serve the draft's requests first, so that the target's pass has all sequences in flight.
        while proposed := answer_all(ProposeRequest, drafter.propose):
            cost.draft_calls += 1
            cost.draft_tokens += sum(r.draft_len for r in proposed)
        if verified := answer_all(VerifyRequest, target.verify):
            cost.target_passes += 1
            cost.target_tokens += sum(len(r.tokens) + len(r.draft.tokens) for r in verified)
        if reader is not None and (read := answer_all(ReadRequest, reader.likelihood)):
            cost.target_passes += 1
            cost.target_tokens += sum(len(r.tokens) for r in read)
        yield from done
        done.clear()
