"""The measures of a judge, with every figure computed by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn", reason="training needs the build extra")

import numpy as np

from judge_decoding.training.judge.features import LabelledTokens
from judge_decoding.training.judge.measures import (
    auc,
    average_precision,
    calibration_error,
    interval,
    pick_threshold,
    reliability,
    report_on,
    resampled,
    threshold_curve,
    within,
    without_nan,
)


def flags(text):
    return np.array([letter == "g" for letter in text])


def test_auc_counts_pairs():
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    # good 0.9 beats both bad; good 0.5 ties with one and beats the other: 3.5 of 4 pairs
    assert auc(scores, flags("ggbb")) == 3.5 / 4
    assert auc(scores, flags("bbgg")) == 0.5 / 4
    assert np.isnan(auc(scores, flags("gggg")))
    assert auc(np.full(4, 0.3), flags("gbgb")) == 0.5


def test_a_weight_counts_a_token_as_often():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, good = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.4
    weight = rng.integers(0, 4, 60)
    repeated = auc(np.repeat(scores, weight), np.repeat(good, weight))
    found = auc(scores, good, weight)
    assert found == pytest.approx(repeated)
    assert found == pytest.approx(roc_auc_score(good, scores, sample_weight=weight))


def test_telling_domains_apart_earns_nothing_within_them():
    domain = np.array(["easy"] * 4 + ["hard"] * 4)
    good = flags("gggb" + "gbbb")
    knows_domain = np.where(domain == "easy", 0.8, 0.2)
    assert auc(knows_domain, good) == 0.75
    assert within(knows_domain, good, domain) == 0.5
    # 3 pairs in "easy", all right; 3 in "hard", one of them right
    scores = np.array([0.5, 0.6, 0.7, 0.1, 0.3, 0.2, 0.4, 0.5])
    assert within(scores, good, domain) == pytest.approx((3 + 1) / 6)
    assert np.isnan(within(scores, flags("gggggggg"), domain))


def test_groups_are_drawn_whole():
    groups = np.array(["a", "a", "b", "c"])
    for weight in resampled(groups, 50):
        assert weight[0] == weight[1]
        assert weight[[0, 2, 3]].sum() == 3
    first, again = (list(resampled(groups, 5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_interval_is_as_wide_as_groups_allow():
    values = np.array([1.0, 0.0] * 50)

    def mean(weight):
        return float(weight @ values / weight.sum())

    apart = interval(mean, np.arange(100), 2000)
    assert apart.value == 0.5
    assert apart.low == pytest.approx(0.40, abs=0.02)  # 1.96 x sqrt(0.25 / 100)
    assert apart.high == pytest.approx(0.60, abs=0.02)
    in_pairs = interval(mean, np.arange(100) // 2, 200)
    assert in_pairs == (0.5, 0.5, 0.5)  # each pair holds one of both
    one = interval(lambda weight: float("nan"), np.arange(3), 5)
    assert all(np.isnan(one))


def test_calibration_by_hand():
    scores = np.array([0.1, 0.1, 0.95, 0.95, 1.0])
    rows = reliability(scores, flags("gbggb"))
    assert [row["from"] for row in rows] == [0.1, 0.9]
    assert [row["tokens"] for row in rows] == [2, 3]
    assert [row["good"] for row in rows] == pytest.approx([0.5, 2 / 3])
    assert [row["predicted"] for row in rows] == pytest.approx([0.1, 2.9 / 3])
    expected = (2 * abs(0.1 - 0.5) + 3 * abs(2.9 / 3 - 2 / 3)) / 5
    assert calibration_error(rows) == pytest.approx(expected)
    perfect = reliability(np.full(4, 0.25), flags("gbbb"))
    assert calibration_error(perfect) == 0.0
    assert np.isnan(calibration_error([]))


def test_precision_and_recall_by_hand():
    scores, good = np.array([0.9, 0.8, 0.7, 0.6]), flags("gbgb")
    # recall rises to 1/2 at precision 1, and to 1 at precision 2/3
    assert average_precision(scores, good) == pytest.approx(0.5 + 0.5 * 2 / 3)
    curve = threshold_curve(scores, good, (0.65, 0.75, 0.85, 0.95))
    assert [p["precision"] for p in curve] == pytest.approx([2 / 3, 1 / 2, 1, 1])
    assert [p["good_accepted"] for p in curve] == [1.0, 0.5, 0.5, 0.0]
    assert [p["bad_rejected"] for p in curve] == [0.5, 0.5, 1.0, 1.0]
    assert np.isnan(average_precision(scores, flags("gggg")))


def test_threshold_curve_is_exact():
    scores = np.array([0.1, 0.4, 0.6, 0.9, 0.2, 0.5, 0.7, 0.8])
    curve = threshold_curve(scores, flags("bbbbgggg"), (0.05, 0.4, 0.65, 0.95))
    assert [p["bad_rejected"] for p in curve] == [0.0, 0.5, 0.75, 1.0]
    assert [p["good_accepted"] for p in curve] == [1.0, 0.75, 0.5, 0.0]
    assert pick_threshold(curve, 0.75) == 0.65
    assert pick_threshold(curve, 0.9) == 0.95
    assert pick_threshold(curve[:2], 0.9) == 1.0


def test_report_is_over_mismatches_by_file_and_domain():
    tokens = LabelledTokens(
        hidden=np.zeros((6, 1), dtype=np.float32),
        good=flags("ggbgbg"),
        mismatch=np.array([True, True, True, True, True, False]),
        group=np.array(list("aabbcc")),
        domain=np.array(["x", "x", "x", "y", "y", "y"]),
        origin=np.array(["correct"] * 6),
        source=np.array(["court"] * 3 + ["mined"] * 3),
        heldout=np.zeros(6, dtype=bool),
    )
    found = report_on(np.array([0.9, 0.4, 0.5, 0.2, 0.3, 0.0]), tokens)
    assert list(found) == ["all", "file court", "file mined", "x", "y"]
    assert (found["all"]["good"], found["all"]["bad"], found["all"]["groups"]) == (3, 2, 3)
    assert found["all"]["auc"] == pytest.approx(3 / 6)
    assert found["x"]["auc"] == 0.5
    assert found["y"]["auc"] == 0.0
    assert found["all"]["auc_within_domains"] == pytest.approx(1 / 3)
    assert found["file mined"]["good"] == 1


def test_json_holds_no_nan():
    assert without_nan({"a": [1.5, float("nan")], "b": "nan"}) == {
        "a": [1.5, None],
        "b": "nan",
    }
