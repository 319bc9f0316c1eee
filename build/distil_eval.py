"""Measure how well drafts predict the target: agreement, and acceptance length of `strict`.

    python build/distil_eval.py models/smollm2-135m-draft other/ --text text.jsonl.gz

They are measured on the text's held-out answers, and on the benchmark's first 40 prompts, which the
target answers first.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
