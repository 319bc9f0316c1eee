"""Make TensorRT-LLM checkpoints of draft and target, bf16 or FP8.

    python build/convert_checkpoint.py --config configs/llama-8b-70b-h100x2.yaml [--dry-run]

The container's own scripts do the work (judge_decoding/trtllm/build/convert.py). Finished
checkpoints are kept unless `--again` is given. `--dry-run` prints the commands, even without the
models.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
