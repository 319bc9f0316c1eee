"""Write the shipped tasks `court`, `arithmetic` and `chat`; writing again gives the same files.

python build/export_tasks.py
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.evaluation.prompts import read_prompts
from judge_decoding.evaluation.task import write_task
from judge_decoding.training.court.export import arithmetic, chat, court

FOLDER = Path(__file__).resolve().parents[1] / "judge_decoding" / "data" / "tasks"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the shipped tasks `court`, `arithmetic` and `chat`."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed of build/court_labels.py (default: 0)"
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder to write to (default: the package's)"
    )
    asked = parser.parse_args()
    try:
        tasks = {
            "court": list(court(asked.seed)),
            "arithmetic": list(arithmetic(asked.seed)),
            "chat": list(chat(read_prompts(None))),
        }
    except UserError as error:
        parser.exit(2, f"export_tasks: {error}\n")
    for name, items in tasks.items():
        path = asked.out / f"{name}.jsonl"
        write_task(path, items)
        print(f"{path}: {len(items)} items, {path.stat().st_size / 1000:.0f} kB")
        print(f"  {dict(Counter(item.domain for item in items))}")


if __name__ == "__main__":
    main()
