"""Write labelled answers to court questions: each token good, bad or not to be used.

    python build/court_labels.py --limit 1400 --answers 1
    python build/court_labels.py --target models/my-llama --out court.jsonl

The shipped judge is trained on labels that mine_labels.py makes; it is reported on these
(docs/training.md says why, docs/labels.md has the format). Only the target's tokenizer is read.
"""

from __future__ import annotations

import argparse
from collections import Counter

from judge_decoding.config.paths import resolve
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.training.court.facts import questions
from judge_decoding.training.court.records import fact_records
from judge_decoding.training.labels import write_labels


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description="Write labelled answers to questions about facts: right ones, and wrong ones "
        "with exactly one mistake, whose tokens are marked."
    )
    parser.add_argument(
        "--target",
        default="cache:smollm2-135m-instruct",
        help="folder of the target, for its tokenizer (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        default="cache:court.jsonl",
        help="label file to write, gzipped if its name ends in .gz (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the questions and their split (default: 0)"
    )
    parser.add_argument("--limit", type=int, default=0, help="number of questions, 0 for all")
    parser.add_argument(
        "--answers",
        type=int,
        default=2,
        help="right answers per question, and as many wrong ones (default: 2)",
    )
    parser.add_argument(
        "--after-error",
        choices=("negative", "ignore", "error_only"),
        default="ignore",
        help="tokens after the error are bad (negative), not used (ignore) or good (error_only); "
        "default: %(default)s",
    )
    return parser, parser.parse_args()


def main() -> None:
    parser, asked = parse()
    try:
        if asked.limit < 0:
            raise UserError(f"--limit: {asked.limit} is below 0; 0 takes all questions")
        if asked.answers < 1:
            raise UserError(f"--answers: {asked.answers} is below 1, the least that can be written")
        records = list(
            fact_records(
                questions(asked.seed)[: asked.limit or None],
                Tokenizer(resolve(asked.target)),
                seed=asked.seed,
                answers=asked.answers,
                after_error=asked.after_error,
            )
        )
        write_labels(resolve(asked.out), records)
    except UserError as error:
        parser.exit(2, f"court_labels: {error}\n")
    counts = Counter((record.domain, record.split) for record in records)
    for domain in sorted({record.domain for record in records}):
        train, heldout = counts[domain, "train"], counts[domain, "heldout"]
        print(f"{domain:15} {train:5} answers to train on, {heldout:4} held out")
    labels = Counter(label for record in records for label, _ in record.token_labels())
    print(f"{asked.out}: {len(records)} answers, tokens {dict(labels)}")


if __name__ == "__main__":
    main()
