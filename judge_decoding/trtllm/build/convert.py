"""Hugging Face checkpoints -> TensorRT-LLM checkpoints, bf16 or FP8, one shard per rank.

The container's own scripts do the work, with the options of TensorRT-LLM 1.2.1:
examples/models/core/llama/convert_checkpoint.py for bf16, examples/quantization/quantize.py
(modelopt) for FP8. The FP8 options are those of its own draft-target test
(tests/integration/defs/examples/test_draft_target_model.py). The checkpoints are the folders
`checkpoints/draft` and `checkpoints/target` under `trtllm.engines`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Model
from judge_decoding.errors import UserError
from judge_decoding.files import read_object
from judge_decoding.trtllm.build.preflight import (
    absent_models,
    check_a_gpu,
    check_disk,
    check_models,
    check_script,
    sizes,
)
from judge_decoding.trtllm.build.steps import BuildStep, describe, partial, run_steps
from judge_decoding.trtllm.manifest import (
    engine_config,
    rank_group,
    sections,
)
from judge_decoding.trtllm.stack import check_tensorrt_llm

EXAMPLES = Path("/app/examples")
"""The folder of TensorRT-LLM's examples in the pinned container."""

SOURCE = "source.json"
"""A file beside a checkpoint that records what it was made from."""


def models(only: str) -> list[Model]:
    """The models that `--only` names."""
    found: dict[str, list[Model]] = {
        "draft": ["draft"],
        "target": ["target"],
        "both": ["draft", "target"],
    }
    if only not in found:
        raise UserError(f"--only: unknown {only!r}; known are {', '.join(found)}")
    return found[only]


def checkpoint_folder(deployment: Deployment, model: Model) -> Path:
    return sections(deployment).engines / "checkpoints" / model


def checkpoint_files(deployment: Deployment, model: Model) -> list[str]:
    ranks = range(rank_group(deployment, model).tp)
    return ["config.json", *(f"rank{rank}.safetensors" for rank in ranks)]


def source(
    deployment: Deployment, model: Model, checkpoints: Checkpoints, calibration: str
) -> dict[str, object]:
    """Everything that identifies a TensorRT-LLM checkpoint; the content of SOURCE."""
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
    """Whether the checkpoint is complete; UserError if it was made from something else."""
    folder = checkpoint_folder(deployment, model)
    if not folder.is_dir():
        return False
    wanted = source(deployment, model, checkpoints, calibration)
    try:
        has = read_object(folder / SOURCE, "checkpoint")
    except UserError:
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
class ConvertOptions:
    """The options that the deployment does not hold.

    examples          TensorRT-LLM's folder of examples
    calibration       FP8: a dataset's name, or a local folder that holds one
    calibration_size  FP8: number of samples
    workers           bf16: number of ranks that are converted at a time
    """

    examples: Path = EXAMPLES
    calibration: str = "cnn_dailymail"
    calibration_size: int = 512
    workers: int = 1


def command(
    deployment: Deployment, model: Model, output: Path, given: ConvertOptions
) -> tuple[str, ...]:
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


def step(
    deployment: Deployment, model: Model, checkpoints: Checkpoints, given: ConvertOptions
) -> BuildStep:
    folder = checkpoint_folder(deployment, model)

    def finish(half: Path) -> None:
        identity = source(deployment, model, checkpoints, given.calibration)
        (half / SOURCE).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    return BuildStep(
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


def convert(
    deployment: Deployment, only: str, given: ConvertOptions, *, again: bool, dry_run: bool
) -> None:
    """Make the checkpoints that are not ready, or all of them with `again`.

    A dry run prints what would be done. It needs no model folder where the deployment names the
    model's `shape`.
    """
    checkpoints = Checkpoints.of(deployment)
    wanted = models(only)
    if dry_run and (absent := absent_models(deployment)):
        ready = [m for m in wanted if not again and checkpoint_folder(deployment, m).is_dir()]
    else:
        absent = []
        check_models(deployment, checkpoints)
        kept = [] if again else wanted
        ready = [m for m in kept if is_ready(deployment, m, checkpoints, given.calibration)]
    todo = [model for model in wanted if model not in ready]
    steps = [step(deployment, model, checkpoints, given) for model in todo]
    done = [checkpoint_folder(deployment, model) for model in ready]
    if dry_run:
        print(describe(steps, done, absent))
        return
    for folder in done:
        print(f"checkpoint: {folder} is ready")
    if steps:
        preflight(deployment, todo, given.examples)
        run_steps(steps)


def preflight(deployment: Deployment, todo: list[Model], examples: Path) -> None:
    check_tensorrt_llm()
    build = sections(deployment)
    for model in todo:
        plain = engine_config(deployment, model).quantization == "none"
        check_script((converter if plain else quantizer)(examples))
    check_a_gpu()  # of any kind: checkpoints do not depend on it
    total = sum(sizes(deployment, model).total for model in todo)
    check_disk(build.engines, total, "the checkpoints")
