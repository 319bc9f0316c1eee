"""Train the judge: a linear head on the target's hidden states that knows a correct token.

    python build/train_judge.py --labels cache:mined-facts.jsonl --labels cache:mined-chat.jsonl \
        --held-out-labels cache:court.jsonl --target cache:smollm2-135m-instruct

StandardScaler and L2 logistic regression on features read through the target's verify pass. The
feature (before or after the final norm) and the strength are chosen by cross-validation grouped by
fact, on the tokens that matter: mismatches, since all others are accepted anyway, and of them the
mined ones where there are any, which are the draft's own. The threshold, one of:

--bad-recall 0.95        (default) the smallest that refuses this share of the bad tokens that
                         count, each scored by a head that saw nothing of its fact
--threshold 0.5          fixed; the paper's
--max-quality-drop 0.01  the smallest of --try that loses at most this accuracy, upper confidence
                         bound, on a task answered through the real loop (--deployment, --task);
                         1, the standard rule, where none does

Writes the judge, its card beside it, DOCS/results/judge_training.json and DOCS/figures/judge_*.png.
See docs/training.md.
"""

import typer

from judge_decoding.training.judge.train import main

if __name__ == "__main__":
    typer.run(main)
