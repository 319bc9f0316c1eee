"""Training the judge and reading the gate: exact on synthetic features."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "build"))

pytest.importorskip("sklearn", reason="training needs the build extra")
pytest.importorskip("matplotlib", reason="figures need the build extra")

import judge_features
import judge_head
import judge_report
import judged_chat
import judged_facts
import numpy as np
import target_reader
import torch

from judge_decoding.engine.base import Acceptance
from judge_decoding.engine.torch_engine import load_target
from judge_decoding.errors import UserError
from judge_decoding.judge import Judge, JudgeMetadata
from judge_decoding.labels import LabelRecord, Span
from judge_decoding.sequence import AcceptanceRecord
from judge_decoding.text import Tokenizer


def tokens(n: int = 400, width: int = 12, noise: float = 0.3) -> judge_features.Tokens:
    """Good where the first feature is positive; features far from standard scale."""
    rng = np.random.default_rng(0)
    good = rng.random(n) < 0.7
    hidden = rng.normal(size=(n, width)).astype(np.float32)
    hidden[:, 0] = np.where(good, 1.0, -1.0) + noise * hidden[:, 0]
    hidden = (hidden * np.linspace(1, 500, width) + 30).astype(np.float32)
    return judge_features.Tokens(
        hidden=hidden,
        good=good,
        mismatch=rng.random(n) < 0.5,
        group=np.array([f"g{i // 4}" for i in range(n)]),
        domain=np.array(["facts" if i % 2 else "chat" for i in range(n)]),
        origin=np.array(["correct"] * n),
        heldout=np.arange(n) % 4 == 0,
    )


def test_folding_the_scaler_is_exact():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    data = tokens(noise=1.0)
    hidden = data.hidden.astype(np.float64)  # scikit-learn predicts in its input's precision
    scaler = StandardScaler().fit(hidden)
    model = LogisticRegression(C=0.01).fit(scaler.transform(hidden), data.good)
    head = judge_head.fold(model.coef_[0], model.intercept_[0], scaler.mean_, scaler.scale_)
    expected = model.predict_proba(scaler.transform(hidden))[:, 1]
    np.testing.assert_allclose(head.score(hidden), expected, atol=1e-9)


def test_the_judge_file_scores_like_the_regression(tmp_path):
    data = tokens()
    head = judge_head.fit(data, 0.1, "balanced")
    meta = JudgeMetadata(
        feature="pre_norm",
        hidden_size=12,
        target_fingerprint="f",
        tokenizer_hash="t",
        threshold=0.5,
        training_data_hash="d",
    )
    path = tmp_path / "judge.safetensors"
    Judge(torch.tensor(head.weight, dtype=torch.float32), head.bias, meta).save(path)
    scores = Judge.load(path).score(torch.from_numpy(data.hidden))
    np.testing.assert_allclose(scores.numpy(), head.score(data.hidden), atol=1e-4)


def test_separable_features_are_separated():
    data = tokens(noise=0.1)
    assert judge_head.cross_validate(data, 1.0, "balanced") == 1.0
    head = judge_head.fit(data, 1.0, None)
    report = judge_head.report_on(head.score(data.hidden), data)
    assert report["all"]["auc"] == 1.0
    assert report["all"]["good"] == int((data.good & data.mismatch).sum())
    unseen = judge_head.held_out_domains(data, data, 1.0, None)
    assert unseen == {"chat": 1.0, "facts": 1.0}


def test_threshold_curve_is_exact():
    scores = np.array([0.1, 0.4, 0.6, 0.9, 0.2, 0.5, 0.7, 0.8])
    good = np.array([False, False, False, False, True, True, True, True])
    curve = judge_head.threshold_curve(scores, good, (0.05, 0.4, 0.65, 0.95))
    assert [p["bad_rejected"] for p in curve] == [0.0, 0.5, 0.75, 1.0]
    assert [p["good_accepted"] for p in curve] == [1.0, 0.75, 0.5, 0.0]
    assert judge_head.pick_threshold(curve, 0.75) == 0.65
    assert judge_head.pick_threshold(curve, 0.9) == 0.95
    assert judge_head.pick_threshold(curve[:2], 0.9) == 1.0


def test_gather_follows_the_labels():
    record = LabelRecord(
        id="a",
        group="g",
        domain="d",
        prompt="p",
        response="r",
        response_ids=[5, 6, 7, 8],
        spans=[
            Span(start=0, end=2, label="good", origin="before_error"),
            Span(start=2, end=3, label="bad", origin="error"),
            Span(start=3, end=4, label="ignore", origin="after_error"),
        ],
        split="heldout",
    )
    hidden = {
        "pre_norm": torch.arange(8.0).view(4, 2).bfloat16(),
        "argmax": torch.tensor([5, 0, 0, 8]),
    }
    found = judge_features.gather([record], hidden, "pre_norm", None)
    assert found.good.tolist() == [True, True, False]
    assert found.mismatch.tolist() == [False, True, True]
    assert found.hidden.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.heldout.all()
    assert list(found.origin) == ["before_error", "before_error", "error"]
    assert judge_features.gather([record], hidden, "pre_norm", "negative").good.tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_paired_difference():
    same = judged_facts.difference([True, False, True], [True, False, True], ["a", "b", "c"])
    assert {k: same[k] for k in ("difference", "low", "high", "lost", "won")} == {
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "lost": 0,
        "won": 0,
    }
    groups = [str(n) for n in range(100)]
    worse = judged_facts.difference([True] * 90 + [False] * 10, [True] * 100, groups)
    assert worse["difference"] == pytest.approx(-0.1)
    assert worse["accuracy"] == pytest.approx(0.9)
    assert -0.18 < worse["low"] < -0.12
    assert worse["lost"] == 10


def test_questions_about_one_fact_are_drawn_together():
    """Ten facts asked ten times each are ten independent observations, not a hundred."""
    right, alone = [n >= 10 for n in range(100)], [True] * 100
    apart = judged_facts.difference(right, alone, [str(n) for n in range(100)])
    together = judged_facts.difference(right, alone, [str(n // 10) for n in range(100)])
    assert together["difference"] == apart["difference"]
    assert together["low"] <= -0.2 < apart["low"]


def test_the_halves_share_no_fact_and_are_of_like_size():
    halves = [judged_facts.half_of(f"country:{n}") for n in range(1000)]
    assert 450 < halves.count("choose") < 550
    assert judged_facts.half_of("country:1") == halves[1]


def test_the_smallest_threshold_that_holds_from_there_on():
    def rows(*gaps):
        pairs = zip((0.5, 0.7, 0.9), gaps, strict=True)
        return [
            {"threshold": t, "choose": {"difference": g}, "report": {"difference": -1}}
            for t, g in pairs
        ]

    assert judged_facts.smallest_passing(rows(-0.05, -0.02, 0.01)) == 0.7
    assert judged_facts.smallest_passing(rows(0.0, -0.05, 0.0)) == 0.9
    assert judged_facts.smallest_passing(rows(0.0, 0.0, -0.03)) == 1.0


def test_a_run_is_reused_only_where_it_would_repeat():
    from judge_decoding.decoding import Result

    def result(score):
        return Result("x", [1, 2], "stop", ["aligned", "judged"], [0.1, score], AcceptanceRecord())

    assert judged_facts.still_holds(result(0.8), 0.7)
    assert not judged_facts.still_holds(result(0.7), 0.7)


def test_the_gate_writes_threshold_and_card(tmp_path):
    path = tmp_path / "judge.safetensors"
    meta = JudgeMetadata(
        feature="pre_norm",
        hidden_size=2,
        target_fingerprint="f",
        tokenizer_hash="t",
        threshold=0.5,
        training_data_hash="d",
        metrics={"auc": 0.9},
    )
    Judge(torch.tensor([1.0, 2.0]), 0.5, meta).save(path)
    path.with_suffix(".md").write_text("# Card\n")
    row = {
        "system": "judge 0.9",
        "threshold": 0.9,
        **{
            part: {"accuracy": 0.5, "difference": gap, "low": -0.02, "high": 0.0}
            for part, gap in (("choose", 0.01), ("report", -0.01), ("both", 0.0))
        },
        "mean_acceptance_length": 1.7,
    }
    for _ in range(2):  # a second run replaces the section
        judged_facts.write_threshold(path, 0.9, [row])
    loaded = Judge.load(path)
    assert loaded.metadata.threshold == 0.9
    assert loaded.metadata.metrics["auc"] == 0.9
    assert loaded.metadata.metrics["gate_difference"] == -0.01
    assert torch.equal(loaded.weight, torch.tensor([1.0, 2.0]))
    text = path.with_suffix(".md").read_text()
    assert text.startswith("# Card\n")
    assert text.count("## The gate") == 1
    assert "| judge 0.9 | 0.500 | +1.0 [-2.0, +0.0] | -1.0 [-2.0, +0.0] | 1.70 |" in text


def test_figures_and_card_are_written(tmp_path):
    data = tokens(noise=1.0)
    head = judge_head.fit(data, 0.1, None)
    scores = head.score(data.hidden)
    document = {
        "feature": "pre_norm",
        "dtype": "bfloat16",
        "train_on": "all",
        "class_weight": "balanced",
        "strength": 1e-3,
        "cross_validation": {"0.001": 0.9},
        "threshold": 0.8,
        "training_tokens": {"good": 3, "bad": 2},
        "validated": judge_head.report_on(scores, data),
        "heldout": judge_head.report_on(scores, data),
        "auc_on_unseen_domain": {"chat": 0.7},
    }
    json.dumps(document)
    judge_report.draw(tmp_path, scores, data.good, data.domain == "chat", document)
    judge_report.write_card(tmp_path / "card.md", document)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "card.md",
        "judge_roc.png",
        "judge_threshold.png",
    ]
    assert "| chat |" in (tmp_path / "card.md").read_text()


def test_rules_are_read_from_their_names():
    default = Acceptance("judge", threshold=0.9)
    assert judged_chat.read_rule("judge:0.7", default) == Acceptance("judge", threshold=0.7)
    assert judged_chat.read_rule("strict", default).rule == "strict"
    assert judged_chat.read_rule("topk:2", default).top_k == 2
    typical = judged_chat.read_rule("typical:0.15", default)
    assert (typical.typical_epsilon, typical.typical_delta) == (0.15, 0.5)
    for wrong in ("maybe", "strict:1"):
        with pytest.raises(UserError, match="rule: "):
            judged_chat.read_rule(wrong, default)


def test_repetition_counts_grams_seen_before():
    assert judged_chat.repetition([[1, 2, 3, 1, 2, 3]], 3) == pytest.approx(1 / 4)
    assert judged_chat.repetition([[1, 2, 3], [1, 2, 3]], 3) == 0.0  # each text by itself
    assert judged_chat.repetition([[1]], 3) == 0.0


def test_a_texts_likelihood_is_the_targets(tiny_target):
    limits = {"dtype": "float32", "max_sequences": 1, "max_context": 128}
    reader = target_reader.load_reader(tiny_target, **limits)
    target = load_target(tiny_target, **limits)
    prompts, texts = [[5, 9, 200], [7, 8]], [[3, 4, 5], [90]]
    read = [target.teacher_forced(p, t).logprob for p, t in zip(prompts, texts, strict=True)]
    expected = float(torch.cat(read).mean())
    found = judged_chat.loglikelihood(reader, prompts, texts)
    assert found == pytest.approx(expected, abs=1e-4)


def test_states_read_with_shared_prefixes_are_those_read_alone(tiny_target):
    """Records that share a beginning, in any order, sparse spans: as one pass each would give."""
    limits = {"dtype": "float32", "max_sequences": 1, "max_context": 256}
    target = load_target(tiny_target, **limits)
    tokenizer = Tokenizer(tiny_target)

    def record(name, prompt, ids, *places):
        spans = [Span(start=at, end=at + 1, label="good", origin="o") for at in places]
        common = {"group": prompt, "domain": "d", "prompt": prompt, "split": "train"}
        return LabelRecord(id=name, response="r", response_ids=ids, spans=spans, **common)

    long = [(7 * i) % 90 + 40 for i in range(30)]
    records = [
        record("a", "Hi", [50, 60, 70], 2),
        record("b", "Ho", long, 0, 12, 29),
        record("c", "Hi", [50, 60, 71, 80], 2, 3),
        record("none", "Hi", [50]),
        record("d", "Hi", [50], 0),
    ]
    reader = target_reader.load_reader(tiny_target, **limits)
    found = target_reader.read_states(records, reader, tokenizer, block=4)
    row = 0
    for r in records:
        prompt = tokenizer.chat([{"role": "user", "content": r.prompt}])
        alone = target.teacher_forced(prompt, r.response_ids, block=64)
        for at in target_reader.in_span(r):
            assert torch.allclose(found["pre_norm"][row], alone.pre_norm[at], atol=1e-3)
            assert torch.allclose(found["post_norm"][row], alone.post_norm[at], atol=1e-3)
            assert found["argmax"][row] == alone.argmax[at]
            row += 1
    assert row == len(found["argmax"]) == 7


def test_labels_change_without_reading_the_target_again(tiny_target, tmp_path, monkeypatch):
    span = Span(start=0, end=1, label="good", origin="o")
    record = LabelRecord(
        id="a",
        group="g",
        domain="d",
        prompt="p",
        response="r",
        response_ids=[50],
        spans=[span],
        split="train",
    )
    first = judge_features.hidden_of([record], tiny_target, tmp_path, "float32", 4)
    monkeypatch.setattr(judge_features, "load_reader", None)
    bad = record.model_copy(update={"spans": [span.model_copy(update={"label": "bad"})]})
    again = judge_features.hidden_of([bad], tiny_target, tmp_path, "float32", 4)
    assert torch.equal(first["pre_norm"], again["pre_norm"])
    assert not judge_features.gather([bad], again, "pre_norm", None).good.any()
