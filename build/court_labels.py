"""Write answers to questions about facts, with labels: each token is good, bad or ignored.

    python build/court_labels.py --limit 1400 --answers 1
    python build/court_labels.py --target models/my-llama --out court.jsonl

The shipped judge is trained on labels that mine_labels.py makes, and reported on these
(docs/training.md says why, docs/labels.md has the format). Only the target's tokenizer is read.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
