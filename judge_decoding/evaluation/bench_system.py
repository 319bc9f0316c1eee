"""What a benchmark measures: systems that answer prompts, and how one answer went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from judge_decoding.decoding.contracts import Acceptance, Sampling
from judge_decoding.decoding.loop import LoopClock, Result
from judge_decoding.decoding.sequence import Request
from judge_decoding.evaluation.read_bytes import model_bytes

if TYPE_CHECKING:
    from judge_decoding.pipeline import Pipeline

PARTS = ("propose", "verify", "host", "judge")
"""The parts of a round whose time the loop's clock tells apart."""


class NotMeasured(Exception):
    """A peer that is not installed or cannot run the deployment's models; says why in one line."""


class ReadBytes(NamedTuple):
    """Bytes of weights that one pass of the target reads, and one pass of the draft (0: none)."""

    target: int
    draft: int = 0


@dataclass(frozen=True)
class BenchAnswer:
    """One prompt answered by one system.

    seconds  wall time, prefill included
    rounds   (seconds, emitted tokens) of each round; the first holds the prefill
    cut      whether it ended at the token limit and not by itself
    drafted  passes of the draft in all rounds; None if unknown
    each     whether every round was timed. Otherwise the rounds after the first have their mean
    text     the answer
    clock    seconds of the rounds after the first, by part; None for a peer
    result   the decoder's result; None for a peer
    """

    seconds: float
    rounds: list[tuple[float, int]]
    cut: bool
    drafted: int | None = 0
    each: bool = True
    text: str = ""
    clock: dict[str, float] | None = None
    result: Result | None = None


class BenchSystem(Protocol):
    """Something that answers prompts, greedily and one at a time.

    draft_len  the most tokens it drafts in a round; None without a draft
    reads      what its passes read; None if unknown
    """

    name: str
    draft_len: int | None
    reads: ReadBytes | None

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer: ...


class RuleSystem:
    """This package's decoder under one acceptance rule.

    draft_len  replaces the deployment's draft length and its schedule
    """

    def __init__(
        self,
        pipeline: Pipeline,
        acceptance: Acceptance,
        *,
        name: str = "",
        draft_len: int | None = None,
    ) -> None:
        self.name: str = name or acceptance.rule
        self._decoder, self._decode = pipeline.decoder, pipeline.tokenizer.decode
        self._end_ids = frozenset(pipeline.engines.target.end_ids)
        self._acceptance = acceptance
        self._own_len = draft_len
        engines = pipeline.engines
        target, draft = model_bytes(engines.target), model_bytes(engines.drafter)
        self.reads = None if target is None or draft is None else ReadBytes(target, draft)
        self.draft_len: int | None = None
        if acceptance.rule != "none":
            self.draft_len = pipeline.decoder.max_draft_len if draft_len is None else draft_len

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer:
        decoder, rounds = self._decoder, list[tuple[float, int]]()
        request = Request(
            list(prompt_ids), max_tokens, self._acceptance, Sampling(), max_draft_len=self._own_len
        )
        schedule = decoder.draft_len_schedule
        if self._own_len is not None:
            decoder.draft_len_schedule = {}
        try:
            began = last = time.perf_counter()
            for update in decoder.stream(request):
                now = time.perf_counter()
                rounds.append((now - last, len(update.tokens)))
                if len(rounds) == 1:
                    decoder.clock = LoopClock()
                last = time.perf_counter()
        finally:
            decoder.draft_len_schedule = schedule
        clock = {part: float(getattr(decoder.clock, part)) for part in PARTS}
        result = decoder.result(update.sequence)
        ended = bool(result.token_ids) and result.token_ids[-1] in self._end_ids
        tokens = result.token_ids[:-1] if ended else result.token_ids
        return BenchAnswer(
            last - began,
            rounds,
            cut=result.finish_reason == "length",
            drafted=result.record.num_draft_tokens,
            text=self._decode(tokens),  # as a peer's: with half a character at a cut
            clock=clock,
            result=result,
        )
