"""Write the tasks that the package ships; writing them again gives the same files.

python build/export_tasks.py
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
