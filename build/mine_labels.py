"""Mine labels for the judge from the draft's own mismatches, without annotators.

    python build/mine_labels.py --out cache:mined-facts.jsonl --limit 900
    python build/mine_labels.py --out cache:mined-chat.jsonl --method likelihood \
        --task text.jsonl.gz --limit 300
    mpiexec -n 5 python -m mpi4py.futures build/mine_labels.py --mpi --out labels.jsonl --task ...

judge_decoding/training/mining/run.py explains both methods, docs/labels.md the format and MPI. An
interrupted run continues where it stopped.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
