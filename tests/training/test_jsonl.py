"""Lines of JSON for all of their readers: what ends a line, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judge_decoding.evaluation import import_questions, prompts
from judge_decoding.evaluation.task import read_task
from judge_decoding.serving.audit_log import read_log
from judge_decoding.text import Tokenizer
from judge_decoding.training import annotate
from judge_decoding.training.labels import read_labels
from judge_decoding.training.mining.label_file import LabelFile

TEXT = "a\u2028b\x85c\u2029d"
"""Three line ends to str.splitlines() that are none to JSON; web text is full of them."""
LABELS: dict[str, Any] = {"id": "1", "group": "g", "domain": "d", "prompt": TEXT, "response": "r"}
ITEM = {"id": "1", "group": "g", "domain": "d", "prompt": TEXT, "answer": "1", "parser": "number"}
LOGGED = {"time": 1.0, "rule": "judge", "prompt_ids": [1], "token_ids": [2], "max_tokens": 2}


def resumed(path: Path, _: Path) -> list[Any]:
    """The prompts that a mining run does not mine again."""
    path.with_name(f"{path.name}.run.json").write_text("{}")
    return list(LabelFile(path, {}).known)


READERS: dict[str, tuple[dict[str, Any], Callable[[Path, Path], list[Any]]]] = {
    "cli": ({"prompt": TEXT}, lambda path, _: prompts.read_prompts(path)),
    "task": (ITEM, lambda path, _: read_task(path)),
    "labels": (
        LABELS | {"response_ids": [1], "spans": [], "split": "train"},
        lambda path, _: read_labels([path]),
    ),
    "mining": (
        LABELS | {"id": "1-mined", "response_ids": [1], "spans": [], "split": "train"},
        resumed,
    ),
    "audit": (
        LOGGED | {"provenance": ["judged"], "finish_reason": "stop", "stop_words": [TEXT]},
        lambda path, _: read_log(path).entries[0].stop_words,
    ),
    "import": (
        {"question": TEXT, "answer": "it is 1 #### 1"},
        lambda path, _: import_questions.read_rows(path, "d", "train"),
    ),
    "annotate": (
        {"prompt": TEXT, "response": "r"},
        lambda path, target: annotate.read_answers(path, Tokenizer(target)),
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_line_feed_ends_a_line(
    tmp_path: Path, tiny_target: Path, reader: str, end: str
) -> None:
    row, read = READERS[reader]
    path = tmp_path / "rows.jsonl"
    path.write_bytes((json.dumps(row, ensure_ascii=False) + end).encode())
    (found,) = read(path, tiny_target)
    assert TEXT in (found if isinstance(found, str) else found.prompt)
