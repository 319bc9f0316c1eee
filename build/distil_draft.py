"""Distil the demo draft: a few layers of the target's width that foresee the target's own text.

    python build/distil_text.py text.jsonl.gz --count 6000
    python build/distil_draft.py text.jsonl.gz --out models/smollm2-135m-draft --minutes 50

The draft is a Llama of its own that shares the target's embeddings and LM head (frozen, so not
shipped), its layers copied from the target's, or from a draft that is trained on (`--init`). It is
trained to the target's distribution over a short-list of the most frequent ids (the full head
would be most of a small draft's step) and to the target's last hidden state, on answers the target
wrote. Those states come from distil_text.py or are computed once, when a batch is first seen.

The text is the target's, not the draft's own: under `strict` a draft only ever continues what the
target itself would have written.
"""

import typer

from judge_decoding.training.draft.distil import main

if __name__ == "__main__":
    typer.run(main)
