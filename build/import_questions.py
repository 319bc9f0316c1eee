"""Turn a local file of GSM8K's or ARC's questions into a task.

    python build/import_questions.py gsm8k/train.jsonl --out gsm8k-train.jsonl
    python build/import_questions.py arc/test.jsonl --out arc.jsonl --split halves

`judge-decoding eval --task` and build/mine_labels.py --task read what it writes
(judge_decoding/evaluation/task.py). judge_decoding/evaluation/import_questions.py has the three
forms of lines that are understood.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.evaluation.import_questions import read_rows
from judge_decoding.evaluation.task import write_task


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description="Turn a local file of GSM8K's or ARC's questions into a task."
    )
    parser.add_argument("source", type=Path, help="JSONL file of questions")
    parser.add_argument("--out", type=Path, required=True, help="task file to write")
    parser.add_argument("--domain", default="", help="the items' domain (default: SOURCE's name)")
    parser.add_argument(
        "--split",
        choices=("none", "halves"),
        default="none",
        help="halves: into calibrate and report, to evaluate on; none (default): to mine from",
    )
    parser.add_argument("--limit", type=int, default=0, help="number of questions, 0 for all")
    return parser, parser.parse_args()


def main() -> None:
    parser, asked = parse()
    try:
        if asked.limit < 0:
            raise UserError(f"--limit: {asked.limit} is below 0; 0 takes all questions")
        items = read_rows(asked.source, asked.domain or asked.source.stem, asked.split)
        items = items[: asked.limit or None]
        if not items:
            raise UserError(f"import: {asked.source} holds no questions")
        write_task(asked.out, items)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    parsers = ", ".join(sorted({item.parser for item in items}))
    print(f"{asked.out}: {len(items)} items, parser {parsers}")


if __name__ == "__main__":
    main()
