"""The speculative loop: rounds over sequences that join and leave between them.

    1. propose    the drafter continues every sequence by up to k tokens
    2. verify     the target reads the last token and d1..dk in one pass
    3. accept     the rule decides where the logits are; n is the length of the all-true prefix
    4. emit       d1..dn, then the target's own token; stop rules are applied token by token
    5. roll back  both caches keep exactly the emitted prefix

The loop owns the sequences, the engines own their caches (`decoding.contracts`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

from judge_decoding.decoding.contracts import (
    NO_DRAFT,
    PROBABILITY_RULES,
    Constraints,
    Proposal,
    ProposeRequest,
    Provenance,
    TokenLogprobs,
    Verdict,
    VerifyRequest,
    scheduled,
)
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import (
    AcceptanceRecord,
    FinishReason,
    Request,
    Sequence,
    Token,
)
from judge_decoding.errors import UserError
from judge_decoding.text import TextStream, Tokenizer

COLDEST = 1e-3
"""The lowest temperature allowed besides 0 (greedy)."""


def context_error(tokens: int, limit: int) -> UserError:
    """The refusal of a prompt of so many tokens, or more than the limit of so many."""
    return UserError(
        f"prompt: {tokens} tokens do not fit the context of {limit} with an answer; "
        "shorten it or raise limits.max_context"
    )


class Update(NamedTuple):
    """What a round emitted for one sequence.

    drafted  number of proposed tokens
    scores   the judge's score of each drafted token; empty if no judge ran
    """

    sequence: int
    tokens: list[Token]
    text: str
    finish_reason: FinishReason | None
    drafted: int = 0
    scores: Seq[float] = ()


@dataclass(frozen=True)
class Result:
    """A finished request. The lists have one entry per emitted token, an end token included.

    logprobs  [] if the request did not ask for them
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    provenance: list[Provenance]
    judge_scores: list[float | None]
    record: AcceptanceRecord
    logprobs: Seq[TokenLogprobs] = ()


@dataclass
class LoopClock:
    """Cumulative wall time in seconds; `host` is the time outside the models and the judge."""

    rounds: int = 0
    total: float = 0.0
    propose: float = 0.0
    verify: float = 0.0
    forward: float = 0.0
    judge: float = 0.0

    @property
    def host(self) -> float:
        return self.total - self.forward - self.judge


class SpeculativeDecoder:
    """Runs rounds. Not thread-safe: one thread must call `add`, `step` and `cancel`."""

    def __init__(
        self,
        engines: Engines,
        *,
        tokenizer: Tokenizer | None = None,
        max_draft_len: int = 8,
        draft_len_schedule: Mapping[int, int] | None = None,
        prefill_chunk: int = 256,
    ) -> None:
        """tokenizer           needed for text and stop strings; None gives ids only
        draft_len_schedule  {active sequences up to: draft length}; above the last key it is 0
        prefill_chunk       prompt tokens read per round, over all joining sequences
        """
        self.engines = engines
        self.drafter, self.target = engines.drafter, engines.target
        self.tokenizer = tokenizer
        self.max_draft_len = max_draft_len
        self.draft_len_schedule = dict(draft_len_schedule or {})
        self.prefill_chunk = prefill_chunk
        self.clock = LoopClock()
        self._active: dict[int, Sequence] = {}
        self._finished: dict[int, Sequence] = {}
        self._joining: deque[int] = deque()  # their prompts are not read completely
        self._next_id = 0

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_cached(self) -> int:
        """Positions of the target's cache that hold a token."""
        return sum(sequence.target_kept for sequence in self._active.values())

    def check(self, request: Request) -> None:
        """Raise UserError if a request cannot be served. Any thread may call it."""
        prompt, limit = request.prompt_ids, self.target.max_context
        if not prompt:
            raise UserError("prompt: it is empty; give at least one token")
        if len(prompt) >= limit:
            raise context_error(len(prompt), limit)
        # `min` and `max` first: `add` checks again on the thread that runs the rounds.
        if min(prompt) < 0 or max(prompt) >= self.target.vocab_size:
            bad = next(i for i in prompt if not 0 <= i < self.target.vocab_size)
            raise UserError(
                f"prompt: token id {bad} is outside the vocabulary [0, {self.target.vocab_size})"
            )
        if request.max_tokens < 1:
            raise UserError(f"max_tokens: {request.max_tokens} must be at least 1")
        if 0.0 < request.sampling.temperature < COLDEST:  # logits / temperature is infinite
            raise UserError(
                f"temperature: {request.sampling.temperature:g} is too small; "
                f"give 0 (greedy) or at least {COLDEST:g}"
            )
        if request.acceptance.rule != "none" and self.drafter is None:
            raise UserError(f"rule {request.acceptance.rule}: the deployment has no draft model")
        if request.acceptance.rule == "strict" and not request.sampling.greedy:
            raise UserError("rule strict: it is greedy; use rejection with a temperature")
        if request.acceptance.rule == "judge" and self.target.judge is None:
            raise UserError("rule judge: the deployment names no judge file")
        if request.stop and self.tokenizer is None:
            raise UserError("stop: stop strings need a tokenizer")
        self._check_ids(request)
        end_ids = frozenset(self.target.end_ids)
        self.engines.check(request.acceptance, request.sampling_with(end_ids))

    def _check_ids(self, request: Request) -> None:
        constraints = request.sampling.constraints or Constraints()
        given = {
            "end_id": [] if request.end_id is None else [request.end_id],
            "stop_token_ids": request.stop_ids,
            "logit_bias": [token for token, _ in constraints.bias],
            "bad_words": [token for word in constraints.bad_words for token in word],
        }
        size = self.target.vocab_size
        for name, ids in given.items():
            bad = next((i for i in ids if not 0 <= i < size), None)
            if bad is not None:
                raise UserError(f"{name}: token id {bad} is outside the vocabulary [0, {size})")

    def add(self, request: Request) -> int:
        """Start a request and return its sequence number. UserError if it cannot be served."""
        self.check(request)
        if len(self._active) >= self.target.max_sequences:
            raise UserError(
                f"limits: {self.target.max_sequences} sequences are active already; wait for one "
                "to finish or raise limits.max_sequences"
            )
        number, self._next_id = self._next_id, self._next_id + 1
        end_ids = frozenset(self.target.end_ids)
        self._active[number] = Sequence(
            request=request,
            stream=self._text_stream(request),
            end_ids=end_ids,
            max_context=self.target.max_context,
            text=list(request.prompt_ids),
            sampling=request.sampling_with(end_ids),
            acceptance=request.acceptance_with(end_ids),
        )
        self._joining.append(number)
        return number

    def _text_stream(self, request: Request) -> TextStream | None:
        if self.tokenizer is None or not (request.text or request.stop):
            return None
        return TextStream(self.tokenizer, request.stop, request.prompt_ids, request.min_tokens)

    def step(self) -> list[Update]:
        """Run one round and return what each sequence emitted.

        A sequence emits nothing in a round that only reads a part of its prompt.
        """
        started = time.perf_counter()
        before = self._engine_seconds()
        ready = self._prefill()
        proposes = self._propose_requests(ready)
        prefilled = time.perf_counter()
        # 1. Propose, 2. verify, 3. accept.
        done = self.engines.run_round(proposes, self._verify_requests(ready))
        ran = time.perf_counter()
        proposals = dict.fromkeys(ready, NO_DRAFT)
        proposals.update(zip((r.sequence for r in proposes), done.proposals, strict=True))
        # 4. Emit, 5. roll back.
        updates = [
            self._emit(number, proposals[number], verdict)
            for number, verdict in zip(ready, done.verdicts, strict=True)
        ]
        after = self._engine_seconds()
        clock = self.clock
        clock.rounds += 1
        clock.propose += prefilled - started + done.propose_s
        clock.verify += ran - prefilled - done.propose_s
        clock.forward += after[0] - before[0]
        clock.judge += after[1] - before[1]
        clock.total += time.perf_counter() - started
        return updates

    def _propose_requests(self, ready: Seq[int]) -> list[ProposeRequest]:
        requests = []
        for number in ready:
            sequence = self._active[number]
            length, sampling = self._draft_len(sequence), sequence.sampling
            rule = sequence.request.acceptance.rule
            if length > 0:
                requests.append(
                    ProposeRequest(
                        sequence=number,
                        keep=sequence.draft_kept,
                        tokens=sequence.text[sequence.draft_kept :],
                        draft_len=length,
                        # `kl` compares the models' own distributions (acceptance.kl).
                        sampling=sampling.unfiltered if rule == "kl" else sampling,
                        with_probs=not sampling.greedy or rule in PROBABILITY_RULES,
                    )
                )
        return requests

    def _verify_requests(self, ready: Seq[int]) -> list[VerifyRequest]:
        """The requests without their drafts, which `Engines.run_round` adds."""
        requests = []
        for number in ready:
            sequence = self._active[number]
            requests.append(
                VerifyRequest(
                    sequence=number,
                    keep=sequence.target_kept,
                    tokens=sequence.text[sequence.target_kept :],
                    sampling=sequence.sampling,
                    acceptance=sequence.acceptance,
                )
            )
        return requests

    def _emit(self, number: int, proposal: Proposal, verdict: Verdict) -> Update:
        """Steps 4 and 5 of a round, for one sequence."""
        sequence = self._active[number]
        length, drafted, scores = len(sequence.text), proposal.tokens, verdict.scores
        emitted: list[Token] = []
        text = ""
        # 4. Emit the accepted tokens, then the target's own, until a stop rule fires.
        for i in range(verdict.accepted + 1):
            score = scores[i] if i < verdict.accepted and scores else None
            logprobs = verdict.logprobs[i] if verdict.logprobs else None
            if i == verdict.accepted:
                token = Token(verdict.next_token, "target", None, logprobs)
            elif verdict.overridden[i]:
                token = Token(drafted[i], "judged", score, logprobs)
            else:
                token = Token(drafted[i], "aligned", score, logprobs)
            text += sequence.emit(token)
            emitted.append(token)
            if sequence.finish_reason:
                break
        # 5. Roll back: set how many positions the next requests keep in each cache.
        if drafted:
            sequence.record.add(len(drafted), min(len(emitted), verdict.accepted))
            # The draft has not read the last token that it proposed.
            sequence.draft_kept = length + min(verdict.accepted, len(drafted) - 1)
        sequence.target_kept = length + verdict.accepted
        if sequence.finish_reason:
            self._retire(number)
        return Update(number, emitted, text, sequence.finish_reason, len(drafted), scores)

    def _draft_len(self, sequence: Sequence) -> int:
        """k for this round; `max_tokens` and the context must also hold the target's own token."""
        if sequence.request.acceptance.rule == "none":
            return 0
        length = sequence.request.max_draft_len
        if length is None:
            length = self.max_draft_len
        length = scheduled(self.draft_len_schedule, len(self._active), length)
        return min(length, sequence.remaining - 1)

    def _prefill(self) -> list[int]:
        """Read on in the joining prompts; return the sequences that are ready for a round.

        All prompts together get `prefill_chunk` tokens per round, so that they delay the other
        sequences by one chunk, however many and long they are. A prompt that is cut short goes to
        the end of the queue, so that a short prompt does not wait for all of a long one before it.
        """
        budget = self.prefill_chunk
        for number in list(self._joining):
            if not budget:
                break
            self._joining.popleft()
            sequence = self._active[number]
            rest = len(sequence.text) - sequence.target_kept
            if rest > budget:
                self._read(number, sequence, budget)
                self._joining.append(number)
            budget -= min(rest, budget)
        joining = set(self._joining)
        return [number for number in self._active if number not in joining]

    def _read(self, number: int, sequence: Sequence, count: int) -> None:
        """Both models read the next `count` tokens of a prompt."""
        kept = sequence.target_kept
        piece = sequence.text[kept : kept + count]
        self.target.prefill(number, kept, piece)
        sequence.target_kept += len(piece)
        if self._draft_len(sequence) > 0 and sequence.draft_kept == kept:
            assert self.drafter is not None
            self.drafter.prefill(number, kept, piece)
            sequence.draft_kept += len(piece)

    def cancel(self, number: int, reason: FinishReason = "cancelled") -> None:
        """End a sequence now, with `reason` in its result. Unknown numbers are ignored."""
        if number in self._active:
            self._active[number].finish_reason = reason
            self._retire(number)

    def _retire(self, number: int) -> None:
        self._finished[number] = self._active.pop(number)
        if number in self._joining:
            self._joining.remove(number)
        self.target.release(number)
        if self.drafter is not None:
            self.drafter.release(number)

    def result(self, number: int) -> Result:
        """Return the result of a finished sequence and forget it."""
        sequence = self._finished.pop(number)
        return Result(
            text=sequence.output,
            token_ids=[t.id for t in sequence.tokens],
            finish_reason=sequence.finish_reason,
            provenance=[t.provenance for t in sequence.tokens],
            judge_scores=[t.score for t in sequence.tokens],
            record=sequence.record,
            logprobs=[t.logprobs for t in sequence.tokens if t.logprobs is not None],
        )

    def generate(self, requests: Seq[Request]) -> list[Result]:
        """Run all requests, as many at a time as the engines hold; the results in order."""
        waiting = list(enumerate(requests))[::-1]
        place: dict[int, int] = {}
        results: dict[int, Result] = {}
        try:
            while waiting or place:
                while waiting and len(self._active) < self.target.max_sequences:
                    index, request = waiting.pop()
                    place[self.add(request)] = index
                for update in self.step():
                    if update.finish_reason and update.sequence in place:
                        results[place.pop(update.sequence)] = self.result(update.sequence)
        finally:
            for number in place:
                self.cancel(number)
                self.result(number)
        return [results[i] for i in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Update]:
        """Yield one request's updates as they come; closing the iterator cancels the request.

        `result(update.sequence)` then returns the result.
        """
        number = self.add(request)
        try:
            while True:
                for update in self.step():
                    if update.sequence == number:
                        yield update
                        if update.finish_reason:
                            return
        finally:
            self.cancel(number)

    def check_integrity(self, *, deep: bool = False) -> None:
        """Raise AssertionError unless both caches hold exactly what the loop believes they hold."""
        self.target.check_integrity(
            {n: s.text[: s.target_kept] for n, s in self._active.items() if s.target_kept},
            deep=deep,
        )
        if self.drafter is not None:
            self.drafter.check_integrity(
                {n: s.text[: s.draft_kept] for n, s in self._active.items() if s.draft_kept},
                deep=deep,
            )

    def _engine_seconds(self) -> tuple[float, float]:
        engines = [self.target] if self.drafter is None else [self.target, self.drafter]
        clocks = [engine.clock for engine in engines]
        return sum(c.forward for c in clocks), sum(c.judge for c in clocks)
