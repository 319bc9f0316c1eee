"""The study of labels: folds that do not leak, weights, noise, curve and agreement, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="training needs the build extra")
pytest.importorskip("matplotlib", reason="figures need the build extra")

import numpy as np

from judge_decoding.commands.labels_study import labels_study
from judge_decoding.errors import UserError
from judge_decoding.training.judge.features import LabelledTokens
from judge_decoding.training.labels import LabelRecord, Span, write_labels
from judge_decoding.training.studies import labels_study as study
from judge_decoding.training.studies.agreement import agreement
from judge_decoding.training.studies.labels_study import compare, curve, noise, one_file, spread
from judge_decoding.training.studies.recipes import (
    DOMAINS_ALONE,
    LIKELIHOOD,
    Data,
    JudgeRecipe,
    domain_scores,
    even,
    folds_of,
    scores_at,
    weights_of,
)


def data(noise: float = 0.1, groups: int = 40) -> Data:
    """Two files of `groups` shared groups with four tokens each: "mined" tokens are good if the
    first feature is positive, "court" tokens if it is negative."""
    rng = np.random.default_rng(0)
    n = groups * 8
    good = rng.random(n) < 0.5
    source = np.where(np.arange(n) < n // 2, "mined", "court")
    hidden = rng.normal(size=(n, 4)).astype(np.float32)
    sign = np.where(source == "mined", 1.0, -1.0)
    hidden[:, 0] = np.where(good, sign, -sign) + noise * hidden[:, 0]
    tokens = LabelledTokens(
        hidden=hidden,
        good=good,
        mismatch=np.ones(n, dtype=bool),
        group=np.array([f"g{i // 4 % groups}" for i in range(n)]),
        domain=np.array([f"d{i // 4 % 2}" for i in range(n)]),
        origin=np.where(source == "mined", "mined_search", "correct"),
        source=source,
        heldout=np.zeros(n, dtype=bool),
    )
    return Data(tokens, hidden + 1, np.where(source == "mined", -1.0, np.nan))


def test_a_group_is_tested_in_one_fold_in_all_files():
    found = data()
    fold = folds_of(found.tokens.group, 5, 0)
    for group in np.unique(found.tokens.group):
        assert len(set(fold[found.tokens.group == group])) == 1
    assert np.bincount(fold).tolist() == [64] * 5
    assert (fold != folds_of(found.tokens.group, 5, 1)).any()


def test_what_a_group_says_does_not_touch_its_own_scores():
    found = data(noise=1.0)
    fold = folds_of(found.tokens.group, 5, 0)
    recipe = JudgeRecipe("both", {"mined": 1.0, "court": 1.0})
    before = scores_at(recipe, found, fold, 0.1)
    own = found.tokens.group == "g3"
    lied = replace(found, tokens=replace(found.tokens, good=found.tokens.good ^ own))
    after = scores_at(recipe, lied, fold, 0.1)
    np.testing.assert_array_equal(before[own], after[own])
    assert (before != after).any()


def test_classes_are_evened_by_weight_in_each_part():
    good = np.array([True, False, False, True, True])
    weight = np.array([1.0, 1.0, 2.0, 3.0, 1.0])
    part = np.array(["a", "a", "a", "a", "one class"])
    # "a": good 4, bad 3, so 3.5 each; the other part cannot be evened
    expected = [3.5 / 4, 3.5 / 3, 7 / 3, 3 * 3.5 / 4, 0.0]
    np.testing.assert_allclose(even(good, weight, part), expected)
    from sklearn.utils.class_weight import compute_sample_weight

    same = even(good, np.ones(5), np.zeros(5))
    np.testing.assert_allclose(same, compute_sample_weight("balanced", good))


def test_weights_follow_files_and_likelihood():
    found = data(groups=2)
    found.logprob[:2] = [-9.0, np.nan]
    all_of = JudgeRecipe("all", {"mined": 1.0, "court": 0.1})
    assert weights_of(all_of, found).tolist() == [1.0] * 8 + [0.1] * 8
    likely = JudgeRecipe("likely", {"mined": 1.0}, least_logprob=-4)
    assert weights_of(likely, found).tolist() == [0, 0] + [1.0] * 6 + [0] * 8


def test_features_are_one_vector():
    found = data(groups=2)
    assert found.feature("both").shape == (16, 8)
    np.testing.assert_array_equal(found.feature("both")[:, 4:], found.feature("post_norm"))


def test_labels_of_the_wrong_kind_are_found_out():
    """The court's labels say the opposite, so alone they are wrong on every mined token."""
    found = data()
    recipes = [
        JudgeRecipe("mined", {"mined": 1}),
        JudgeRecipe("court", {"court": 1}),
        JudgeRecipe("evened", {"mined": 1}, even="domain"),
    ]
    mined, court, evened = compare(recipes, found, ["mined", "court"])
    assert mined["on"]["mined"]["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert mined["on"]["court"]["auc"]["value"] == 0.0
    assert "auc_difference" not in mined["on"]["mined"]
    assert court["on"]["mined"]["auc_difference"] == {"value": -1.0, "low": -1.0, "high": -1.0}
    assert evened["on"]["mined"]["within_domains"]["value"] == 1.0
    done = [{"recipe": "mined", "old": True}, {"recipe": "court", "old": True}]
    resumed = list(compare(recipes, found, ["mined", "court"], done))
    assert resumed == [mined, done[1], evened]  # the first is needed for comparison


def test_knowing_the_domain_alone_is_scored_from_other_folds():
    found = data(groups=4)
    fold = np.array([0, 1, 0, 1] * 2).repeat(4)  # by group; d0 is groups 0 and 2, d1 1 and 3
    scores = domain_scores(found, fold, "mined")
    good = found.tokens.good[found.of("mined")]
    # every domain lies in one fold, so the other fold says nothing about it
    assert set(scores) == {good.mean()}
    fold = np.array([0, 0, 1, 1] * 2).repeat(4)
    scores = domain_scores(found, fold, "mined")
    assert set(scores[:4]) == {good[8:12].mean()}  # group 0 by what group 2 says
    assert set(scores[12:16]) == {good[4:8].mean()}


def test_noise_in_the_labels_is_not_in_the_test():
    mined = one_file(data(), "mined")
    rows = list(noise(mined, seeds=2))
    assert [row["flipped"] for row in rows] == list(study.FLIPPED)
    assert rows[0]["auc"] == {"mean": 1.0, "sd": 0.0, "low": 1.0, "high": 1.0}
    assert rows[2]["auc"]["mean"] > 0.9  # with a tenth wrong, the head averages the noise out


def test_the_curve_counts_what_it_trains_on():
    rows = list(curve(one_file(data(), "mined"), seeds=2))
    # 40 groups in 5 folds leave 32 to train on; larger sizes are left out
    assert [(row["groups"], row["labels"]) for row in rows] == [(10, 40), (20, 80), (32, 128)]
    assert rows[-1]["auc"]["mean"] == 1.0


def test_spread_by_hand():
    found = spread([(0.5, 0.6), (0.7, 0.6)])
    assert found["auc"]["mean"] == pytest.approx(0.6)
    assert found["auc"]["sd"] == pytest.approx(0.2 / 2**0.5)
    assert found["within_domains"] == {"mean": 0.6, "sd": 0.0, "low": 0.6, "high": 0.6}


def record(name: str, ids: list[int], *labels: str) -> LabelRecord:
    """One label per token from the start on; `-` for a token without a label."""
    spans = [
        Span(start=at, end=at + 1, label=label, origin="mined_search")
        for at, label in enumerate(labels)
        if label != "-"
    ]
    common = {"group": name, "domain": "d", "prompt": name.split("/")[0], "split": "train"}
    return LabelRecord(id=name, response="", response_ids=ids, spans=spans, **common)


def test_agreement_is_over_the_same_token_after_the_same_text():
    one = [record("p", [1, 2, 3, 4], "good", "good", "bad", "bad"), record("q", [1], "bad")]
    two = [
        record("p", [1, 2, 3, 9], "good", "bad", "bad", "good"),  # the last is another token
        record("r", [1], "bad"),  # another prompt
    ]
    found = agreement(one, two)
    assert found["tokens"] == 3
    assert found["counts"] == {"bad bad": 1, "good bad": 1, "good good": 1}
    assert found["same"]["value"] == pytest.approx(2 / 3)
    assert found["kappa"]["value"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    with pytest.raises(UserError, match="labels no token that the first"):
        agreement(one, two[1:])


def test_the_study_writes_what_was_asked_for(tiny_target, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "GROUPS", (4,))
    monkeypatch.setattr(study, "FLIPPED", (0.0, 0.5))
    rng = np.random.default_rng(0)

    def write(name: str, origin: str) -> Path:
        records = []
        for n in range(15):
            ids = [int(i) for i in rng.integers(40, 120, 4)]
            spans = [
                Span(start=at, end=at + 1, label="bad" if i % 2 else "good", origin=origin)
                for at, i in enumerate(ids)
            ]
            common = {"group": f"g{n}", "domain": f"d{n % 2}", "prompt": f"Say {n}"}
            made = LabelRecord(
                id=f"{name}{n}",
                response="",
                response_ids=ids,
                spans=spans,
                split="train",
                **common,
            )
            records.append(made)
        write_labels(tmp_path / f"{name}.jsonl", records)
        return tmp_path / f"{name}.jsonl"

    files = {
        "mined": [str(write("mined", "mined_search"))],
        "court": [str(write("court", "correct"))],
        "target": str(tiny_target),
        "docs": tmp_path / "docs",
        "cache": str(tmp_path),
        "dtype": "float32",
        "seeds": 2,
    }
    labels_study(**files, part=["sources"], as_json=True)
    path = tmp_path / "docs" / "results" / "judge_study.json"
    document = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    assert set(document["parts"]) == {"sources"}
    names = [row["recipe"] for row in document["parts"]["sources"]["result"]]
    assert names == [
        "mined alone",
        "court alone",
        "mined and court",
        DOMAINS_ALONE,
        LIKELIHOOD,
    ]
    assert "versions" in document["parts"]["sources"]["provenance"]
    assert (tmp_path / "docs" / "figures" / "judge_study.png").is_file()
    labels_study(**files, part=["noise", "curve"], second=files["mined"][0])
    later = json.loads(path.read_text())
    assert set(later["parts"]) == {"sources", "noise", "curve"}
    assert later["parts"]["sources"] == document["parts"]["sources"]
    shown = capsys.readouterr().out
    assert "| 50 % | " in shown
    assert "nan" not in shown
    with pytest.raises(UserError, match="--part: 'all' is not one of"):
        labels_study(**files, part=["all"])
