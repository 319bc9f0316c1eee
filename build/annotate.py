"""Label answers by hand, in a terminal: read the question, go to the first error, mark it.

    python build/annotate.py answers.jsonl --out labels.jsonl --annotator kim

ANSWERS holds lines of {"prompt", "response"}, optionally with "group", "domain" and "chat". It may
also hold another producer's labels, which are not shown. The screen lists the keys, and
judge_decoding/training/annotate.py explains them.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
