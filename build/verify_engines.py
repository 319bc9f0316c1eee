"""Check on the serving machine that the engines fit the deployment and decode.

    python build/verify_engines.py --config configs/llama-8b-70b-h100x2.yaml [--baseline]

judge_decoding/trtllm/build/verify.py lists the checks. Exit code 1: one of them failed.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
