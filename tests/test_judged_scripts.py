"""Reading the facts gate and the chat comparison: exact on hand-built results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "build"))

import judged_chat
import judged_facts
import target_reader
import torch

from judge_decoding.engine.base import Acceptance
from judge_decoding.engine.torch_engine import load_target
from judge_decoding.errors import UserError
from judge_decoding.judge import Judge, JudgeMetadata
from judge_decoding.sequence import AcceptanceRecord


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
    assert "judged_facts.py" in loaded.metadata.threshold_method
    assert loaded.metadata.metrics["auc"] == 0.9
    assert loaded.metadata.metrics["gate_difference"] == -0.01
    assert torch.equal(loaded.weight, torch.tensor([1.0, 2.0]))
    text = path.with_suffix(".md").read_text()
    assert text.startswith("# Card\n")
    assert text.count("## The gate") == 1
    assert "| judge 0.9 | 0.500 | +1.0 [-2.0, +0.0] | -1.0 [-2.0, +0.0] | 1.70 |" in text


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
