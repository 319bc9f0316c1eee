"""What labels are worth: mined against court against both, noise, how many, and how else to train.

    python build/judge_study.py --mined cache:mined-facts.jsonl --mined cache:mined-chat.jsonl \
        --court cache:court.jsonl --second cache:mined-facts-likelihood.jsonl

The first --mined file is what is studied: every figure is an AUC over its mismatches (tokens that a
draft really wrote and the target would not), each scored by a head that saw nothing of its fact,
with a 95 % bootstrap interval over facts. Parts, one or more (--part), all by default:

sources    a head a source, tested on every file; what a head is worth that knows the domain alone,
           and the target's own likelihood of the token (no training)
variants   features, class weights, likely tokens only, even domains
mixtures   court labels as a light addition
noise      training labels flipped with probability p
curve      fewer facts to train on
agreement  do two mining methods label the same token alike (--second)

Needs the hidden states that train_judge.py keeps in the cache, or the target to read them. Writes
DOCS/results/judge_study.json, row by row (an interrupted part goes on), and
DOCS/figures/judge_study.png; prints the tables of docs/training.md.
"""

import typer

from judge_decoding.training.studies.labels_study import main

if __name__ == "__main__":
    typer.run(main)
