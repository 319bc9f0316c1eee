"""Train the controlled pair: a target that can do the task and a draft that sometimes errs.

    OMP_NUM_THREADS=1 python build/controlled_pair.py target
    OMP_NUM_THREADS=1 python build/controlled_pair.py draft
    python build/controlled_pair.py text --count 3     # problems and both writers' answers

docs/controlled.md describes the pair.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
