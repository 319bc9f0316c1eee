"""Local files of known question sets as tasks, to mine labels from or to evaluate on.

Each line has one of three forms, and the file may mix them; nothing is downloaded:

    {"question": "...", "answer": "... #### 42"}                                   GSM8K
    {"question": {"stem": "...", "choices": [{"text", "label"}...]}, "answerKey"}  ARC
    {"question": "...", "choices": {"text": [...], "label": [...]}, "answerKey"}   ARC, flat

The items have parser `number` for the first form and `choice` for the others.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from judge_decoding.errors import UserError, shorten
from judge_decoding.evaluation.item import Item, ParserName, half_of
from judge_decoding.evaluation.parsers import LETTERS, last_number
from judge_decoding.files import parse_json, read_lines

NUMBER = "{question}\n\nThink step by step, and end with: The answer is NUMBER."
CHOICE = "{question}\n\n{choices}\n\nEnd with: The answer is LETTER."
MAX_TOKENS: dict[ParserName, int] = {"number": 320, "choice": 160}


def item_from(row: Any, domain: str, split: str) -> Item:
    """The task item of one line; ValueError says what is wrong with the row.

    split  "halves" puts the item in `calibrate` or `report`, "none" in neither
    """
    if not isinstance(row, dict) or "question" not in row:
        raise ValueError("no question")
    question = row["question"]
    parser: ParserName
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
        parser=parser,
        choices=letters,
        max_tokens=MAX_TOKENS[parser],
        split=half_of(name) if split == "halves" else None,
    )


def _choices(question: Any, row: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The stem and each choice's (label, text)."""
    try:
        if isinstance(question, dict):
            return question["stem"], [(c["label"], c["text"]) for c in question["choices"]]
        flat = row["choices"]
        return question, list(zip(flat["label"], flat["text"], strict=True))
    except (KeyError, TypeError, ValueError):
        raise ValueError("its choices have no labels and texts") from None


def _lettered(stem: str, pairs: list[tuple[str, str]], key: str) -> tuple[str, str, list[str]]:
    """Prompt, answer and letters. Numbered choices get letters, too."""
    labels = [label for label, _ in pairs]
    if key not in labels:
        raise ValueError(f"answerKey {key!r} is none of {labels}")
    if len(pairs) > len(LETTERS):
        raise ValueError(f"{len(pairs)} choices, more than {len(LETTERS)}")
    letters = list(LETTERS[: len(pairs)])
    listed = "\n".join(f"{a}. {text.strip()}" for a, (_, text) in zip(letters, pairs, strict=True))
    prompt = CHOICE.format(question=stem.strip(), choices=listed)
    return prompt, letters[labels.index(key)], letters


def read_rows(path: Path, domain: str, split: str) -> list[Item]:
    """The items of a file, each question once; UserError names the line that is wrong."""
    if not path.is_file():
        raise UserError(f"import: no file {path}")
    items: dict[str, Item] = {}
    for number, line, _ in read_lines(path, "import"):
        try:
            item = item_from(parse_json(line), domain, split)
        except ValueError as error:  # a JsonError is one too
            raise UserError(f"import: {path}:{number}: {shorten(error)}") from None
        items[item.id] = item
    return list(items.values())
