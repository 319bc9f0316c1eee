"""What perf_analyzer sends: one row of tensors a prompt, taken in turn by its streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.wire import JudgeClientError

CHAT_PROMPTS = Path(__file__).resolve().parents[2] / "judge_decoding" / "data/chat_prompts.jsonl"
"""The package's own, in a source checkout."""


def read_prompts(path: Path | None = None) -> list[str]:
    """Lines of {"prompt": text}; None reads the package's chat prompts."""
    path = path or CHAT_PROMPTS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeClientError(f"prompts: cannot read {path} ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise JudgeClientError(f"prompts: {path} line {number} is not JSON ({error})") from None
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise JudgeClientError(f'prompts: {path} line {number} must be {{"prompt": "text"}}')
        prompts.append(text)
    if not prompts:
        raise JudgeClientError(f"prompts: {path} holds none")
    return prompts


def input_data(
    prompts: Sequence[str], rule: str, max_tokens: int, draft_len: int | None = None
) -> dict[str, Any]:
    """perf_analyzer's `--input-data`: each prompt a chat turn, streamed, greedy.

    draft_len  `max_draft_len` of every request; None leaves it to the deployment
    """
    shared: dict[str, Any] = {
        "chat": [True],
        "stream": [True],
        "max_tokens": [max_tokens],
        "acceptance_rule": [rule],
    }
    if draft_len is not None:
        shared["max_draft_len"] = [draft_len]
    return {"data": [{"text_input": [text], **shared} for text in prompts]}
