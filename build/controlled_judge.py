"""The controlled pair's judge: exact labels from the draft's own text, a head, a threshold.

    python build/controlled_judge.py

1. The draft answers training problems. Every word is checked by the task's grammar (`Reader`): good
   while the answer stays true in any wording, bad where it first says something false. There the
   target's own word takes over, as in a round of decoding, and the draft goes on. So every label is
   of a token after a true beginning: a prefix rule lives or dies by its first false token, and what
   is right after a false one has no answer. Mistakes are few; more are put in by hand (`put_in`).
2. The target's hidden states at those words, through its verify pass; a linear head is trained on
   the mismatches (words that the target would not have written: the others are accepted anyway).
   Bad is also a true word after which the target itself would come to say something false
   (`leads_astray`): a number that it takes for another one, say.
3. The threshold: the smallest within the quality budget on the task's split `calibrate`, of the
   first budget that lets any pass.

`--labels-out` writes the labels of 1. in the project's format, which build/train_judge.py reads
too.
"""

import typer

from judge_decoding.training.controlled.judge import main

if __name__ == "__main__":
    typer.run(main)
