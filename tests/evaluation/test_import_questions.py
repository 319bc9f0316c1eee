"""Known question sets as tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from judge_decoding.evaluation.parsers import is_right
from judge_decoding.evaluation.task import read_task

SCRIPT = Path(__file__).resolve().parents[2] / "build" / "import_questions.py"
GSM8K = {
    "question": "Ann has 1,000 nuts and buys 42 more. How many has she? ",
    "answer": "1,000 + 42 = <<1000+42=1042>>1042\n#### 1,042",
}
ARC = {
    "id": "a1",
    "question": {
        "stem": "Which is hot?",
        "choices": [{"text": "ice", "label": "1"}, {"text": "the sun", "label": "2"}],
    },
    "answerKey": "2",
}
FLAT = {
    "id": "a2",
    "question": "Which is cold?",
    "choices": {"text": ["fire", "ice", "lava"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}


def run(folder: Path, rows: list[dict], *options: str) -> subprocess.CompletedProcess[str]:
    source = folder / "set.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(SCRIPT), str(source), "--out", str(folder / "task.jsonl")]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def test_the_three_forms_become_items_that_can_be_checked(tmp_path):
    done = run(tmp_path, [GSM8K, ARC, FLAT, FLAT])
    assert done.returncode == 0, done.stderr
    assert "3 items, parser choice, number" in done.stdout
    sums, hot, cold = read_task(tmp_path / "task.jsonl")
    assert (sums.parser, sums.answer, sums.domain, sums.split) == ("number", "1042", "set", None)
    assert sums.prompt.startswith("Ann has 1,000 nuts and buys 42 more. How many has she?\n")
    assert is_right(sums, "1,000 and 42 is 1,042. The answer is 1042.")
    assert not is_right(sums, "The answer is 1041.")
    assert hot.prompt.startswith("Which is hot?\n\nA. ice\nB. the sun\n")
    assert (hot.answer, hot.choices) == ("B", ["A", "B"])
    assert is_right(cold, "Ice is cold. The answer is B.")
    assert not is_right(cold, "The answer is C.")


def test_halves_for_evaluation(tmp_path):
    rows = [GSM8K | {"question": f"{n} nuts?"} for n in range(60)]
    assert run(tmp_path, rows, "--split", "halves", "--domain", "maths").returncode == 0
    items = read_task(tmp_path / "task.jsonl")
    assert {i.domain for i in items} == {"maths"}
    assert 15 < sum(i.split == "calibrate" for i in items) < 45
    assert len({i.split for i in items}) == 2
    assert run(tmp_path, rows, "--limit", "5").returncode == 0
    assert len(read_task(tmp_path / "task.jsonl")) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "?"}, ":2: no question"),
        ({"question": "?", "answer": "42"}, ":2: neither an answerKey nor an answer with ####"),
        ({"question": "?", "answer": "#### many"}, ":2: no number after ####"),
        (FLAT | {"answerKey": "D"}, ":2: answerKey 'D' is none of"),
        (FLAT | {"choices": ["fire", "ice"]}, ":2: its choices have no labels and texts"),
        ({"question": {"text": "?"}, "answerKey": "A"}, ":2: its choices have no labels"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, message):
    done = run(tmp_path, [GSM8K, row])
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "task.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "thirds"), "--split: 'thirds' is not one of none, halves"),
        (("--limit", "-1"), "--limit: -1 is below 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(tmp_path, options, message):
    done = run(tmp_path, [GSM8K], *options)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_file_without_questions_is_refused(tmp_path):
    done = run(tmp_path, [])
    assert done.returncode == 2
    assert done.stderr == f"import: {tmp_path / 'set.jsonl'} holds no questions\n"
