"""Build TensorRT engines of draft and target, with the judge inside the target's.

    python build/build_engines.py --config configs/llama-8b-70b-h100x2.yaml [--dry-run]

`trtllm-build` does the work (judge_decoding/trtllm/build/engines.py). Finished engines are kept
unless `--again` is given. `--baseline` also builds what verify_engines.py compares with.
`--dry-run` prints the commands, even without the models.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
