"""TensorRT-LLM checkpoints -> TensorRT engines of draft and target, with the judge in the target's.

`trtllm-build` runs with the options of TensorRT-LLM 1.2.1 (tensorrt_llm/commands/build.py), one
process per rank. With `acceptance.rule: judge` the target is built through `judge_llama.py` of this
folder, which loads the plugin before it makes the network. The engines are the folders `draft` and
`target` under `trtllm.engines`, each with its manifest. The baseline engine `target-plain` has no
plugin; `verify` compares the judged one with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Model
from judge_decoding.errors import UserError
from judge_decoding.planner.shapes import shape_of
from judge_decoding.trtllm.build.convert import checkpoint_folder, is_ready, models
from judge_decoding.trtllm.build.judge_build import VARIABLE, JudgeBuild
from judge_decoding.trtllm.build.preflight import (
    absent_models,
    check_disk,
    check_gpus,
    check_models,
    check_plugin,
    check_tensors,
    check_tool,
    sizes,
)
from judge_decoding.trtllm.build.steps import MPIRUN, BuildStep, describe, partial, run_steps
from judge_decoding.trtllm.manifest import (
    MANIFEST,
    check_engine,
    engine_config,
    engine_files,
    manifest_for,
    rank_group,
    sections,
    wanted_threshold,
)
from judge_decoding.trtllm.stack import Runtime, this_runtime

MODEL_CLASS_FILE = Path(__file__).resolve().parent / "judge_llama.py"
MODEL_CLASS = "JudgeLlamaForCausalLM"
BOOST = {"float32": 1e4, "float16": 3e4}
"""Far above any logit; in float16 it leaves room below 65504 for the row's own maximum."""


@dataclass(frozen=True)
class EngineBuild:
    """One engine to build for `deployment`, whose rule is changed for the baseline engine."""

    name: str
    model: Model
    deployment: Deployment

    @property
    def folder(self) -> Path:
        return sections(self.deployment).engines / self.name

    @property
    def judged(self) -> bool:
        return self.model == "target" and self.deployment.acceptance.rule == "judge"

    @property
    def processes(self) -> int:
        """Number of processes that build it at the same time, each on its own GPU."""
        tp = rank_group(self.deployment, self.model).tp
        return min(tp, sections(self.deployment).gpus_per_node)


def engines(deployment: Deployment, only: str, baseline: bool) -> list[EngineBuild]:
    """Draft and target, and with `baseline` the target that `verify` compares with."""
    found = [EngineBuild(model, model, deployment) for model in models(only)]
    if baseline:
        if deployment.acceptance.rule != "judge":
            raise UserError(
                "--baseline compares with a judged target; acceptance.rule is not judge"
            )
        plain = deployment.acceptance.model_dump() | {"rule": "strict"}
        found.append(EngineBuild("target-plain", "target", deployment.override(acceptance=plain)))
    return found


def verified_rows(deployment: Deployment) -> int:
    """The most rows that one verify pass has by the schedule of draft lengths, which the target's
    kernels are tuned for (--opt_num_tokens). The builder's default is the batch size, which is
    right for the draft's steps of one row each (tensorrt_llm/_common.py `check_max_num_tokens`)."""
    sequences = range(1, deployment.limits.max_sequences + 1)
    return max(n * (deployment.draft_len(n) + 1) for n in sequences)


def command(engine: EngineBuild, checkpoint: Path, output: Path) -> tuple[str, ...]:
    """trtllm-build and its options.

    max_seq_len is the deployment's; for a speculative target the builder itself adds max_draft_len
    (tensorrt_llm/builder.py `build`). `--workers=1` is needed since a class from --model_cls_file
    cannot be pickled into workers; several ranks are several MPI processes instead
    (commands/build.py `parallel_build`: rank r takes the engines r, r + n, ...).
    """
    deployment = engine.deployment
    build, limits = sections(deployment), deployment.limits
    part = engine_config(deployment, engine.model)
    timing = build.engines / "timing.cache"
    options = [
        f"--checkpoint_dir={checkpoint}",
        f"--output_dir={output}",
        f"--gemm_plugin={'auto' if part.quantization == 'fp8' else deployment.dtype}",
        "--use_paged_context_fmha=enable",
        f"--use_fp8_context_fmha={'enable' if part.kv_cache_dtype == 'fp8' else 'disable'}",
        "--kv_cache_type=paged",
        f"--max_batch_size={limits.max_sequences}",
        f"--max_input_len={limits.max_context}",
        f"--max_seq_len={limits.max_context}",
        f"--max_num_tokens={build.max_num_tokens}",
        f"--logits_dtype={build.logits_dtype}",
        f"--input_timing_cache={timing}",
        f"--output_timing_cache={timing}",
        "--workers=1",
    ]
    if engine.model == "target":
        options += [
            "--speculative_decoding_mode=draft_tokens_external",
            f"--max_draft_len={deployment.max_draft_len}",
            f"--opt_num_tokens={verified_rows(deployment)}",
        ]
    if engine.judged:
        options += [f"--model_cls_file={MODEL_CLASS_FILE}", f"--model_cls_name={MODEL_CLASS}"]
    if (processes := engine.processes) == 1:
        return ("trtllm-build", *options)
    exported = ("-x", VARIABLE) if engine.judged else ()
    return (*MPIRUN, "-n", str(processes), *exported, "trtllm-build", *options)


def judge_build_text(engine: EngineBuild, checkpoints: Checkpoints, absent: bool) -> str:
    """The JSON of a `JudgeBuild`. If the models are absent (a dry run), values that only they give
    are described in words."""
    if not absent:
        return judge_build(engine, checkpoints).model_dump_json(indent=2)
    deployment = engine.deployment
    assert deployment.judge is not None
    build, threshold = sections(deployment), deployment.judge.threshold
    known = {
        "judge": str(deployment.judge.path),
        "plugin": str(build.plugin),
        "threshold": "the judge's own" if threshold is None else threshold,
        "boost": BOOST[build.logits_dtype],
        "vocab_size": shape_of(deployment.target).vocab,
        "end_ids": "the target's",
        "protect_end_ids": deployment.acceptance.protect_end_ids,
        "max_draft_len": deployment.max_draft_len,
    }
    return json.dumps(known, indent=2)


def judge_build(engine: EngineBuild, checkpoints: Checkpoints) -> JudgeBuild:
    deployment = engine.deployment
    judge = checkpoints.judge
    assert judge is not None and deployment.judge is not None
    build = sections(deployment)
    config = checkpoints.target.config
    return JudgeBuild(
        judge=deployment.judge.path,
        plugin=build.plugin,
        threshold=wanted_threshold(deployment, judge),
        boost=BOOST[build.logits_dtype],
        vocab_size=config.vocab_size,
        end_ids=config.end_ids,
        protect_end_ids=deployment.acceptance.protect_end_ids,
        max_draft_len=deployment.max_draft_len,
    )


def step(
    engine: EngineBuild, checkpoints: Checkpoints, runtime: Runtime | None, absent: bool = False
) -> BuildStep:
    """The step that builds an engine.

    runtime  what the manifest names; None in a dry run, which writes no manifest
    absent   the models are not on this machine
    """
    build = sections(engine.deployment)
    file = build.engines / f"{engine.name}.judge.json"

    def finish(half: Path) -> None:
        assert runtime is not None
        manifest_for(engine.deployment, engine.model, checkpoints, runtime).save(half)

    return BuildStep(
        name=f"build {engine.name}",
        command=command(
            engine, checkpoint_folder(engine.deployment, engine.model), partial(engine.folder)
        ),
        output=engine.folder,
        files=(*engine_files(rank_group(engine.deployment, engine.model).tp), MANIFEST),
        log=build.engines / "logs" / f"build-{engine.name}.log",
        env={VARIABLE: str(file)} if engine.judged else {},
        writes={file: judge_build_text(engine, checkpoints, absent)} if engine.judged else {},
        finish=finish,
    )


def build(
    deployment: Deployment,
    only: str,
    *,
    baseline: bool,
    calibration: str,
    again: bool,
    dry_run: bool,
) -> None:
    """Build the engines that are missing, or all of them with `again`.

    calibration  the same value as for the conversion
    A dry run prints what would be done. It needs no model folder where the deployment names the
    model's `shape`.
    """
    checkpoints = Checkpoints.of(deployment)
    absent = absent_models(deployment) if dry_run else []
    if not absent:
        check_models(deployment, checkpoints)
    wanted = engines(deployment, only, baseline)
    there = [e for e in wanted if not again and e.folder.is_dir()]
    todo = [engine for engine in wanted if engine not in there]
    if dry_run:
        steps = [step(engine, checkpoints, None, bool(absent)) for engine in todo]
        print(describe(steps, [engine.folder for engine in there], absent))
        return
    runtime = this_runtime()
    for engine in there:
        check_engine(engine.deployment, engine.model, checkpoints, runtime, engine.folder)
        print(f"engine: {engine.folder} is ready")
    if todo:
        preflight(deployment, checkpoints, todo, calibration)
        run_steps([step(engine, checkpoints, runtime) for engine in todo])


def preflight(
    deployment: Deployment, checkpoints: Checkpoints, todo: list[EngineBuild], calibration: str
) -> None:
    for engine in todo:
        if not is_ready(deployment, engine.model, checkpoints, calibration):
            raise UserError(
                f"checkpoint: no {checkpoint_folder(deployment, engine.model)}; run "
                "build/convert_checkpoint.py with this config first"
            )
    processes = max(engine.processes for engine in todo)
    check_tool("trtllm-build")
    if processes > 1:
        check_tool("mpirun")
    check_plugin(deployment)
    check_tensors(deployment)
    check_gpus(deployment, wanted=processes)
    total = sum(sizes(deployment, engine.model).total for engine in todo)
    check_disk(sections(deployment).engines, total, "the engines")
