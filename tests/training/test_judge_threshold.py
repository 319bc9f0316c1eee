"""Choosing the threshold from hand-built outcomes, and with the real loop on a tiny pair."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="training needs the build extra")

import numpy as np
import yaml
from conftest import write_judge
from tiny_task import write_tiny_task

from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError
from judge_decoding.evaluation.statistics import Paired
from judge_decoding.training.judge.threshold import Calibration, by_bad_recall, fixed, within_budget


def test_thresholds_without_a_task():
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.95])
    good = np.array([False, False, False, True, True])
    assert fixed(0.5).threshold == 0.5
    choice = by_bad_recall(scores, good, 2 / 3)
    assert choice.threshold == 0.2
    assert choice.figures == {"bad_rejected": 2 / 3, "good_accepted": 1.0, "precision": 2 / 3}
    assert "of 3 bad tokens" in choice.method
    at = choice.document(scores, good)["at_threshold"]
    assert at["threshold"] == 0.2
    never = by_bad_recall(np.ones(5), good, 0.5)
    assert (never.threshold, never.figures["good_accepted"]) == (1.0, 0.0)
    assert "the standard rule" in never.method


def outcomes(**lost: int) -> dict[float, Paired]:
    """1,000 items, each its own group, all answered correctly by the target; some are lost."""
    groups = [str(n) for n in range(1000)]
    return {
        float(name.replace("at_", "0.")): Paired(
            [n >= k for n in range(1000)], [True] * 1000, groups
        )
        for name, k in lost.items()
    }


def test_the_smallest_threshold_within_the_budget():
    choice = within_budget(outcomes(at_9=0, at_7=2, at_5=40), 0.01, "t")
    assert choice.threshold == 0.7
    assert choice.figures["drop"] == pytest.approx(0.002)
    # two lost of 1,000: at 6.28 of 1,000 so few come one time in twenty (Clopper and Pearson)
    assert choice.figures["drop_upper_bound"] == pytest.approx(0.00628, abs=1e-5)
    assert "1000 items of 1000 groups of task t" in choice.method
    assert [trial["threshold"] for trial in choice.candidates] == [0.9, 0.7, 0.5]


def test_a_threshold_that_passes_below_one_that_fails_is_not_taken():
    choice = within_budget(outcomes(at_9=0, at_7=40, at_5=0), 0.01, "t")
    assert choice.threshold == 0.9


def test_where_none_passes_the_standard_rule_is_shipped():
    # 8 of 1,000 are within one point, but not with confidence
    choice = within_budget(outcomes(at_9=8, at_5=8), 0.01, "t")
    assert choice.threshold == 1.0
    assert "the standard rule" in choice.method
    assert "drop" not in choice.figures


@pytest.fixture(scope="module")
def deployment(tiny_target, tiny_draft, tmp_path_factory):
    return write_tiny_task(tmp_path_factory.mktemp("deployment"), tiny_target, tiny_draft)


def judge_of(target: Path, folder: Path, bias: float) -> Judge:
    judge = Judge.load(write_judge(folder / "judge.safetensors", target, scale=1e-6))
    return Judge(judge.weight, bias, judge.metadata)


def test_the_budget_is_held_against_the_real_loop(deployment, tiny_target, tmp_path):
    task = str(deployment.parent / "own.jsonl")
    calibration = Calibration.of(deployment, task, 0.2)
    refuses = calibration.choose(judge_of(tiny_target, tmp_path, -9), [0.5, 0.8])
    assert refuses.threshold == 0.5  # it accepts nothing: the target's answers at each
    assert refuses.figures["drop"] == 0.0
    accepts = calibration.choose(judge_of(tiny_target, tmp_path, 9), [0.5, 0.8])
    assert accepts.threshold == 1.0  # the draft's answers; none is the target's
    assert accepts.candidates[0]["drop"] > 0.5


def test_a_task_that_can_show_nothing_is_refused_at_once(deployment, tmp_path):
    task = str(deployment.parent / "own.jsonl")
    with pytest.raises(UserError, match="cannot be shown on fewer than 299"):
        Calibration.of(deployment, task, 0.01)
    for budget in (0.0, 1.0):  # regression: a ZeroDivisionError, and a refusal after all answers
        with pytest.raises(UserError, match=f"a quality budget of {budget} is not in"):
            Calibration.of(deployment, task, budget)
    undrafted = yaml.safe_load(deployment.read_text())
    del undrafted["draft"]
    path = tmp_path / "undrafted.yaml"
    path.write_text(yaml.safe_dump(undrafted | {"acceptance": {"rule": "none"}}))
    with pytest.raises(UserError, match="has no draft"):
        Calibration.of(path, task, 0.2)
