"""The prompts of a benchmark: JSON lines of {"prompt": text}."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from judge_decoding.errors import UserError


def read_prompts(path: Path | None) -> list[str]:
    """The prompts of a file; None reads the 48 chat prompts of the package.

    UserError names the file and the line that is wrong.
    """
    where = path or resources.files("judge_decoding") / "data" / "chat_prompts.jsonl"
    try:
        lines = where.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: cannot read {path} ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"prompts: {path} line {number} is not JSON ({error})") from None
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'prompts: {path} line {number} must be {{"prompt": "text"}}')
        prompts.append(text)
    if not prompts:
        raise UserError(f"prompts: {path} holds none")
    return prompts
