"""Write the tasks that the package ships; every run writes the same files.

python build/export_tasks.py
"""

from judge_decoding.commands.registry import run_script

if __name__ == "__main__":
    run_script(__file__)
