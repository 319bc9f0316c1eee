"""Turn a local file of GSM8K's or ARC's questions into a task.

    python build/import_questions.py gsm8k/train.jsonl --out gsm8k-train.jsonl
    python build/import_questions.py arc/test.jsonl --out arc.jsonl --split halves

`judge-decoding eval --task` and build/mine_labels.py --task read what it writes.
judge_decoding/evaluation/import_questions.py describes the lines that it accepts.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
