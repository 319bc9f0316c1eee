"""Make TensorRT-LLM checkpoints of draft and target, bf16 or FP8.

    python build/convert_checkpoint.py --config configs/llama-8b-70b-h100x2.yaml [--dry-run]

The container's own scripts do the work (judge_decoding/trtllm/build/convert.py). What is ready is
left alone; `--again` redoes it. `--dry-run` prints the commands, also where no model is at hand.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
