"""What perf_analyzer sends: one row of tensors per prompt, which its streams take in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def input_data(
    prompts: Sequence[str], rule: str, max_tokens: int, draft_len: int | None = None
) -> dict[str, Any]:
    """perf_analyzer's `--input-data`: each prompt is a chat turn, streamed and greedy.

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
