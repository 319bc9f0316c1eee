"""Train a judge on labels and choose its threshold.

    python build/train_judge.py --labels cache:mined-facts.jsonl --labels cache:mined-chat.jsonl \
        --held-out-labels cache:court.jsonl --target cache:smollm2-135m-instruct.gguf

It writes the judge, its card beside it, DOCS/results/judge_training.json and
DOCS/figures/judge_*.png. judge_decoding/training/judge/threshold.py explains the three ways to
choose a threshold, docs/training.md everything else.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
