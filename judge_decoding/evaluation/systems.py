"""What is compared: rules at their settings, and the draft alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from judge_decoding.decoding.contracts import (
    RULES,
    Acceptance,
    Drafter,
    ProposeRequest,
    Verdict,
    VerifyRequest,
)
from judge_decoding.decoding.judge import Judge
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.errors import UserError
from judge_decoding.pipeline import Pipeline

DRAFT = "draft"
NAMES = (*(rule for rule in RULES if rule not in ("rejection", "synthetic")), DRAFT)
"""The draft, and all rules but `rejection` (it samples) and `synthetic` (it forces acceptance)."""


@dataclass(frozen=True)
class EvaluatedSystem:
    """One way to answer.

    rule     a rule's name, or `draft`
    setting  the value of the rule's own parameter, where it has one (`SETTINGS`)
    """

    rule: str
    setting: float | None
    acceptance: Acceptance

    @property
    def name(self) -> str:
        return self.rule if self.setting is None else f"{self.rule} {self.setting:g}"

    @property
    def threshold(self) -> float | None:
        """The judge's threshold; None under other rules."""
        return self.setting if self.rule == "judge" else None


def _threshold(value: float) -> dict[str, Any]:
    return {"threshold": _within("judge", value, 0.0, 1.0)}


def _top_k(value: float) -> dict[str, Any]:
    if value != int(value):
        raise UserError(f"settings: topk takes a whole number, not {value:g}")
    return {"top_k": int(_within("topk", value, 1, 1000))}


def _epsilon(value: float) -> dict[str, Any]:
    epsilon = _within("typical", value, 1e-6, 1.0)
    # The paper's ratio: delta 0.3 with epsilon 0.09.
    return {"typical_epsilon": epsilon, "typical_delta": min(1.0, epsilon / 0.3)}


def _tau(value: float) -> dict[str, Any]:
    return {"kl_tau": _within("kl", value, 1e-6, 1e6)}


def _entropy(value: float) -> dict[str, Any]:
    return {"fly_entropy": _within("fly", value, 0.0, 1.1)}  # over three tokens: at most log 3


def _within(rule: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise UserError(f"settings: {rule} takes a value in [{low:g}, {high:g}], not {value:g}")
    return value


SETTINGS: Mapping[str, Callable[[float], dict[str, Any]]] = {
    "judge": _threshold,
    "topk": _top_k,
    "typical": _epsilon,
    "kl": _tau,
    "fly": _entropy,
}
"""Rule -> what `RULE:VALUE` sets: the judge's threshold; top_k; epsilon, and delta with it; tau;
the least entropy."""

_DEFAULT: Mapping[str, str] = {
    "topk": "top_k",
    "typical": "typical_epsilon",
    "kl": "kl_tau",
    "fly": "fly_entropy",
}
"""Rule -> the field of an `Acceptance` that is its setting."""


def systems_of(
    pipeline: Pipeline,
    rules: Sequence[str],
    *,
    thresholds: Sequence[float] = (),
    settings: Sequence[tuple[str, float]] = (),
) -> list[EvaluatedSystem]:
    """The systems that were asked for, always with `none` first: the others are compared with it.

    A rule runs at each of its given settings (`thresholds` are the judge's), else as deployed.
    UserError for a name or a value that does not exist, or that the deployment cannot run.
    """
    default = pipeline.deployment.default_acceptance()
    values: dict[str, list[float]] = {"judge": list(thresholds)} if thresholds else {}
    for rule, value in settings:
        values.setdefault(rule, []).append(value)
    found: list[EvaluatedSystem] = []
    for rule in dict.fromkeys(["none", *rules, *values]):
        if rule not in NAMES:
            raise UserError(f"rules: unknown {rule!r}; known are {', '.join(NAMES)}")
        if rule == DRAFT:
            if pipeline.engines.drafter is None:
                raise UserError("rules: draft needs a draft, and the deployment has none")
            found.append(EvaluatedSystem(rule, None, replace(default, rule="none")))
            continue
        acceptance = pipeline.deployment.default_acceptance(rule=rule)
        if rule not in SETTINGS and rule in values:
            raise UserError(f"settings: {rule} takes no value")
        for value in sorted(set(values.get(rule, ()))):
            changed = replace(acceptance, **SETTINGS[rule](value))
            found.append(EvaluatedSystem(rule, value, changed))
        if rule not in values:
            found.append(EvaluatedSystem(rule, _deployed(pipeline, acceptance), acceptance))
    return found


def _deployed(pipeline: Pipeline, acceptance: Acceptance) -> float | None:
    """A rule's setting as deployed."""
    if acceptance.rule == "judge":
        if acceptance.threshold is not None:
            return acceptance.threshold
        judge = pipeline.engines.target.judge
        return judge.metadata.threshold if judge is not None else None
    field = _DEFAULT.get(acceptance.rule)
    return None if field is None else float(getattr(acceptance, field))


def parse_settings(text: str) -> list[tuple[str, float]]:
    """`typical:0.3,topk:2` -> its pairs."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        rule, _, value = part.partition(":")
        if rule not in SETTINGS:
            raise UserError(f"settings: {part!r}; write RULE:VALUE, RULE of {', '.join(SETTINGS)}")
        found.append((rule, parse_number(value, f"settings: {part!r}")))
    return found


def parse_numbers(text: str, what: str) -> list[float]:
    """`0.5,0.6` -> its numbers."""
    return [parse_number(part, what) for part in map(str.strip, text.split(",")) if part]


def parse_number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{what}: {text!r} is not a number") from None


class DraftAlone:
    """The deployment's drafter in a target's place: rule `none` then writes what the draft would.

    It is the draft as deployed, with its short-list and shared tensors, wherever it runs. A round
    is one greedy token; the sampling and the rule of a request are ignored.
    """

    def __init__(self, drafter: Drafter, end_ids: tuple[int, ...]) -> None:
        self._drafter = drafter
        self.end_ids = end_ids
        self.judge: Judge | None = None
        self.vocab_size = drafter.vocab_size
        self.max_context = drafter.max_context
        self.max_sequences = drafter.max_sequences
        self.clock = drafter.clock

    def prefill(self, sequence: int, keep: int, tokens: Sequence[int]) -> None:
        self._drafter.prefill(sequence, keep, tokens)

    def release(self, sequence: int) -> None:
        self._drafter.release(sequence)

    def check_integrity(self, expected: Mapping[int, Sequence[int]], *, deep: bool = False) -> None:
        self._drafter.check_integrity(expected, deep=deep)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        proposals = self._drafter.propose(
            [ProposeRequest(r.sequence, r.keep, r.tokens, draft_len=1) for r in requests]
        )
        return [Verdict(0, [], [], proposal.tokens[0]) for proposal in proposals]


def decoder_of(pipeline: Pipeline, system: EvaluatedSystem) -> SpeculativeDecoder:
    """The loop that runs a system."""
    if system.rule != DRAFT:
        return pipeline.decoder
    engines = pipeline.engines
    assert engines.drafter is not None
    return SpeculativeDecoder(
        Engines(None, DraftAlone(engines.drafter, engines.target.end_ids)),
        tokenizer=pipeline.tokenizer,
        prefill_chunk=pipeline.deployment.limits.prefill_chunk,
    )
