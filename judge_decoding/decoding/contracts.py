"""Contracts between the loop and the engines that run the two models.

The loop owns the sequences (what was emitted, when to stop); an engine owns its caches. A request
says *how many cached positions to keep* and *which tokens come after them*. So a roll-back after
any verdict is one integer, and a message between ranks stays small.

Every call takes a batch of sequences. A sequence joins with the first request that names it and
leaves with `release`. Sequences may differ in length, draft length, acceptance rule and sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:  # a process that only handles text never loads PyTorch
    import torch

    from judge_decoding.decoding.judge import Judge

Provenance = Literal["aligned", "judged", "target"]
"""Where an emitted token comes from.

aligned  a drafted token that the standard rule accepted
judged   a drafted token that only the override of a lossy rule accepted (judge or training-free)
target   the target's own token (correction, bonus, or no draft)
"""

RULES = ("none", "strict", "rejection", "judge", "topk", "typical", "kl", "fly", "synthetic")
RuleName = Literal[
    "none", "strict", "rejection", "judge", "topk", "typical", "kl", "fly", "synthetic"
]
MAX_LOGPROBS = 20
"""Alternatives per token that a request may ask for, as in vLLM and OpenAI's API."""
PROBABILITY_RULES = frozenset({"rejection", "kl"})
"""Rules that need the draft's distributions as well as its tokens."""


@dataclass(frozen=True)
class Constraints:
    """What a request changes in the logits of both models (`decoding.constraints`).

    prompt_len  tokens of the sequence's text that are its prompt
    bias        (token id, value to add) of each biased token
    bad_words   token ids of each excluded word
    min_tokens  `end_ids` are excluded before the output has so many tokens
    """

    prompt_len: int = 0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the request's options that have an effect."""
        given = {
            "logit_bias": self.bias,
            "repetition_penalty": self.repetition != 1.0,
            "presence_penalty": self.presence,
            "frequency_penalty": self.frequency,
            "bad_words": self.bad_words,
            "min_tokens": self.min_tokens and self.end_ids,
        }
        return [name for name, has_effect in given.items() if has_effect]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy: filters and seed then have no effect.

    `top_k` 0, `top_p` 1 and `min_p` 0 switch the filters off. `constraints` None leaves the logits
    as the models give them, at no cost. `seed` starts the sequence's own generators, so
    results do not depend on which other sequences share a batch. This needs a fixed draft length:
    with a `draft_len_schedule`, k follows the number of active sequences, and drafts of another
    length use the random numbers differently.

    `logprobs` is the number of alternatives to report with each token's log-probability
    (`TokenLogprobs`); None reports nothing, at no cost.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    constraints: Constraints | None = None
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def unfiltered(self) -> Sampling:
        """A copy without `top_k`, `top_p` and `min_p`."""
        return replace(self, top_k=0, top_p=1.0, min_p=0.0)


@dataclass(frozen=True)
class Acceptance:
    """The rule that verifies a sequence, and the parameters of all rules.

    `threshold` is the judge's delta in [0, 1]; None means the one stored with the judge. The
    defaults of the training-free rules are those of their papers (see `decoding.acceptance`).
    `protect_end_ids` protects the target's end tokens and `more_end_ids`, which are the request's.
    """

    rule: RuleName = "strict"
    threshold: float | None = None
    top_k: int = 3
    typical_epsilon: float = 0.09
    typical_delta: float = 0.3
    kl_tau: float = 0.3
    kl_confident: float = 0.9
    fly_entropy: float = 0.3
    fly_window: int = 6
    synthetic_length: float = 4.0
    protect_end_ids: bool = True
    more_end_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProposeRequest:
    """Ask for `draft_len` tokens after the sequence's text.

    keep    positions of the draft's cache to keep (0 for a new sequence)
    tokens  the text after those positions, at least one token
    """

    sequence: int
    keep: int
    tokens: Sequence[int]
    draft_len: int
    sampling: Sampling = field(default_factory=Sampling)
    with_probs: bool = False


class Proposal(NamedTuple):
    """The draft's continuation: k <= draft_len tokens.

    probs      float32 [k, S], the distributions that the tokens were drawn from (temperature 1 if
               drafting is greedy); None if not requested
    vocab_ids  int64 [S], the target's id of each column of `probs`; None if S is the vocabulary
    """

    tokens: list[int]
    probs: torch.Tensor | None = None
    vocab_ids: torch.Tensor | None = None


NO_DRAFT = Proposal([])


def scheduled(schedule: Mapping[int, int], active: int, longest: int) -> int:
    """The draft length for `active` sequences, at most `longest` tokens.

    schedule  {active sequences up to: draft length}. The smallest key that is at least `active`
              applies; above all keys the length is 0. An empty schedule gives `longest`
    """
    if not schedule:
        return longest
    limits = [limit for limit in schedule if active <= limit]
    return min(longest, schedule[min(limits)]) if limits else 0


@dataclass(frozen=True)
class VerifyRequest:
    """Read `tokens` + `draft.tokens` in one pass and decide which drafted tokens to accept.

    keep    positions of the target's cache to keep (0 for a new sequence)
    tokens  the emitted text after those positions, at least one token
    """

    sequence: int
    keep: int
    tokens: Sequence[int]
    draft: Proposal = NO_DRAFT
    sampling: Sampling = field(default_factory=Sampling)
    acceptance: Acceptance = field(default_factory=Acceptance)


class TokenLogprobs(NamedTuple):
    """The target's own view of one emitted token, under every acceptance rule: the log-softmax of
    its raw logits, before temperature, filters and constraints.

    chosen  the log-probability of the token itself
    top     (token id, log-probability) of the likeliest tokens, in falling order
    """

    chosen: float
    top: list[tuple[int, float]]


class Verdict(NamedTuple):
    """The target's answer for one sequence; k is the number of drafted tokens.

    accepted   n, the length of the draft's accepted prefix, 0 <= n <= k
    overridden [n] bool: only the rule's override accepted token i
    scores     [k] the judge's sigmoid score of each drafted token; [] if no judge ran
    next_token the target's own token after the accepted prefix (correction or bonus)
    logprobs   [n + 1], of the accepted tokens and `next_token`; [] if not asked for
    """

    accepted: int
    overridden: list[bool]
    scores: list[float]
    next_token: int
    logprobs: Sequence[TokenLogprobs] = ()


@dataclass
class EngineClock:
    """Cumulative seconds that an engine spent in its model's forward pass and in the judge."""

    forward: float = 0.0
    judge: float = 0.0


class Engine(Protocol):
    """What drafter and target have in common."""

    vocab_size: int
    max_context: int
    """Positions that a sequence may hold, prompt and output together."""
    clock: EngineClock
    max_sequences: int
    """Sequences that the caches can hold at the same time."""

    def prefill(self, sequence: int, keep: int, tokens: Sequence[int]) -> None:
        """Append `tokens` after the first `keep` cached positions; return nothing."""

    def release(self, sequence: int) -> None:
        """Forget a sequence. Unknown numbers are ignored, because a cancel may race a finish."""

    def check_integrity(self, expected: Mapping[int, Sequence[int]], *, deep: bool = False) -> None:
        """Raise AssertionError unless the caches hold prefixes of `expected` and nothing else.

        expected  all tokens of each sequence, prompt and output. A cache may run past the output
                  (rejected drafts, which the next `keep` drops) but must agree with it up to there
        deep      also recompute the cached keys and values from the tokens, and compare
        """


class Drafter(Engine, Protocol):
    """The small model."""

    def propose(self, requests: Sequence[ProposeRequest]) -> list[Proposal]:
        """One proposal per request, in order."""


class Target(Engine, Protocol):
    """The large model, the judge and the acceptance rule: acceptance runs where the logits are."""

    end_ids: tuple[int, ...]
    judge: Judge | None

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """One verdict per request, in order."""
