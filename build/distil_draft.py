"""Distil a draft from the target's own text.

    python build/distil_text.py text.jsonl.gz --count 6000
    python build/distil_draft.py text.jsonl.gz --out models/smollm2-135m-draft --minutes 50

judge_decoding/training/draft/distil.py describes the method.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
