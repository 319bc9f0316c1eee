"""Hugging Face checkpoints -> TensorRT-LLM checkpoints, bf16 or FP8, one shard a rank.

    python build/convert_checkpoint.py --config configs/llama-8b-70b-h100x2.yaml [--dry-run]

Runs the container's own scripts, whose options are those of TensorRT-LLM 1.2.1:
examples/models/core/llama/convert_checkpoint.py for bf16, examples/quantization/quantize.py
(modelopt) for FP8; the FP8 options are those of its own draft-target test
(tests/integration/defs/examples/test_draft_target_model.py). Makes `checkpoints/draft` and
`checkpoints/target` under `trtllm.engines`. What is ready is left alone; `--again` redoes it.
"""

import typer

from judge_decoding.trtllm.build.convert import main

if __name__ == "__main__":
    typer.run(main)
