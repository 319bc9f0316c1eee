"""Turn local files of known question sets into a task, to mine labels from or to evaluate on.

    python build/import_questions.py gsm8k/train.jsonl --out gsm8k-train.jsonl
    python build/import_questions.py arc/test.jsonl --out arc.jsonl --split halves

Lines of three forms are known, whatever the file's name; nothing is downloaded:

    {"question": "...", "answer": "... #### 42"}                                   GSM8K
    {"question": {"stem": "...", "choices": [{"text", "label"}...]}, "answerKey"}  ARC
    {"question": "...", "choices": {"text": [...], "label": [...]}, "answerKey"}   ARC, flat

Writes the task file that `judge-decoding eval --task` and build/mine_labels.py --task read
(judge_decoding.evaluation.task): parser number for the first, choice for the others.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from judge_decoding.errors import UserError
from judge_decoding.evaluation.parsers import LETTERS, last_number
from judge_decoding.evaluation.task import Item, Split, write_task

NUMBER = "{question}\n\nThink step by step, and end with: The answer is NUMBER."
CHOICE = "{question}\n\n{choices}\n\nEnd with: The answer is LETTER."
MAX_TOKENS = {"number": 320, "choice": 160}


def item_from(row: Any, domain: str, split: str) -> Item:
    """ValueError says what is wrong with the row."""
    if not isinstance(row, dict) or "question" not in row:
        raise ValueError("no question")
    question = row["question"]
    if "answerKey" in row:
        stem, pairs = _choices(question, row)
        prompt, answer, letters = _lettered(stem, pairs, str(row["answerKey"]))
        parser = "choice"
    elif isinstance(question, str) and "####" in str(row.get("answer")):
        prompt, letters = NUMBER.format(question=question.strip()), []
        answer = last_number(row["answer"].rsplit("####", 1)[1]) or ""
        if not answer:
            raise ValueError("no number after ####")
        parser = "number"
    else:
        raise ValueError("neither an answerKey nor an answer with ####")
    name = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    return Item(
        id=name,
        group=f"{domain}:{name}",
        domain=domain,
        prompt=prompt,
        answer=answer,
        parser=parser,  # type: ignore[arg-type]
        choices=letters,
        max_tokens=MAX_TOKENS[parser],
        split=half_of(name) if split == "halves" else None,
    )


def _choices(question: Any, row: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The stem, and (label, text) of the choices."""
    try:
        if isinstance(question, dict):
            return question["stem"], [(c["label"], c["text"]) for c in question["choices"]]
        flat = row["choices"]
        return question, list(zip(flat["label"], flat["text"], strict=True))
    except (KeyError, TypeError, ValueError):
        raise ValueError("its choices have no labels and texts") from None


def _lettered(stem: str, pairs: list[tuple[str, str]], key: str) -> tuple[str, str, list[str]]:
    """Prompt, answer and letters; some questions number their choices, and get letters."""
    labels = [label for label, _ in pairs]
    if key not in labels:
        raise ValueError(f"answerKey {key!r} is none of {labels}")
    if len(pairs) > len(LETTERS):
        raise ValueError(f"{len(pairs)} choices, more than {len(LETTERS)}")
    letters = list(LETTERS[: len(pairs)])
    listed = "\n".join(f"{a}. {text.strip()}" for a, (_, text) in zip(letters, pairs, strict=True))
    prompt = CHOICE.format(question=stem.strip(), choices=listed)
    return prompt, letters[labels.index(key)], letters


def half_of(name: str) -> Split:
    odd = hashlib.sha256(f"half {name}".encode()).digest()[0] % 2
    return "report" if odd else "calibrate"


def read_rows(path: Path, domain: str, split: str) -> list[Item]:
    """UserError names the line that is wrong."""
    if not path.is_file():
        raise UserError(f"import: no file {path}")
    items: dict[str, Item] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = item_from(json.loads(line), domain, split)
        except ValueError as error:  # a JSONDecodeError is one too
            raise UserError(f"import: {path}:{number}: {error}") from None
        items[item.id] = item  # a question that is there twice is taken once
    return list(items.values())


def main(
    source: Annotated[Path, typer.Argument(help="JSONL file")],
    out: Annotated[Path, typer.Option(help="task file to write")],
    domain: Annotated[str, typer.Option(help="default: the source's name")] = "",
    split: Annotated[
        str, typer.Option(help="none (to mine from), or halves: calibrate and report")
    ] = "none",
    limit: Annotated[int, typer.Option(min=0, help="questions, 0 for all")] = 0,
) -> None:
    try:
        if split not in ("none", "halves"):
            raise UserError(f"import: split {split!r} is not none or halves")
        items = read_rows(source, domain or source.stem, split)[: limit or None]
        if not items:
            raise UserError(f"import: {source} holds no questions")
        write_task(out, items)
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(f"{out}: {len(items)} items, parser {', '.join(sorted({i.parser for i in items}))}")


if __name__ == "__main__":
    typer.run(main)
