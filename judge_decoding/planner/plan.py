"""A planned deployment: whether it fits, how long a round takes, which draft length is best."""

from __future__ import annotations

import math
from dataclasses import dataclass

from judge_decoding.config import Deployment, EngineConfig, ModelConfig, RankGroup
from judge_decoding.errors import UserError
from judge_decoding.planner.gpus import GPUS, ROUND_S, RUNTIME_BYTES
from judge_decoding.planner.roofline import Pass, Placed, judge_time, pass_time
from judge_decoding.planner.shapes import shape_of

PAPER_DRAFT_LEN = 25
PAPER_LENGTHS = {"paper, standard": 7.3, "paper, judge": 20.7}
"""Accepted per round at 8B/405B (6.3 and 19.7) plus the bonus, arXiv 2501.19309; the draft length
is assumed."""
LONGEST = 64
"""Longest draft length in the search for the best one."""


@dataclass(frozen=True)
class AssumedAcceptance:
    """A mean acceptance length, bonus included, and the draft length it was measured at."""

    name: str
    length: float
    draft_len: int

    @property
    def rate(self) -> float:
        """Acceptance rate of one token, if each is accepted independently: the a of
        length = (1 - a^(k + 1)) / (1 - a)  (Leviathan et al., arXiv 2211.17192)."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if _length(middle, self.draft_len) < self.length else (low, middle)
            )
        return (low + high) / 2

    def at(self, draft_len: int) -> float:
        """The expected length at another draft length, by the same rate."""
        return _length(self.rate, draft_len)


def _length(rate: float, draft_len: int) -> float:
    return sum(rate**i for i in range(draft_len + 1))


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one GPU; `caches` is what TensorRT-LLM then allocates, in order of loading.

    full_sequences  number of texts of max_context tokens that draft and target can both cache
    """

    gpu: float
    weights: dict[str, float]
    activations: dict[str, float]
    caches: dict[str, float]
    missing: float
    full_sequences: int

    @property
    def fits(self) -> bool:
        """Whether the weights, the activations and the cache of one full-length text fit."""
        return self.missing <= 0


@dataclass(frozen=True)
class PlannedRound:
    """One round at a draft length. Seconds, and tokens/s of one sequence.

    passes  number of passes of each model over prefixes (`Plan.passes`); `verify` is one of them
    """

    draft_len: int
    length: float
    propose: float
    passes: int
    verify: Pass
    judge: float
    host: float
    base: float
    """Tokens/s of the target alone."""

    @property
    def total(self) -> float:
        return self.propose + self.verify_s + self.judge + self.host

    @property
    def verify_s(self) -> float:
        return self.passes * self.verify.total

    @property
    def tokens_per_s(self) -> float:
        return self.length / self.total

    @property
    def dominant(self) -> str:
        parts = {
            "draft loop": self.propose,
            f"verify ({self.verify.bound})": self.verify_s,
            "judge": self.judge,
            "host": self.host,
        }
        return max(parts, key=lambda name: parts[name])


class Plan:
    """A deployment on one kind of GPU, with `sequences` active texts of `context` tokens each.

    gpu  name of the GPU; None takes the deployment's own, `trtllm.gpu`
    """

    def __init__(
        self,
        deployment: Deployment,
        gpu: str | None = None,
        *,
        sequences: int = 1,
        context: int = 1024,
    ) -> None:
        if deployment.engine != "trtllm":
            raise UserError(
                f"plan: deployment {deployment.name} runs engine {deployment.engine}, plans are "
                "for engine trtllm on GPUs; measure this one with judge-decoding bench"
            )
        assert deployment.draft and deployment.trtllm and deployment.ranks
        build, ranks, limits = deployment.trtllm, deployment.ranks, deployment.limits
        for name, value, limit, field in (
            ("sequences", sequences, limits.max_sequences, "max_sequences"),
            ("context", context, limits.max_context, "max_context"),
        ):
            if value > limit:
                raise UserError(f"{name}: {value} is above the deployment's limits.{field} {limit}")
        self.deployment, self.gpu = deployment, gpu or build.gpu
        self.sequences, self.context = sequences, context

        def placed(model: ModelConfig, group: RankGroup, part: EngineConfig) -> Placed:
            eight_bits = part.quantization == "fp8"
            cache = 1 if part.kv_cache_dtype == "fp8" else 2
            shape = shape_of(model)
            devices = [device for device in group.devices if device != "cpu"]
            nodes = len({device // build.gpus_per_node for device in devices})
            return Placed(shape, GPUS[self.gpu], group.tp, 1 if eight_bits else 2, cache, nodes)

        self.draft = placed(deployment.draft, ranks.draft, build.draft)
        self.target = placed(deployment.target, ranks.target, build.target)
        self.judged = deployment.acceptance.rule == "judge"
        self.max_num_tokens = build.max_num_tokens
        self._step = pass_time(self.draft, sequences=sequences, context=context).total
        self.base = 1 / pass_time(self.target, sequences=sequences, context=context).total

    def memory(self) -> dict[str, GpuMemory]:
        """Memory by kind of GPU in the layout: `draft` and `target` GPUs hold one model each,
        `shared` GPUs hold both."""
        assert self.deployment.ranks
        draft, target = (
            set(group.devices)
            for group in (self.deployment.ranks.draft, self.deployment.ranks.target)
        )
        places = {
            "draft": ["draft"] if draft - target else [],
            "shared": ["draft", "target"] if draft & target else [],
            "target": ["target"] if target - draft else [],
        }
        return {name: self._memory(roles) for name, roles in places.items() if roles}

    def _memory(self, roles: list[str]) -> GpuMemory:
        assert self.deployment.trtllm
        limits, build = self.deployment.limits, self.deployment.trtllm
        weights, activations, caches = {}, {}, {}
        full, missing = [], 0.0
        free = GPUS[self.gpu].memory
        for role in roles:  # the order in which they are loaded
            model: Placed = getattr(self, role)
            weights[role] = model.held_bytes
            activations[role] = self._activations(role) + RUNTIME_BYTES
            free -= weights[role] + activations[role]
            fraction = getattr(build, role).kv_cache_free_gpu_memory_fraction
            cache = fraction * free if free > 0 else free
            one = limits.max_context * model.token_bytes
            missing = max(missing, one - cache)
            caches[role] = max(cache, 0.0)
            full.append(int(caches[role] // one))
            free -= caches[role]
        return GpuMemory(GPUS[self.gpu].memory, weights, activations, caches, missing, min(full))

    def _activations(self, role: str) -> float:
        """Bytes of one pass of max_num_tokens, with float32 logits; with a judge, the target's
        are held twice, before and after the plugin. An estimate, since TensorRT reuses buffers."""
        assert self.deployment.trtllm
        model: Placed = getattr(self, role)
        tokens, sequences = (
            self.deployment.trtllm.max_num_tokens,
            self.deployment.limits.max_sequences,
        )
        per_token = 2 * (4 * model.shape.hidden + 3 * model.shape.intermediate / model.tp)
        rows = sequences * (self.deployment.max_draft_len + 1) if role == "target" else sequences
        copies = 2 if role == "target" and self.judged else 1
        return tokens * per_token + copies * 4 * rows * model.shape.vocab

    @property
    def configured(self) -> int:
        """The deployment's draft length at this many active sequences."""
        return self.deployment.draft_len(self.sequences)

    def passes(self, draft_len: int) -> int:
        """Number of passes in which the runtime sees every sequence once. Each round is a new
        request with its whole prefix, and the scheduler counts all of it against max_num_tokens,
        although cached tokens are not computed again (trtllm.executor.executor_config)."""
        together = max(1, self.max_num_tokens // (self.context + draft_len))
        return math.ceil(self.sequences / together)

    def round(self, acceptance: AssumedAcceptance, draft_len: int) -> PlannedRound:
        rows, passes = draft_len + 1, self.passes(draft_len)
        share = math.ceil(self.sequences / passes)
        verify = pass_time(self.target, rows=rows, sequences=share, context=self.context)
        # With more than one pass, the last sequences start their drafts passes - 1 steps late.
        steps = draft_len + passes - 1 if draft_len else 0
        return PlannedRound(
            draft_len=draft_len,
            length=acceptance.at(draft_len),
            propose=steps * self._step,
            passes=passes,
            verify=verify,
            judge=judge_time(self.target, rows * self.sequences) if self.judged else 0.0,
            host=ROUND_S,
            base=self.base,
        )

    def best(self, acceptance: AssumedAcceptance) -> PlannedRound:
        """The round at the fastest draft length of 1..LONGEST."""
        rounds = [self.round(acceptance, k) for k in range(1, LONGEST + 1)]
        return max(rounds, key=lambda r: r.tokens_per_s)


def acceptances(deployment: Deployment, lengths: list[float]) -> list[AssumedAcceptance]:
    """The given lengths, measured at the deployment's draft length; without any, the paper's."""
    if not lengths:
        return [
            AssumedAcceptance(n, length, PAPER_DRAFT_LEN) for n, length in PAPER_LENGTHS.items()
        ]
    k = deployment.max_draft_len
    for length in lengths:
        if not 1 <= length <= k + 1:
            raise UserError(
                f"acceptance-length: {length:g} is not in 1..{k + 1}; at max_draft_len {k} a round "
                f"emits 1 to {k + 1} tokens, the bonus included"
            )
    return [AssumedAcceptance("given", length, k) for length in lengths]
