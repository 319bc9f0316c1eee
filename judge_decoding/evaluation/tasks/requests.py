"""Tasks `explain` and `chat`: prompts without a right answer, from requests.yaml.

A group is a topic: it is in one split. `chat` begins with the 48 prompts that the draft is measured
with (`evaluation.prompts`). They are never trained on, so their split is `report`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from judge_decoding.evaluation.item import Item, third_of
from judge_decoding.evaluation.prompts import read_prompts

MAX_TOKENS = {"explain": 320, "chat": 256}
BENCHMARK_TOKENS = 128
"""Limit of the 48 prompts, to which docs/results refer."""


def explain_items() -> list[Item]:
    """Every topic in each form of its kind."""
    return list(_items("explain"))


def chat_items() -> list[Item]:
    """The benchmark's prompts, then every topic in each form of its kind."""
    return [*map(_benchmark, read_prompts(None)), *_items("chat")]


def _items(task: str) -> Iterator[Item]:
    import yaml

    path = Path(__file__).with_name("requests.yaml")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))[task]
    for kind, topics in content["topics"].items():
        for place, topic in enumerate(topics):
            for number, form in enumerate(content["forms"][kind]):
                prompt = form.format(t=topic)
                yield Item(
                    id=f"{task}-{kind}-{place:02}-{number}",
                    group=f"{task}:{topic}",
                    domain=kind,
                    prompt=prompt[0].upper() + prompt[1:],
                    parser="none",
                    max_tokens=MAX_TOKENS[task],
                    split=third_of(f"{task}:{topic}"),
                )


def _benchmark(prompt: str) -> Item:
    name = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return Item(
        id=name,
        group=name,
        domain="chat",
        prompt=prompt,
        parser="none",
        max_tokens=BENCHMARK_TOKENS,
        split="report",
    )
