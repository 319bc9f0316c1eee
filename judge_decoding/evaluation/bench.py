"""The benchmark: every system answers every prompt, in one process, interleaved and warm.

    judge-decoding bench --rules none,strict,judge --peers hf,hf-assisted --json

Definitions. `tokens_per_s` is emitted tokens over wall time, prefill included, for all systems;
`decode_tokens_per_s`, `ms_*` and `*_share` leave out each answer's first round, which holds its
prefill. `mean_acceptance_length` and `draft_acceptance_rate` leave out no round: for a rule they
count the rounds that drafted (`AcceptanceRecord`), for a peer the length is tokens / rounds.
Decoding is greedy, at batch 1; an answer ends by itself or at the token limit. All systems answer a
prompt, in rotating order, before the next prompt, so that the machine's drift hits all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from judge_decoding import provenance
from judge_decoding.checkpoint import EMBEDDING, HEAD, Checkpoint
from judge_decoding.decoding.contracts import Acceptance, Sampling
from judge_decoding.decoding.loop import LoopClock, Result
from judge_decoding.decoding.sequence import AcceptanceRecord, Request
from judge_decoding.errors import UserError
from judge_decoding.torch_engine.engine import TorchEngine

if TYPE_CHECKING:
    from judge_decoding.pipeline import Pipeline

PEERS = ("hf", "hf-assisted")
"""transformers' `generate` on the same weights, and its assistant_model mode with our draft."""

RATIOS = {
    "target_vs_hf": ("none", "hf"),
    "strict_vs_none": ("strict", "none"),
    "judge_vs_none": ("judge", "none"),
    "judge_vs_strict": ("judge", "strict"),
    "judge_vs_hf": ("judge", "hf"),
    "judge_vs_hf_assisted": ("judge", "hf-assisted"),
}
"""Name of a ratio -> the systems (above, below) whose tokens_per_s are divided."""

WARM_UP_TOKENS = 32
_PARTS = ("propose", "verify", "host", "judge")


@dataclass(frozen=True)
class BenchAnswer:
    """One prompt answered by one system.

    seconds  wall time, prefill included
    rounds   (seconds, emitted tokens) of each round; the first holds the prefill
    clock    seconds of the rounds after the first, by part; None for a peer
    result   the decoder's result; None for a peer
    """

    seconds: float
    rounds: list[tuple[float, int]]
    clock: dict[str, float] | None = None
    result: Result | None = None


class BenchSystem(Protocol):
    """Something that answers prompts, greedily and one at a time."""

    name: str

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer: ...


class RuleSystem:
    """This package's decoder under one acceptance rule."""

    def __init__(self, pipeline: Pipeline, acceptance: Acceptance) -> None:
        self.name: str = acceptance.rule
        self._decoder = pipeline.decoder
        self._acceptance = acceptance

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer:
        decoder, rounds = self._decoder, list[tuple[float, int]]()
        request = Request(list(prompt_ids), max_tokens, self._acceptance, Sampling())
        began = last = time.perf_counter()
        for update in decoder.stream(request):
            now = time.perf_counter()
            rounds.append((now - last, len(update.tokens)))
            if len(rounds) == 1:
                decoder.clock = LoopClock()
            last = time.perf_counter()
        clock = {part: float(getattr(decoder.clock, part)) for part in _PARTS}
        return BenchAnswer(last - began, rounds, clock, decoder.result(update.sequence))


class PeerSystem:
    """transformers' greedy `generate`, with an assistant model or without."""

    def __init__(self, name: str, model: Any, end_ids: Sequence[int], assistant: Any) -> None:
        self.name = name
        self._model = model
        self._assistant = {"assistant_model": assistant} if assistant is not None else {}
        self._config = _transformers().GenerationConfig(
            do_sample=False,
            eos_token_id=list(end_ids) or None,
            pad_token_id=end_ids[0] if end_ids else 0,
        )

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer:
        watch = _RoundWatch()
        ids = torch.tensor([list(prompt_ids)], device=self._model.device)
        self._config.max_new_tokens = max_tokens
        began = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self._config,
            streamer=watch,
            **self._assistant,
        )
        return BenchAnswer(time.perf_counter() - began, watch.rounds)


class _RoundWatch:
    """A transformers streamer that notes (seconds, tokens) of every round."""

    def __init__(self) -> None:
        self.rounds: list[tuple[float, int]] = []
        self._last: float | None = None

    def put(self, tokens: torch.Tensor) -> None:
        now = time.perf_counter()
        if self._last is not None:  # the first call only hands over the prompt
            self.rounds.append((now - self._last, tokens.numel()))
        self._last = now

    def end(self) -> None:
        """Nothing is held back."""


def _transformers() -> Any:
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise UserError("peers: they need transformers; pip install transformers") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_peers(names: Sequence[str], pipeline: Pipeline) -> list[BenchSystem]:
    """The named peers on the deployment's own weights, in its dtype."""
    deployment, end_ids = pipeline.deployment, pipeline.engines.target.end_ids
    if not names:
        return []
    dtype = getattr(torch, deployment.dtype)
    model = transformers_model(deployment.target.model, dtype, {})
    systems: list[BenchSystem] = []
    for name in names:
        assistant = None
        if name == "hf-assisted":
            if deployment.draft is None:
                raise UserError("peers: hf-assisted needs a draft, the deployment has none")
            assistant = transformers_model(deployment.draft.model, dtype, model.state_dict())
            # The default of 20 tokens per round suits no small draft, so we set our own length. As
            # by default, transformers still stops early where the draft is unsure.
            assistant.generation_config.num_assistant_tokens = deployment.max_draft_len
            assistant.generation_config.num_assistant_tokens_schedule = "constant"
        systems.append(PeerSystem(name, model, end_ids, assistant))
    return systems


def transformers_model(path: Path, dtype: torch.dtype, theirs: Mapping[str, torch.Tensor]) -> Any:
    """A checkpoint as a whole LlamaForCausalLM.

    theirs  the target's tensors, of which a draft may share some. transformers has no short-list
            for the LM head, so a draft has the full head
    """
    checkpoint = Checkpoint(path)
    shared, tensors = checkpoint.config.shared_with_target, checkpoint.tensors
    config = _transformers().LlamaConfig.from_dict(checkpoint.config_json)
    model = _transformers().LlamaForCausalLM(config)
    state: dict[str, torch.Tensor] = {}
    for name in model.state_dict():
        if name in shared:
            state[name] = theirs[name]
        elif name == HEAD and HEAD not in tensors:
            state[name] = state[EMBEDDING]  # tied
        else:
            state[name] = tensors.get(name).to(dtype)
    # `assign` shares the target's memory and leaves the rotary tables in float32, unlike `.to`.
    model.load_state_dict(state, assign=True)
    return model.eval()


def interleave(
    systems: Sequence[BenchSystem], prompts: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[tuple[str, BenchAnswer]]:
    """Pairs (system, answer): all systems answer a prompt, in rotating order, before the next."""
    for index, prompt in enumerate(prompts):
        turn = index % len(systems)
        for system in [*systems[turn:], *systems[:turn]]:
            yield system.name, system.answer(prompt, max_tokens)


def run(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    rules: Sequence[str],
    peers: Sequence[str] = (),
    max_tokens: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Let every system answer every prompt; return results, ratios, memory and provenance.

    progress  called with (answers done, answers in all); first with 0, once all systems are warm
    """
    deployment, judge = pipeline.deployment, pipeline.engines.target.judge
    threshold = deployment.default_acceptance().threshold
    if threshold is None and judge is not None:
        threshold = judge.metadata.threshold
    encoded = [pipeline.tokenizer.turn(prompt) for prompt in prompts]
    systems: list[BenchSystem] = [
        RuleSystem(pipeline, deployment.default_acceptance(rule=rule)) for rule in rules
    ]
    for system in systems:  # the peak of this package alone, before any peer is loaded
        system.answer(max(encoded, key=len), WARM_UP_TOKENS)
    own = provenance.peak_memory_mb()
    systems += load_peers(peers, pipeline)
    answers: dict[str, list[BenchAnswer]] = {system.name: [] for system in systems}
    for system in systems:  # so that no timed answer pays for first calls
        system.answer(encoded[0], min(max_tokens, WARM_UP_TOKENS))
    total = len(systems) * len(prompts)
    progress(0, total)
    for done, (name, answer) in enumerate(interleave(systems, encoded, max_tokens), 1):
        answers[name].append(answer)
        progress(done, total)
    results = [summarize(name, of_one) for name, of_one in answers.items()]
    return {
        "results": results,
        "ratios": ratios(results),
        "memory": {"peak_mb": provenance.peak_memory_mb(), "peak_without_peers_mb": own},
        "provenance": {
            **provenance.collect(),
            "deployment": deployment.name,
            "dtype": deployment.dtype,
            "weights": {
                name: engine.model.weights
                for name, engine in vars(pipeline.engines).items()
                if isinstance(engine, TorchEngine)
            },
            "max_draft_len": deployment.max_draft_len,
            "threshold": threshold,
            "prompts": len(prompts),
            "max_tokens": max_tokens,
        },
    }


def summarize(name: str, answers: Sequence[BenchAnswer]) -> dict[str, Any]:
    """One row of results from a system's answers. A figure that does not exist is None."""
    later = [one for answer in answers for one in answer.rounds[1:]]
    times = np.array([seconds for seconds, _ in later])
    tokens = sum(count for answer in answers for _, count in answer.rounds)
    seconds = sum(answer.seconds for answer in answers)
    rounds = sum(len(answer.rounds) for answer in answers)
    spent = float(times.sum())
    row: dict[str, Any] = {
        "name": name,
        "tokens_per_s": _ratio(tokens, seconds),
        "decode_tokens_per_s": _ratio(sum(count for _, count in later), spent),
        "tokens": tokens,
        "seconds": seconds,
        "rounds": rounds,
        "mean_acceptance_length": _ratio(tokens, rounds),
        "draft_acceptance_rate": None,
        "ms_per_round": _ratio(1e3 * spent, len(later)),
        "ms_per_round_p50": 1e3 * float(np.percentile(times, 50)) if later else None,
        "ms_per_round_p90": 1e3 * float(np.percentile(times, 90)) if later else None,
    }
    clocks = [answer.clock for answer in answers if answer.clock is not None]
    parts = {part: sum(clock[part] for clock in clocks) for part in _PARTS} if clocks else None
    for part in _PARTS:
        row[f"ms_{part}"] = _ratio(1e3 * parts[part], len(later)) if parts else None
    for part in ("host", "judge"):
        row[f"{part}_share"] = _ratio(parts[part], spent) if parts else None
    if own := [answer.result.record for answer in answers if answer.result is not None]:
        record = AcceptanceRecord()
        for one in own:
            record.merge(one)
        row |= record.to_dict()
        if not record.num_draft_tokens:
            row["draft_acceptance_rate"] = None
    return row


def ratios(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The RATIOS whose two systems took part."""
    speed = {row["name"]: row["tokens_per_s"] for row in results}
    return {
        name: speed[above] / speed[below]
        for name, (above, below) in RATIOS.items()
        if speed.get(above) and speed.get(below)
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
