"""Mine labels for the judge from the draft's own mistakes, without annotators.

    python build/mine_labels.py --out cache:mined-facts.jsonl --limit 900
    python build/mine_labels.py --out cache:mined-chat.jsonl --method likelihood \
        --task text.jsonl.gz --limit 300
    mpiexec -n 5 python -m mpi4py.futures build/mine_labels.py --mpi --out labels.jsonl --task ...

The draft follows the target's greedy answer round by round, as in serving; every token of its that
differs from the target's is a *mismatch*, and a label:

search      AutoJudge (arXiv 2504.20039): the target goes on greedily from the draft's token. Where
            the final answer stays the same the token is good, and stays (the search is
            semi-greedy); else it is bad, and the target's own is put back.
likelihood  SelfJudge (arXiv 2510.02329): s = dlogP(token) + dlogP(the target's next 20 tokens),
            read after the swap; good where s > tau. One pass a mismatch, no generation.

Many prompts are in flight at once, and the models' passes are batched over them. The records are
those of `judge_decoding.training.labels`: one answer with its good swaps, and one more for each
swap that is not in it. An interrupted run goes on. With --mpi rank 0 writes, and the others mine
(docs/labels.md). The last line is what it cost, as JSON.
"""

import typer

from judge_decoding.training.mining.run import main

if __name__ == "__main__":
    typer.run(main)
