"""Intervals, the gate and the Pareto front, on hand-built cases."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from judge_decoding.errors import UserError
from judge_decoding.evaluation import statistics
from judge_decoding.evaluation.gate import (
    NEVER,
    RESAMPLES,
    choose_threshold,
    groups_needed,
    loss_bound,
)
from judge_decoding.evaluation.plot import pareto_front
from judge_decoding.evaluation.statistics import (
    Paired,
    bootstrap_means,
    difference_bound,
    share_bound,
    wilson,
    worth,
)

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def paired(lost: int, won: int, same: int) -> Paired:
    """Groups of one item each; `same` items are right both times."""
    right = [False] * lost + [True] * won + [True] * same
    alone = [True] * lost + [False] * won + [True] * same
    return Paired(right, alone, [str(n) for n in range(lost + won + same)])


def test_the_paired_difference_is_exact() -> None:
    one = paired(3, 1, 6)
    assert (one.lost, one.won, one.difference) == (3, 1, pytest.approx(-0.2))


def test_the_bootstrap_is_that_of_its_seed() -> None:
    """Drawn by hand with NumPy's documented generator."""
    one = paired(2, 1, 2)
    gaps = np.array([-1.0, -1.0, 1.0, 0.0, 0.0])
    drawn = np.random.default_rng(5).integers(0, 5, (4000, 5))
    means = gaps[drawn].mean(1)
    assert np.allclose(np.sort(one.resampled(seed=5)), np.sort(means))
    assert one.interval(seed=5) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert one.interval(seed=5) == one.interval(seed=5) != one.interval(0.5, seed=5)


def test_the_bootstrap_in_blocks_is_the_bootstrap_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 resamples of 600 groups would be half a gigabyte of indices."""
    at_once = paired(5, 2, 13).resampled(resamples=1000)
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 60)
    assert (paired(5, 2, 13).resampled(resamples=1000) == at_once).all()


def test_items_of_a_group_are_drawn_together() -> None:
    """Two groups that say opposite things can give only three means."""
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


@given(st.integers(0, 40), st.integers(1, 2000), st.floats(0.5, 0.99))
def test_the_share_bound_is_clopper_and_pearsons(lost: int, count: int, confidence: float) -> None:
    """The share for which so few losses have probability 1 - confidence; fractions interpolate."""
    lost = min(lost, count)
    bound = share_bound(lost, count, confidence)
    if lost == count:
        assert bound == 1.0
        return
    assert stats.binom.cdf(lost, count, bound) == pytest.approx(1 - confidence, abs=1e-6)
    assert bound < share_bound(lost + 0.5, count, confidence)


@pytest.mark.parametrize(("lost", "won", "count"), [(4, 0, 300), (12, 5, 600), (3, 3, 150)])
def test_the_difference_bound_is_where_the_score_is_z(lost: int, won: int, count: int) -> None:
    """Here the restricted likelihood is maximised on a grid, not by the formula."""
    bound = difference_bound(lost, won, count)
    share = np.linspace(1e-7, 1 - bound, 2_000_001)[1:-1]
    same = np.clip(1 - 2 * share - bound, 1e-300, None)
    likelihood = lost * np.log(share + bound) + won * np.log(share)
    likelihood += (count - lost - won) * np.log(same)
    best = share[likelihood.argmax()]
    score = ((lost - won) / count - bound) / np.sqrt((2 * best + bound - bound**2) / count)
    assert score == pytest.approx(stats.norm.ppf(0.05), abs=1e-4)


def test_without_a_difference_the_difference_bound_is_wilsons() -> None:
    """If nothing is won, the bound is that of a share."""
    for lost in (0, 1, 7):
        high = wilson(lost / 300, 300, 0.9)[1]
        assert difference_bound(lost, 0, 300) == pytest.approx(high, abs=1e-9)
    assert difference_bound(3, 40, 300) == pytest.approx(
        0, abs=1e-9
    )  # at least what was seen, which is none


def test_a_gate_cannot_pass_on_few_items() -> None:
    """Zero losses in n prove a loss below 1 point only from 299 groups on."""
    assert (groups_needed(0.01), groups_needed(0.02)) == (299, 149)
    assert loss_bound(paired(0, 0, 298)) > 0.01 >= loss_bound(paired(0, 0, 299))
    grouped = Paired([True] * 1000, [True] * 1000, ["same"] * 1000)
    assert loss_bound(grouped) == pytest.approx(0.95)  # one observation, however many items


@pytest.mark.parametrize(
    ("groups", "budget"),
    [(299, 0.01), (300, 0.01), (600, 0.01), (149, 0.02), (174, 0.02), (300, 0.02)],
)
def test_a_rule_that_loses_the_budget_passes_one_time_in_twenty(groups: int, budget: float) -> None:
    """Regression: by the bootstrap alone it passed with probability 0.20 (300 groups, 1 point),
    0.15 (600) and 0.14 (174, 2 points). The bound is exact if answers are only lost."""

    def passes(lost: int) -> bool:
        return loss_bound(paired(lost, 0, groups - lost)) <= budget

    most = len(list(itertools.takewhile(passes, itertools.count()))) - 1
    assert most >= 0 and stats.binom.cdf(most, groups, budget) <= 0.05


@pytest.mark.parametrize("groups", [174, 300, 600])
@pytest.mark.parametrize("budget", [0.01, 0.02])
@pytest.mark.parametrize("won", [0.005, 0.01, 0.03, 0.04])
def test_nor_does_one_that_wins_other_answers(groups: int, budget: float, won: float) -> None:
    """A bound of the net loss, taken as a plain share, passed such a rule with probability up to
    0.11 (300 groups, a true loss of 1 point, half a point won). The bound is exact except for
    Tango's own overshoot, and without the bootstrap, which can only refuse more."""
    chance = 0.0
    for lost in range(60):
        for gained in range(60):
            if lost - gained > groups * budget:
                break
            net = max(0, lost - gained)
            bound = max(difference_bound(lost, gained, groups), share_bound(net, groups))
            if bound <= budget:
                probabilities = [budget + won, won, 1 - budget - 2 * won]
                counts = [lost, gained, groups - lost - gained]
                chance += float(stats.multinomial.pmf(counts, groups, probabilities))
    assert chance <= 0.051


def test_items_that_a_group_loses_together_are_one() -> None:
    """Four items per group, lost and won together, are worth as much as one item per group."""
    one = paired(12, 5, 283)
    four = Paired(*(list(np.repeat(x, 4)) for x in (one.right, one.alone, one.groups)))
    assert four.design_effect == pytest.approx(4) and one.design_effect == pytest.approx(1)
    assert loss_bound(four) == pytest.approx(loss_bound(one), abs=1e-9)
    apart = Paired(four.right, four.alone, [str(n) for n in range(1200)])
    assert loss_bound(apart) < loss_bound(four)


def test_what_few_differences_say_of_a_group_is_little() -> None:
    """Groups of one and of four items: without differences a group's items may all be one."""
    groups = [str(n) for n in range(100)] + [f"four {n // 4}" for n in range(100)]
    assert worth(groups) == pytest.approx(200**2 / (100 + 25 * 16)) == 80
    none = Paired([True] * 200, [True] * 200, groups)
    assert none.design_effect == pytest.approx(200 / 80)
    assert loss_bound(none) == pytest.approx(share_bound(0, 80))
    fifty = Paired([n % 2 == 0 for n in range(100)] + [True] * 100, [True] * 200, groups)
    seen = (50 * 0.75**2 + 50 * 0.25**2 + 25 * 1**2) / (50 * 0.75**2 + 150 * 0.25**2)
    assert fifty.design_effect == pytest.approx((5 * 2.5 + 50 * seen) / 55)


def test_large_groups_may_lose_alone() -> None:
    """Regression: all groups had the same weight, and a rule that loses whole groups of `court`'s
    largest, truly two points, passed one time in five, when it lost none of these."""
    one = calibrated("eval_court_calibrate.json")["none"]
    sizes = np.unique(np.array(one.groups), return_counts=True)[1]
    large = int((sizes >= 6).sum())
    rate = 0.02 * len(one.groups) / sizes[sizes >= 6].sum()
    assert (1 - rate) ** large == pytest.approx(0.18, abs=0.01)
    assert loss_bound(one) == pytest.approx(0.0244, abs=1e-4)  # none lost


def test_the_bootstrap_counts_where_groups_are_few_and_of_unlike_size() -> None:
    """FEW_GROUPS: all wins are in one group. A resample without that group has only losses, which
    the score's variance does not know."""
    expected = float(np.quantile(-FEW_GROUPS.resampled(resamples=RESAMPLES), 0.95))
    assert loss_bound(FEW_GROUPS) == expected == pytest.approx(0.355, abs=0.005)


def calibrated(file: str) -> dict[str, Paired]:
    """The committed answers to a calibration half, by rule."""
    document = json.loads((RESULTS / file).read_text())
    right = {row["name"]: row["right"] for row in document["results"]}
    groups = document["items"]["group"]
    return {name: Paired(rows, right["none"], groups) for name, rows in right.items()}


FEW_GROUPS = Paired(
    [True] * 20 + [n % 4 > 0 for n in range(30)],
    [n >= 10 for n in range(20)] + [True] * 30,
    ["large"] * 20 + [str(n) for n in range(30)],
)
"""Cases in which the bootstrap's bound is the largest of the three."""


GROUPS_OF_500 = [str(int(n**1.1)) for n in range(500)]
"""Of unlike size."""


@pytest.mark.parametrize(("confidence", "bound"), [(0.8, 8 / 31), (0.9, 10 / 31), (0.95, 11 / 31)])
def test_the_bootstraps_bound_is_of_its_confidence(confidence: float, bound: float) -> None:
    drawn = -FEW_GROUPS.resampled(seed=3, resamples=100_000)
    found = loss_bound(FEW_GROUPS, confidence, seed=3)
    assert found == np.quantile(drawn, confidence) == pytest.approx(bound)


def test_the_interval_is_of_the_seed_that_it_is_given() -> None:
    """In units of 1/500, so that no two seeds agree by chance."""
    values = Paired([n % 3 > 0 for n in range(500)], [n % 5 > 0 for n in range(500)], GROUPS_OF_500)
    means = values.resampled(seed=7)
    assert values.interval(seed=7) == tuple(np.quantile(means, [0.025, 1 - 0.025]))
    assert len({values.interval(seed=seed) for seed in range(4)}) > 1


def test_the_gate_asks_for_all_its_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantile is often the same with fewer resamples, so the requested number is checked."""
    asked: list[tuple[int, int]] = []
    resampled = Paired.resampled

    def watch(self: Paired, *, seed: int, resamples: int) -> np.ndarray:
        asked.append((seed, resamples))
        return resampled(self, seed=seed, resamples=100)

    monkeypatch.setattr(Paired, "resampled", watch)
    choose_threshold({0.5: paired(9, 0, 91), 0.6: paired(0, 0, 400)}, 0.02, seed=8)
    assert asked == [(8, 100_000), (8, 100_000)]
    choose_threshold({0.5: paired(9, 0, 91)}, 0.02)
    loss_bound(paired(9, 0, 91))
    assert asked[2:] == [(0, 100_000), (0, 100_000)]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_every_part_of_the_bound_has_the_asked_confidence(confidence: float) -> None:
    """Without differences between single items the bound is a share's; with few losses the
    score's."""
    same, lost = paired(0, 0, 200), paired(3, 0, 197)
    assert loss_bound(same, confidence) == max(
        share_bound(0, 200, confidence), difference_bound(0, 0, 200, confidence)
    )
    assert loss_bound(lost, confidence) == max(
        float(np.quantile(-lost.resampled(resamples=RESAMPLES), confidence)),
        share_bound(3 / lost.design_effect, 200 / lost.design_effect, confidence),
        difference_bound(3 / lost.design_effect, 0, 200 / lost.design_effect, confidence),
    )
    bounds = [
        t.upper_bound for t in choose_threshold({0.5: lost}, 0.9, confidence=confidence).trials
    ]
    assert bounds == [loss_bound(lost, confidence)]


def test_the_choice_says_what_it_rests_on() -> None:
    grouped = Paired([True, False, True, True], [True] * 4, ["a", "a", "b", "c"])
    choice = choose_threshold({0.7: grouped, 0.9: grouped}, 0.1, confidence=0.9)
    bound = loss_bound(grouped, 0.9)
    assert choice.to_dict() == {
        "method": "quality_budget",
        "threshold": 1.0,
        "budget": 0.1,
        "confidence": 0.9,
        "items": 4,
        "groups": 3,
        "trials": [{"threshold": 0.9, "drop": 0.25, "upper_bound": bound, "passed": False}],
    }


def test_a_bound_that_is_the_budget_passes() -> None:
    bound = loss_bound(paired(1, 0, 99))
    assert choose_threshold({0.4: paired(1, 0, 99)}, bound).threshold == 0.4
    assert choose_threshold({0.4: paired(1, 0, 99)}, bound - 1e-9).threshold == NEVER


def test_a_confidence_of_one_half_is_allowed() -> None:
    assert choose_threshold({0.5: paired(0, 0, 400)}, 0.01, confidence=0.5).threshold == 0.5


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_groups_that_are_needed_follow_from_the_exact_bound(confidence: float) -> None:
    needed = groups_needed(0.02, confidence)
    assert share_bound(0, needed, confidence) <= 0.02 < share_bound(0, needed - 1, confidence)
    for budget in (0.0, 1.0, -0.1, 1.1):
        with pytest.raises(UserError, match=r"is not in \(0, 1\); one point is 0.01"):
            groups_needed(budget)


@pytest.mark.parametrize(("share", "count"), [(0.5, 0), (-0.01, 9), (1.01, 9)])
def test_wilson_refuses_what_is_no_share(share: float, count: int) -> None:
    with pytest.raises(ValueError, match=f"wilson: a share of {share} of {count}"):
        wilson(share, count)


@pytest.mark.parametrize(("lost", "count"), [(-0.1, 9), (9.1, 9), (0, 0), (0, -1)])
def test_the_share_bound_refuses_what_is_no_share(lost: float, count: float) -> None:
    with pytest.raises(ValueError, match=f"share_bound: {lost} lost of {count}"):
        share_bound(lost, count)


def test_wilson_at_another_confidence_is_the_scores_root() -> None:
    """|share - p| = z sqrt(p (1 - p) / n) holds at both ends."""
    for confidence in (0.8, 0.99):
        z = stats.norm.ppf((1 + confidence) / 2)
        for end in wilson(0.3, 50, confidence):
            assert abs(0.3 - end) == pytest.approx(z * np.sqrt(end * (1 - end) / 50))
    assert wilson(0.0, 1)[0] == 0.0 and wilson(1.0, 1)[1] == 1.0


def test_the_seed_decides_nothing() -> None:
    """Regression: with 4,000 resamples, the bootstrap's bound for the judge at 0.76 was below two
    points for three seeds of ten, although in the long run it is 2.02."""
    one = calibrated("eval_court_calibrate.json")["judge 0.76"]
    bounds = [np.quantile(-one.resampled(seed=s, resamples=RESAMPLES), 0.95) for s in range(4)]
    assert min(bounds) > 0.02 and max(bounds) - min(bounds) < 0.0004
    assert [choose_threshold({0.76: one}, 0.02, seed=s).threshold for s in range(4)] == [NEVER] * 4
    # Where the gate's bound is the bootstrap's, it hardly depends on the seed.
    bounds = [loss_bound(FEW_GROUPS, seed=s) for s in range(4)]
    assert max(bounds) - min(bounds) < 0.003


@pytest.mark.parametrize(
    ("file", "bounds", "chosen"),
    [
        (
            "eval_court_calibrate.json",
            {"strict": 1.2, "typical 0.3": 4.1, "judge 0.76": 2.6, "judge 0.72": 3.7}
            | {"judge 0.68": 4.3, "judge 0.64": 4.8},
            {0.02: NEVER, 0.03: 0.76, 0.04: 0.72, 0.05: 0.64},
        ),
        (
            "controlled_calibrate.json",
            {"judge 0.999": 1.0, "judge 0.995": 1.0, "judge 0.95": 0.5, "judge 0.9": 1.5}
            | {"judge 0.8": 2.2},
            {0.01: NEVER, 0.02: 0.9},
        ),
    ],
)
def test_the_docs_say_what_the_gate_makes_of_the_committed_answers(
    file: str, bounds: dict[str, float], chosen: dict[float, float]
) -> None:
    found = calibrated(file)
    assert {name: round(100 * loss_bound(found[name]), 1) for name in bounds} == bounds
    judged = {float(n.split()[1]): one for n, one in found.items() if n.startswith("judge")}
    assert {b: choose_threshold(judged, b).threshold for b in chosen} == chosen


def test_the_smallest_threshold_within_the_budget_is_chosen() -> None:
    outcomes = {
        0.5: paired(40, 0, 560),
        0.6: paired(2, 2, 596),
        0.7: paired(0, 0, 600),
        0.8: paired(0, 0, 600),
    }
    choice = choose_threshold(outcomes, 0.01)
    assert choice.threshold == 0.6
    assert [(t.threshold, t.passed) for t in choice.trials] == [
        (0.8, True),
        (0.7, True),
        (0.6, True),
        (0.5, False),
    ]
    assert (choice.items, choice.groups) == (600, 600)
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
        ({0.5: paired(0, 0, 1)}, 0.01, 1.0, r"confidence of 1.0 is not in \[0.5, 1\)"),
        ({0.5: paired(0, 0, 1)}, 0.01, 0.49, "confidence of 0.49"),
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
