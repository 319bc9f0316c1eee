"""The prompts of a benchmark: JSON lines of {"prompt": text}."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.files import JsonError, parse_json, read_lines


def read_prompts(path: Path | None) -> list[str]:
    """The prompts of a file; None reads the 48 chat prompts of the package.

    UserError names the file and the line that is wrong.
    """
    where = path or Path(str(resources.files("judge_decoding") / "data" / "chat_prompts.jsonl"))
    prompts = []
    for number, line, _ in read_lines(where, "prompts"):
        try:
            row = parse_json(line)
        except JsonError as error:
            raise UserError(f"prompts: {path} line {number} is not JSON ({error})") from None
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'prompts: {path} line {number} must be {{"prompt": "text"}}')
        prompts.append(text)
    if not prompts:
        raise UserError(f"prompts: {path} holds none")
    return prompts
