"""Intervals, the gate and the Pareto front on hand-built cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge_decoding.errors import UserError
from judge_decoding.evaluation.gate import NEVER, choose_threshold, groups_needed, loss_bound
from judge_decoding.evaluation.plot import pareto_front
from judge_decoding.evaluation.statistics import Paired, bootstrap_means, wilson


def paired(lost: int, won: int, same: int) -> Paired:
    """Groups of one item each; what is the same is right both times."""
    right = [False] * lost + [True] * won + [True] * same
    alone = [True] * lost + [False] * won + [True] * same
    return Paired(right, alone, [str(n) for n in range(lost + won + same)])


def test_the_paired_difference_is_exact() -> None:
    one = paired(3, 1, 6)
    assert (one.lost, one.won, one.difference) == (3, 1, pytest.approx(-0.2))


def test_the_bootstrap_is_that_of_its_seed() -> None:
    """Drawn by hand, with NumPy's documented generator."""
    one = paired(2, 1, 2)
    gaps = np.array([-1.0, -1.0, 1.0, 0.0, 0.0])
    drawn = np.random.default_rng(5).integers(0, 5, (4000, 5))
    means = gaps[drawn].mean(1)
    assert np.allclose(np.sort(one.resampled(seed=5)), np.sort(means))
    assert one.interval(seed=5) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert one.interval(seed=5) == one.interval(seed=5) != one.interval(0.5, seed=5)


def test_items_of_a_group_are_drawn_together() -> None:
    """Two groups that say opposite things: only three means can come."""
    values, groups = np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    assert set(bootstrap_means(values, groups).round(6)) == {0.0, 0.75, 1.0}


def test_where_nothing_differs_the_interval_is_a_point() -> None:
    assert paired(0, 0, 5).interval() == (0.0, 0.0)


@pytest.mark.parametrize("lengths", [(0, 0, 0), (1, 2, 2), (2, 2, 1)])
def test_outcomes_need_one_entry_an_item(lengths: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="one entry an item"):
        Paired([True] * lengths[0], [True] * lengths[1], ["g"] * lengths[2])


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [  # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_interval(
    share: float, count: int, low: float, high: float
) -> None:
    assert wilson(share, count) == pytest.approx((low, high), abs=5e-5)


@given(st.floats(0, 1), st.integers(1, 1000))
def test_wilson_holds_its_share(share: float, count: int) -> None:
    low, high = wilson(share, count)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1 and low < high


def test_a_gate_cannot_pass_on_few_items() -> None:
    """Zero of n lost says the loss is below 1 point only from 268 groups on."""
    assert groups_needed(0.01) == 268
    assert loss_bound(paired(0, 0, 267)) > 0.01 >= loss_bound(paired(0, 0, 268))
    grouped = Paired([True] * 1000, [True] * 1000, ["same"] * 1000)
    assert loss_bound(grouped) > 0.7  # one observation, however many items


def test_the_bound_is_the_bootstraps_where_answers_differ() -> None:
    one = paired(30, 10, 360)
    expected = float(np.quantile(-one.resampled(), 0.95))
    assert loss_bound(one) == expected and 0.05 < expected < 0.09


def test_the_smallest_threshold_within_the_budget_is_chosen() -> None:
    outcomes = {
        0.5: paired(40, 0, 360),
        0.6: paired(2, 2, 396),
        0.7: paired(0, 0, 400),
        0.8: paired(0, 0, 400),
    }
    choice = choose_threshold(outcomes, 0.01)
    assert choice.threshold == 0.6
    assert [(t.threshold, t.passed) for t in choice.trials] == [
        (0.8, True),
        (0.7, True),
        (0.6, True),
        (0.5, False),
    ]
    assert (choice.items, choice.groups) == (400, 400)
    assert choice.to_dict()["method"] == "quality_budget"


def test_what_passes_below_one_that_fails_is_luck() -> None:
    outcomes = {0.5: paired(0, 0, 400), 0.6: paired(40, 0, 360), 0.7: paired(0, 0, 400)}
    choice = choose_threshold(outcomes, 0.01)
    assert choice.threshold == 0.7 and [t.threshold for t in choice.trials] == [0.7, 0.6]


def test_where_nothing_passes_the_rule_is_the_standard_one() -> None:
    assert choose_threshold({0.5: paired(40, 0, 360)}, 0.01).threshold == NEVER == 1.0


@pytest.mark.parametrize(
    ("outcomes", "budget", "confidence", "message"),
    [
        ({}, 0.01, 0.95, "no thresholds"),
        ({0.5: paired(0, 0, 1)}, 1.0, 0.95, "quality budget of 1.0"),
        ({0.5: paired(0, 0, 1)}, 0.01, 95, "confidence of 95"),
    ],
)
def test_a_bad_gate_is_refused(
    outcomes: dict[float, Paired], budget: float, confidence: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_threshold(outcomes, budget, confidence=confidence)


def test_the_pareto_front() -> None:
    points = [(1.0, 5.0), (2.0, 5.0), (3.0, 4.0), (2.5, 3.0), (4.0, 1.0), (4.0, 2.0), (3.0, 4.0)]
    assert pareto_front(points) == [1, 2, 5]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=12))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(
    points: list[tuple[float, float]],
) -> None:
    front = [points[n] for n in pareto_front(points)]
    assert front == sorted(front) and len(set(front)) == len(front)
    for x, y in points:
        beaten_by = [(a, b) for a, b in front if a >= x and b >= y]
        assert beaten_by
        if (x, y) in front:
            assert beaten_by == [(x, y)]
