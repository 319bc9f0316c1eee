"""Hugging Face checkpoints -> TensorRT-LLM checkpoints, bf16 or FP8, one shard a rank.

    python build/convert_checkpoint.py --config configs/llama-8b-70b-h100x2.yaml [--dry-run]

Runs the container's own scripts, whose options are those of TensorRT-LLM 1.2.1:
examples/models/core/llama/convert_checkpoint.py for bf16, examples/quantization/quantize.py
(modelopt) for FP8; the FP8 options are those of its own draft-target test
(tests/integration/defs/examples/test_draft_target_model.py). Makes `checkpoints/draft` and
`checkpoints/target` under `trtllm.engines`. What is ready is left alone; `--again` redoes it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Model
from judge_decoding.errors import UserError
from judge_decoding.trtllm.build.preflight import (
    check_a_gpu,
    check_disk,
    check_models,
    check_script,
    sizes,
)
from judge_decoding.trtllm.build.steps import Step, describe, partial, run_steps
from judge_decoding.trtllm.manifest import (
    engine_config,
    rank_group,
    sections,
)
from judge_decoding.trtllm.stack import check_tensorrt_llm

EXAMPLES = Path("/app/examples")
"""Where the pinned container has TensorRT-LLM's examples."""

SOURCE = "source.json"
"""Beside a checkpoint: what it was made from."""


def models(only: str) -> list[Model]:
    """What --only names."""
    found: dict[str, list[Model]] = {
        "draft": ["draft"],
        "target": ["target"],
        "both": ["draft", "target"],
    }
    if only not in found:
        raise UserError(f"only: unknown {only!r}; known are {', '.join(found)}")
    return found[only]


def checkpoint_folder(deployment: Deployment, model: Model) -> Path:
    return sections(deployment).engines / "checkpoints" / model


def checkpoint_files(deployment: Deployment, model: Model) -> list[str]:
    ranks = range(rank_group(deployment, model).tp)
    return ["config.json", *(f"rank{rank}.safetensors" for rank in ranks)]


def source(
    deployment: Deployment, model: Model, checkpoints: Checkpoints, calibration: str
) -> dict[str, object]:
    """Identity of a TensorRT-LLM checkpoint."""
    part = engine_config(deployment, model)
    found: dict[str, object] = {
        "model_fingerprint": checkpoints[model].fingerprint,
        "dtype": deployment.dtype,
        "tp": rank_group(deployment, model).tp,
        "quantization": part.quantization,
        "kv_cache_dtype": part.kv_cache_dtype,
    }
    if part.quantization == "fp8":
        found["calibration"] = calibration
    return found


def is_ready(
    deployment: Deployment, model: Model, checkpoints: Checkpoints, calibration: str
) -> bool:
    """Whether the checkpoint is there, whole; UserError where it is of something else."""
    folder = checkpoint_folder(deployment, model)
    if not folder.is_dir():
        return False
    wanted = source(deployment, model, checkpoints, calibration)
    try:
        has = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        has = {}
    for key, value in wanted.items():
        if has.get(key) != value:
            raise UserError(
                f"checkpoint: {folder} has {key} {has.get(key)}, but {value} is wanted; remove it, "
                f"or pass --only {model} --again"
            )
    for name in checkpoint_files(deployment, model):
        if not (folder / name).is_file():
            raise UserError(
                f"checkpoint: {folder} lacks {name}; pass --only {model} --again to convert it anew"
            )
    return True


@dataclass(frozen=True)
class Options:
    """What the command line adds to the deployment; see `main`."""

    examples: Path = EXAMPLES
    calibration: str = "cnn_dailymail"
    calibration_size: int = 512
    workers: int = 1


def command(deployment: Deployment, model: Model, output: Path, given: Options) -> tuple[str, ...]:
    """The script and its options."""
    part = engine_config(deployment, model)
    common = [
        f"--model_dir={Checkpoints.of(deployment)[model].folder}",
        f"--output_dir={output}",
        f"--dtype={deployment.dtype}",
        f"--tp_size={rank_group(deployment, model).tp}",
    ]
    if part.quantization == "none":
        script = str(converter(given.examples))
        return (sys.executable, script, *common, f"--workers={given.workers}")
    options = [
        "--qformat=fp8",
        f"--calib_dataset={given.calibration}",
        f"--calib_size={given.calibration_size}",
    ]
    if part.kv_cache_dtype == "fp8":
        options.append("--kv_cache_dtype=fp8")
    return (sys.executable, str(quantizer(given.examples)), *common, *options)


def step(deployment: Deployment, model: Model, checkpoints: Checkpoints, given: Options) -> Step:
    folder = checkpoint_folder(deployment, model)
    identity = (
        json.dumps(source(deployment, model, checkpoints, given.calibration), indent=2) + "\n"
    )

    def finish(half: Path) -> None:
        (half / SOURCE).write_text(identity, encoding="utf-8")

    return Step(
        name=f"convert {model}",
        command=command(deployment, model, partial(folder), given),
        output=folder,
        files=(*checkpoint_files(deployment, model), SOURCE),
        log=sections(deployment).engines / "logs" / f"convert-{model}.log",
        finish=finish,
    )


def converter(examples: Path) -> Path:
    return examples / "models" / "core" / "llama" / "convert_checkpoint.py"


def quantizer(examples: Path) -> Path:
    return examples / "quantization" / "quantize.py"


def main(
    config: Annotated[Path, typer.Option(help="The deployment.")],
    only: Annotated[str, typer.Option(help="draft, target or both")] = "both",
    examples: Annotated[Path, typer.Option(help="TensorRT-LLM's examples.")] = EXAMPLES,
    calibration: Annotated[
        str, typer.Option(help="FP8: a dataset's name, or a local folder of one.")
    ] = "cnn_dailymail",
    calibration_size: Annotated[int, typer.Option(min=1, help="FP8: samples.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="bf16: ranks converted at a time.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Redo what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    try:
        deployment = load_deployment(config)
        checkpoints = Checkpoints.of(deployment)
        check_models(deployment, checkpoints)
        given = Options(examples, calibration, calibration_size, workers)
        kept = [] if again else models(only)
        ready = [one for one in kept if is_ready(deployment, one, checkpoints, calibration)]
        todo = [model for model in models(only) if model not in ready]
        steps = [step(deployment, model, checkpoints, given) for model in todo]
        done = [checkpoint_folder(deployment, model) for model in ready]
        if dry_run:
            print(describe(steps, done))
            return
        for folder in done:
            print(f"checkpoint: {folder} is ready")
        if steps:
            preflight(deployment, todo, examples)
            run_steps(steps)
    except UserError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def preflight(deployment: Deployment, todo: list[Model], examples: Path) -> None:
    check_tensorrt_llm()
    build = sections(deployment)
    for model in todo:
        plain = engine_config(deployment, model).quantization == "none"
        check_script((converter if plain else quantizer)(examples))
    check_a_gpu()  # of any kind: a checkpoint is not tied to one
    total = sum(sizes(deployment, model).total for model in todo)
    check_disk(build.engines, total, "the checkpoints")
