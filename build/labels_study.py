"""Compare labels and ways to train a judge.

    python build/labels_study.py --mined cache:mined-facts.jsonl --mined cache:mined-chat.jsonl \
        --court cache:court.jsonl --second cache:mined-facts-likelihood.jsonl

judge_decoding/training/studies/labels_study.py explains the parts. It needs the hidden states that
train_judge.py keeps in the cache, or the target to read them. It writes
DOCS/results/judge_study.json and DOCS/figures/judge_study.png, and prints the tables of
docs/training.md.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
