"""How well drafts foresee the target: agreement and the acceptance length of `strict`.

    python build/distil_eval.py models/smollm2-135m-draft other/ --text text.jsonl.gz

On what the text holds out (build/distil_text.py) and on the benchmark's first 40 prompts, which the
target answers first. Both are exact without a loop: greedy verification reads the target's own
text, so that it is enough to know where the draft, fed that text, foresees the next token.
"""

import typer

from judge_decoding.training.draft.agreement import main

if __name__ == "__main__":
    typer.run(main)
