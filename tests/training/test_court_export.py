"""The shipped tasks are what the script writes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from judge_decoding.evaluation.task import read_task, task_names
from judge_decoding.training.court.export import arithmetic, court
from judge_decoding.training.court.split import split_of

SCRIPT = Path(__file__).resolve().parents[2] / "build" / "export_tasks.py"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the script has written to."""
    pytest.importorskip("num2words", reason="facts come from the build extra")
    folder = tmp_path_factory.mktemp("tasks")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "court.jsonl: 1253 items, 294 kB" in done.stdout
    return folder


@pytest.mark.parametrize("name", ["court", "arithmetic", "controlled"])
def test_the_shipped_tasks_are_what_the_script_writes(name: str, written: Path) -> None:
    shipped = resources.files("judge_decoding") / "data" / "tasks" / f"{name}.jsonl"
    assert shipped.read_bytes() == (written / f"{name}.jsonl").read_bytes()
    assert name in task_names() and len(shipped.read_bytes()) <= 300_000
    items = read_task(name)
    if name == "court":
        assert {split_of(one.group, 0) for one in items} == {"heldout"}
        assert len({one.domain for one in items}) >= 6
        halves = Counter(one.split for one in items)
        assert min(halves["calibrate"], halves["report"]) > 500


def test_another_seed_gives_other_items() -> None:
    pytest.importorskip("num2words", reason="facts come from the build extra")
    assert {i.prompt for i in arithmetic(1)} & {i.prompt for i in arithmetic(0)} == set()
    ones, zeros = ({i.group for i in court(seed)} for seed in (1, 0))
    assert ones - zeros and zeros - ones
