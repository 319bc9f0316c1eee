"""A tiny deployment and a task whose answers are the tiny target's own, so it is always right."""

from __future__ import annotations

from pathlib import Path

import yaml

from judge_decoding.config import load_deployment
from judge_decoding.evaluation.evaluate import evaluate
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.systems import systems_of
from judge_decoding.evaluation.task import write_task
from judge_decoding.pipeline import load_pipeline


def write_tiny_task(folder: Path, target: Path, draft: Path) -> Path:
    """Writes tiny.yaml and own.jsonl; returns the path of tiny.yaml."""
    path = folder / "tiny.yaml"
    config = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(target)},
        "draft": {"model": str(draft)},
        "max_draft_len": 4,
        "limits": {"max_sequences": 4, "max_context": 128},
    }
    path.write_text(yaml.safe_dump(config))
    pipeline = load_pipeline(load_deployment(path))
    items = [
        Item(id=f"q{n}", group=f"g{n}", domain="d", prompt=f"Say {n}", parser="none", max_tokens=8)
        for n in range(24)
    ]
    found = evaluate(pipeline, items, systems_of(pipeline, ["none"]))
    asked = [
        item.model_copy(update={"parser": "exact", "answer": result.text})
        for item, result in zip(items, found.answers[0].results, strict=True)
        if result.text.strip()
    ]
    assert len(asked) >= 15
    write_task(folder / "own.jsonl", asked)
    return path
