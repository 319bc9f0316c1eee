"""Train the controlled pair: a small target that can do the task, a draft that errs now and then.

    OMP_NUM_THREADS=1 python build/controlled_pair.py target
    OMP_NUM_THREADS=1 python build/controlled_pair.py draft

Both are Llamas from scratch on text of `controlled_task`, each in its own writer's wording, with a
loss on answers alone. Muon for the matrices, AdamW for embeddings and norms. The target reads text
without slips first and with slips later.
The same tokenizer goes into both folders: a word is a token, a number is a token.
"""

import typer

from judge_decoding.training.controlled.pair import main

if __name__ == "__main__":
    typer.run(main)
