"""Label answers by hand, in a terminal: read the question, go to the first error, mark it.

    python build/annotate.py answers.jsonl --out labels.jsonl --annotator kim

ANSWERS holds lines of {"prompt", "response"}, with "group", "domain" and "chat" where they are
known, or another producer's labels, which are not shown. The screen names the keys, and
judge_decoding/training/annotate.py explains them.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from judge_decoding.config.paths import resolve
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.training.annotate import Work, annotate, key_strokes, read_answers
from judge_decoding.training.labels import check_growing

TARGET = "cache:smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description="Label answers by hand, in a terminal.")
    option = parser.add_argument
    option("answers", type=Path, help="JSONL file of answers")
    option("--out", required=True, help="label file to write, or to go on with")
    option("--target", default=TARGET, help="the target's folder, for its tokenizer")
    option("--annotator", default="person", help="whose labels these are")
    choices = ("negative", "ignore", "error_only")
    option("--after-error", choices=choices, default="ignore", help="tokens after the error")
    option("--seed", type=int, default=0, help="the seed of build/court_labels.py, for the split")
    asked = parser.parse_args()
    name, console = asked.annotator, Console()
    try:
        out = resolve(asked.out)
        check_growing(out)
        tokenizer = Tokenizer(resolve(asked.target))
        answers = read_answers(asked.answers, tokenizer)
        origin = name if name == "person" else f"person_{name}"
        work = Work(answers, out, origin, asked.seed, asked.after_error)
        with work, suppress(KeyboardInterrupt), key_strokes() as keys:  # Ctrl-C: as q
            annotate(work, tokenizer, console, keys)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    left = len(work.todo) - work.at
    done = f"{asked.out}: {work.total - left} of {work.total} answers seen, {left} left"
    console.print(done, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
