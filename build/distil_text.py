"""Let the target write the text that a draft is distilled on.

    python build/distil_text.py text.jsonl.gz --count 6000 --own 0.7

Some prompts come from templates and the others (`--own`) from the target itself. The target answers
all of them greedily. judge_decoding/training/draft/target_text.py describes the format. An
interrupted run continues where it stopped.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
