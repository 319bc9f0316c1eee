"""`prepare-pytorch-target`: the judged target for TensorRT-LLM's PyTorch backend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import Config
from judge_decoding.config import load_deployment
from judge_decoding.trtllm.pytorch.compat import generation_of, installed_generation
from judge_decoding.trtllm.pytorch.prepare import TRITON, prepare, serve_command


def prepare_pytorch_target(
    config: Config,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    served: Annotated[
        Path | None, typer.Option(help="The target's weights, quantized; else target.model.")
    ] = None,
    llmapi: Annotated[
        Path | None,
        typer.Option(help="Triton's all_models/llmapi/tensorrt_llm: also make its repository."),
    ] = None,
    tensorrt_llm: Annotated[
        str | None, typer.Option(help="Version to prepare for, if it is not installed here.")
    ] = None,
) -> None:
    """Make the folder that TensorRT-LLM's PyTorch backend serves as the judged target."""
    deployment = load_deployment(config)
    generation = generation_of(tensorrt_llm) if tensorrt_llm else installed_generation()
    made = prepare(deployment, out, generation, served=served, llmapi=llmapi)
    print(f"{made.folder}: judge {made.judge}, threshold {made.threshold:g}")
    print(serve_command(made.folder))
    if llmapi is not None:
        print(f"tritonserver --model-repository {made.folder / TRITON}")
