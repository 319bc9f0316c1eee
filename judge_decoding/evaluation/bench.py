"""The benchmark: every system answers every prompt, in one process, interleaved and warm.

    judge-decoding bench --rules none,strict,judge --peers hf,llamacpp --tune --json

Definitions. `tokens_per_s` is emitted tokens over wall time, prefill included, for all systems;
`decode_tokens_per_s`, `ms_*`, `*_share` and `weight_gb_per_s` leave out each answer's first round,
which holds its prefill. `mean_acceptance_length` and `draft_acceptance_rate` leave out no round:
for a rule they count the rounds that drafted (`AcceptanceRecord`), for a peer the length is tokens
/ rounds. Decoding is greedy, at batch 1; an answer ends by itself or at the token limit
(`cut_answers`). `same_as_none` is the share of answers with the target's own text. All systems
answer a prompt, in rotating order, before the next prompt, so that the machine's drift hits all of
them. The read bandwidth is sampled as often (`read_bytes`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge_decoding import provenance
from judge_decoding.evaluation.bench_rows import STRICT_TUNED, ratios, summarize
from judge_decoding.evaluation.bench_system import BenchAnswer, BenchSystem, RuleSystem
from judge_decoding.evaluation.draft_length import LENGTHS, best_draft_len
from judge_decoding.evaluation.peers.open_peers import Speeds, open_peers
from judge_decoding.evaluation.read_bytes import ReadProbe
from judge_decoding.torch_engine.engine import TorchEngine

if TYPE_CHECKING:
    from judge_decoding.pipeline import Pipeline

WARM_UP_TOKENS = 32
_PEER_PACKAGES = ("xllamacpp", "openvino", "openvino-genai")


def interleave(
    systems: Sequence[BenchSystem],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    between: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, BenchAnswer]]:
    """Pairs (system, answer): all systems answer a prompt, in rotating order, before the next.

    between  called before each prompt
    """
    for index, prompt in enumerate(prompts):
        between()
        turn = index % len(systems)
        for system in [*systems[turn:], *systems[:turn]]:
            yield system.name, system.answer(prompt, max_tokens)


def run(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    rules: Sequence[str],
    peers: Sequence[str] = (),
    tune: bool = False,
    max_tokens: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Let every system answer every prompt; return results, ratios, memory and provenance.

    tune      also `strict` at its own best draft length, found by a small search
    progress  called with (answers done, answers in all); first with 0, once all systems are warm
    """
    with tempfile.TemporaryDirectory(prefix="judge-bench-") as folder:
        return _run(pipeline, prompts, rules, peers, tune, max_tokens, progress, Path(folder))


def _run(
    pipeline: Pipeline,
    prompts: Sequence[str],
    rules: Sequence[str],
    peers: Sequence[str],
    tune: bool,
    max_tokens: int,
    progress: Callable[[int, int], None],
    folder: Path,
) -> dict[str, Any]:
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
    tuned: dict[str, Speeds] = {}
    if tune:
        fastest, tuned[STRICT_TUNED] = _tuned_strict(pipeline, encoded, max_tokens)
        systems.append(fastest)
    others, missing, searched = open_peers(peers, pipeline, encoded, max_tokens, folder)
    systems += others
    answers: dict[str, list[BenchAnswer]] = {system.name: [] for system in systems}
    for system in systems:  # so that no timed answer pays for first calls
        system.answer(encoded[0], min(max_tokens, WARM_UP_TOKENS))
    probe, load = ReadProbe(), os.getloadavg()[0]
    probe.sample()
    total = len(systems) * len(prompts)
    progress(0, total)
    turns = interleave(systems, encoded, max_tokens, probe.sample)
    for done, (name, answer) in enumerate(turns, 1):
        answers[name].append(answer)
        progress(done, total)
    bandwidth = probe.figures()
    results = [
        summarize(
            system,
            answers[system.name],
            bandwidth=bandwidth["read_gb_per_s"],
            alone=answers.get("none"),
        )
        for system in systems
    ]
    facts = provenance.collect()
    facts["versions"] |= provenance.versions(_PEER_PACKAGES) if peers else {}
    return {
        "results": results,
        "not_measured": missing,
        "ratios": ratios(results),
        "tuned": tuned | searched,
        "bandwidth": bandwidth,
        "memory": {"peak_mb": provenance.peak_memory_mb(), "peak_without_peers_mb": own},
        "provenance": {
            **facts,
            "load_average": [load, os.getloadavg()[0]],
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


def _tuned_strict(
    pipeline: Pipeline, prompts: Sequence[Sequence[int]], max_tokens: int
) -> tuple[BenchSystem, Speeds]:
    deployment = pipeline.deployment
    acceptance = deployment.default_acceptance(rule="strict")
    most = deployment.max_draft_len if deployment.engine == "trtllm" else LENGTHS[-1]
    return best_draft_len(
        lambda length: RuleSystem(pipeline, acceptance, name=STRICT_TUNED, draft_len=length),
        prompts,
        max_tokens,
        [length for length in LENGTHS if length <= most],
    )
