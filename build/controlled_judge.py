"""Train the controlled pair's judge: exact labels, a head, a threshold.

    python build/controlled_judge.py

judge_decoding/training/controlled/judge.py explains the steps. `--labels-out` writes the labels in
the project's format, which train_judge.py reads too.
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
