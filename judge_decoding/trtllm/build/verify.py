"""Checks that the engines are what the deployment needs, and that they decode.

1. Every manifest is checked.
2. A short generation must produce tokens. It goes through TensorRT-LLM's own draft-target example
   (examples/run.py), that is, through its unmodified runtime and none of our serving code.
3. With the baseline engines: the target with the judge at threshold 1 must produce exactly the
   tokens of plain speculative decoding. The deployment's own threshold is reported beside it.

The options are those of TensorRT-LLM 1.2.1's own draft-target test.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.errors import UserError
from judge_decoding.trtllm.build.convert import EXAMPLES
from judge_decoding.trtllm.build.engines import EngineBuild, engines
from judge_decoding.trtllm.build.preflight import check_gpus, check_script, check_tool
from judge_decoding.trtllm.build.steps import BuildStep, describe, partial, run_steps
from judge_decoding.trtllm.manifest import check_engine, rank_group, sections
from judge_decoding.trtllm.stack import this_runtime

PROMPTS = (
    "How does speculative decoding work?",
    "Write a short story about a lighthouse keeper.",
    "The capital of Australia is",
)
MAX_TOKENS = 64
OUTPUT = "tokens.csv"


def command(
    deployment: Deployment, target: Path, output: Path, examples: Path = EXAMPLES
) -> tuple[str, ...]:
    """examples/run.py with a draft: all prompts in one batch, greedy decoding, token mode."""
    build = sections(deployment)
    draft, target_gpus = (list(rank_group(deployment, r).devices) for r in ("draft", "target"))
    layout = f"[{deployment.max_draft_len},{draft},{target_gpus},False]".replace(" ", "")
    fraction = min(
        build.draft.kv_cache_free_gpu_memory_fraction,
        build.target.kv_cache_free_gpu_memory_fraction,
    )
    return (
        *("mpirun", "--allow-run-as-root", "-n", "1", sys.executable, str(examples / "run.py")),
        f"--tokenizer_dir={deployment.target.model}",
        f"--draft_engine_dir={build.engines / 'draft'}",
        f"--engine_dir={target}",
        f"--draft_target_model_config={layout}",
        f"--max_output_len={MAX_TOKENS}",
        "--kv_cache_enable_block_reuse",
        f"--kv_cache_free_gpu_memory_fraction={fraction}",
        f"--output_csv={output / OUTPUT}",
        "--input_text",
        *PROMPTS[: deployment.limits.max_sequences],
    )


def read_tokens(folder: Path) -> list[list[int]]:
    """One row per prompt: its ids and the answer's, padded with end ids (run.py print_output)."""
    path = folder / OUTPUT
    try:
        with path.open(newline="") as file:
            rows = [[int(cell) for cell in row] for row in csv.reader(file)]
    except (OSError, ValueError) as error:
        raise UserError(f"verify: cannot read {path} ({error})") from None
    if not rows:
        raise UserError(f"verify: {path} holds no tokens")
    return rows


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs; None if all tokens and the lengths are equal."""
    for index, pair in enumerate(zip(one, other, strict=False)):
        if pair[0] != pair[1]:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def report(rows: dict[str, list[list[int]]]) -> tuple[list[str], bool]:
    """Lines to print, and whether all checks hold. rows: engine name -> tokens by prompt."""
    lines, passed = [], True
    for name, tokens in rows.items():
        if name != "target-plain":
            lines.append(f"{name}: {sum(map(len, tokens))} tokens, prompts and padding included")
    plain = rows.get("target-plain")
    if plain is None:
        return [*lines, "not compared: no baseline engines (build_engines.py --baseline)"], passed
    for name, strict in (("target-threshold-1", True), ("target", False)):
        found = [first_difference(a, b) for a, b in zip(rows[name], plain, strict=True)]
        same = sum(index is None for index in found)
        lines.append(f"{name} / plain speculative decoding: {same} of {len(found)} answers equal")
        if strict and same < len(found):
            prompt = next(i for i, index in enumerate(found) if index is not None)
            lines.append(f"FAILED: answer {prompt} differs from token {found[prompt]} on")
            passed = False
    return lines, passed


def step(engine: EngineBuild, examples: Path) -> BuildStep:
    build = sections(engine.deployment)
    output = build.engines / "verify" / engine.name
    return BuildStep(
        name=f"generate with {engine.name}",
        # run.py creates the folder of its --output_csv
        command=command(engine.deployment, engine.folder, partial(output), examples),
        output=output,
        files=(OUTPUT,),
        log=build.engines / "logs" / f"verify-{engine.name}.log",
    )


def verify(
    deployment: Deployment, *, baseline: bool, examples: Path, manifests_only: bool, dry_run: bool
) -> bool:
    """Run the checks on the machine that serves, and print the results. Returns False if one fails.

    A dry run prints what would be done. UserError if a manifest does not fit, or if generation is
    impossible here.
    """
    checked = engines(deployment, "both", baseline)
    targets = [engine for engine in checked if engine.model == "target"]
    steps = [] if manifests_only else [step(engine, examples) for engine in targets]
    if not manifests_only:
        check_one_node(deployment)
    if dry_run:
        print("\n".join(f"checks   {engine.folder / 'manifest.json'}" for engine in checked))
        print(describe(steps))
        return True
    runtime, checkpoints = this_runtime(), Checkpoints.of(deployment)
    for engine in checked:
        check_engine(engine.deployment, engine.model, checkpoints, runtime, engine.folder)
        print(f"engine: {engine.folder} fits this deployment and machine")
    if manifests_only:
        return True
    preflight(deployment, examples)
    run_steps(steps)
    rows = {e.name: read_tokens(s.output) for e, s in zip(targets, steps, strict=True)}
    lines, passed = report(rows)
    print("\n".join(lines))
    return passed


def gpus(deployment: Deployment) -> set[int]:
    groups = (rank_group(deployment, "draft"), rank_group(deployment, "target"))
    return {gpu for group in groups for gpu in group.devices if gpu != "cpu"}


def check_one_node(deployment: Deployment) -> None:
    if max(gpus(deployment)) >= sections(deployment).gpus_per_node:
        raise UserError(
            f"verify: examples/run.py runs on one node, but GPU {max(gpus(deployment))} is on "
            "another; use --manifests-only there, and generate as docs/h100.md says for two nodes"
        )


def preflight(deployment: Deployment, examples: Path) -> None:
    check_script(examples / "run.py")
    check_tool("mpirun")
    check_gpus(deployment, wanted=max(gpus(deployment)) + 1)
