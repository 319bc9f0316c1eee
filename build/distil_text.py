"""Let the target write the text that the draft is distilled on.

    python build/distil_text.py text.jsonl.gz --count 6000 --own 0.7

Two kinds of user turns, both from distil_prompts.yaml: *templated* ones, and the target's *own*,
sampled from it after `<|im_start|>user` and an opener ("My landlord", "Help me"), since varied
prompts matter more than many: a draft trained on one kind agrees well there and poorly on a
person's prompts. The target answers all of them greedily, since that is what a draft must foresee.
One line an answer: {"prompt", "response_ids", "held_out"}; `held_out` "source" where the opener or
template is kept from training, "prompt" where the prompt alone is. Beside it, OUT.states: the
target's post-norm states that predicted the answers' tokens, raw bf16, which spares the training a
pass. A run that was interrupted goes on where it stopped.
"""

import typer

from judge_decoding.training.draft.target_text import main

if __name__ == "__main__":
    typer.run(main)
