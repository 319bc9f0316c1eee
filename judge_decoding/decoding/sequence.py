"""One request's life in the loop: its text, where its tokens come from, when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from judge_decoding.decoding.contracts import (
    Acceptance,
    Constraints,
    Provenance,
    Sampling,
    TokenLogprobs,
)
from judge_decoding.text import TextStream

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
"""Why a request ended.

stop                 an end token or a stop string
length               `max_tokens` was reached, or the context is full
cancelled, deadline  the caller of the loop ended the request early
"""


@dataclass(frozen=True)
class Request:
    """What to continue and how. `max_draft_len` None means the loop's."""

    prompt_ids: list[int]
    max_tokens: int
    acceptance: Acceptance = field(default_factory=Acceptance)
    sampling: Sampling = field(default_factory=Sampling)
    max_draft_len: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    """Continue after an end token, for benchmarks that need a fixed number of tokens."""
    min_tokens: int = 0
    """Nothing that would end the answer is chosen before this many tokens."""
    end_id: int | None = None
    """The only end token, in place of the target's own."""
    stop_ids: tuple[int, ...] = ()
    """Further tokens that end the answer, under `ignore_end` too."""
    text: bool = True
    """False: the loop returns ids only, and the caller turns them into text."""

    def ends(self, token: int, position: int, end_ids: frozenset[int]) -> bool:
        """Whether the token at `position` (from 1) is an end token that ends the answer."""
        return position > self.min_tokens and token in self.ending(end_ids)

    def ending(self, end_ids: frozenset[int]) -> frozenset[int]:
        """The tokens that end the answer; `end_ids` are the target's own."""
        if not self.stop_ids and self.end_id is None and not self.ignore_end:
            return end_ids
        own = end_ids if self.end_id is None else frozenset([self.end_id])
        return frozenset(self.stop_ids) | (frozenset() if self.ignore_end else own)

    def acceptance_with(self, end_ids: frozenset[int]) -> Acceptance:
        """The acceptance for the engines: its rule protects the request's own end tokens too."""
        more = self.ending(end_ids) - end_ids
        if not more:
            return self.acceptance
        return replace(self.acceptance, more_end_ids=tuple(sorted(more)))

    def sampling_with(self, end_ids: frozenset[int]) -> Sampling:
        """The sampling for the engines: its constraints know the prompt's length and the tokens
        that end the answer; None if they have no effect."""
        whole = replace(
            self.sampling.constraints or Constraints(),
            prompt_len=len(self.prompt_ids),
            min_tokens=self.min_tokens,
            end_ids=tuple(sorted(self.ending(end_ids))) if self.min_tokens else (),
        )
        return replace(self.sampling, constraints=whole if whole.names else None)


class Token(NamedTuple):
    """An emitted token.

    score     the judge's score, if the token was drafted and judged
    logprobs  the target's log-probabilities, if the request asked for them
    """

    id: int
    provenance: Provenance
    score: float | None
    logprobs: TokenLogprobs | None = None


@dataclass
class AcceptanceRecord:
    """Counts over the rounds that had a draft, with the names of vLLM and AIPerf.

    Tokens that were accepted after the end of an answer are neither emitted nor counted.
    """

    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_judged_tokens: int = 0
    num_target_tokens: int = 0
    acceptance_histogram: list[int] = field(default_factory=list)
    """Entry n is the number of rounds that accepted n drafted tokens."""

    def add(self, drafted: int, accepted: int) -> None:
        self.num_spec_steps += 1
        self.num_draft_tokens += drafted
        self.num_accepted_draft_tokens += accepted
        missing = drafted + 1 - len(self.acceptance_histogram)
        self.acceptance_histogram.extend([0] * missing)
        self.acceptance_histogram[accepted] += 1

    def merge(self, other: AcceptanceRecord) -> None:
        self.num_spec_steps += other.num_spec_steps
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_draft_tokens += other.num_accepted_draft_tokens
        self.num_judged_tokens += other.num_judged_tokens
        self.num_target_tokens += other.num_target_tokens
        missing = len(other.acceptance_histogram) - len(self.acceptance_histogram)
        self.acceptance_histogram.extend([0] * missing)
        for n, count in enumerate(other.acceptance_histogram):
            self.acceptance_histogram[n] += count

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted / rounds: it counts the correction or bonus token. 1 without rounds."""
        if not self.num_spec_steps:
            return 1.0
        return 1 + self.num_accepted_draft_tokens / self.num_spec_steps

    @property
    def draft_acceptance_rate(self) -> float:
        """accepted / drafted; 0 without drafts."""
        if not self.num_draft_tokens:
            return 0.0
        return self.num_accepted_draft_tokens / self.num_draft_tokens

    def to_dict(self) -> dict[str, Any]:
        return {
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_draft_tokens": self.num_accepted_draft_tokens,
            "num_judged_tokens": self.num_judged_tokens,
            "num_target_tokens": self.num_target_tokens,
            "num_spec_tokens": max(len(self.acceptance_histogram) - 1, 0),
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "acceptance_histogram": list(self.acceptance_histogram),
        }


@dataclass
class Sequence:
    """The loop's state of one request.

    text         prompt and emitted ids
    sampling     the request's, for the engines (`Request.sampling_with`)
    acceptance   the same (`Request.acceptance_with`)
    target_kept  cached positions of the target that hold the start of `text`, < len(text)
    draft_kept   the same for the draft's cache
    """

    request: Request
    stream: TextStream | None
    end_ids: frozenset[int]
    max_context: int
    text: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    acceptance: Acceptance = field(default_factory=Acceptance)
    target_kept: int = 0
    draft_kept: int = 0
    tokens: list[Token] = field(default_factory=list)
    record: AcceptanceRecord = field(default_factory=AcceptanceRecord)
    finish_reason: FinishReason | None = None
    output: str = ""

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return min(self.request.max_tokens - len(self.tokens), self.max_context - len(self.text))

    def emit(self, token: Token) -> str:
        """Add a token and apply the stop rules, which set `finish_reason`; return the new text."""
        self.tokens.append(token)
        self.text.append(token.id)
        if token.provenance == "target":
            self.record.num_target_tokens += 1
        elif token.provenance == "judged":
            self.record.num_judged_tokens += 1
        ended = self.request.ends(token.id, len(self.tokens), self.end_ids)
        new = ""
        if self.stream is not None and not ended:
            new = self.stream.push(token.id)
            ended = self.stream.stopped
        if ended:
            self.finish_reason = "stop"
        elif self.remaining <= 0:
            self.finish_reason = "length"
        if self.finish_reason and self.stream is not None:
            new += self.stream.flush()
            if self.stream.stopped:  # the flushed text held a stop string
                self.finish_reason = "stop"
        self.output += new
        return new
