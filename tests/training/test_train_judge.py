"""Training the judge: the exact head, thresholds by hand, and a whole training on a tiny target."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="training needs the build extra")
pytest.importorskip("matplotlib", reason="figures need the build extra")

import numpy as np
import torch
from conftest import write_judge
from tiny_task import write_tiny_task

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.commands.train_judge import train_judge
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError
from judge_decoding.training.judge.features import LabelledTokens, join
from judge_decoding.training.judge.head import (
    check_trainable,
    counted,
    cross_validate,
    fit,
    held_out_domains,
)
from judge_decoding.training.judge.threshold import fixed
from judge_decoding.training.judge.train import TrainedJudge
from judge_decoding.training.labels import LabelRecord, Span, write_labels


def tokens(n: int = 400, width: int = 12, noise: float = 0.3) -> LabelledTokens:
    """Tokens that are good if the first feature is positive, with features far from unit scale."""
    rng = np.random.default_rng(0)
    good = rng.random(n) < 0.7
    hidden = rng.normal(size=(n, width)).astype(np.float32)
    hidden[:, 0] = np.where(good, 1.0, -1.0) + noise * hidden[:, 0]
    hidden = (hidden * np.linspace(1, 500, width) + 30).astype(np.float32)
    return LabelledTokens(
        hidden=hidden,
        good=good,
        mismatch=rng.random(n) < 0.5,
        group=np.array([f"g{i // 4}" for i in range(n)]),
        domain=np.array(["facts" if i // 4 % 2 else "chat" for i in range(n)]),
        origin=np.array(["correct"] * n),
        source=np.array(["court"] * n),
        heldout=np.arange(n) % 4 == 0,
    )


@pytest.mark.parametrize("wide", [12, 11])  # most features of the second-order solver
def test_the_head_is_scaler_and_regression(wide):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = tokens(noise=1.0)
    data = replace(data, hidden=data.hidden.astype(np.float64))
    solver = "lbfgs" if wide < 12 else "newton-cholesky"
    regression = LogisticRegression(C=0.01, class_weight="balanced", solver=solver, max_iter=1000)
    model = make_pipeline(StandardScaler(), regression).fit(data.hidden, data.good)
    head = fit(data, 0.01, "balanced", wide=wide)
    expected = model.predict_proba(data.hidden)[:, 1]
    np.testing.assert_allclose(head.score(data.hidden), expected, atol=1e-6)


def test_the_judge_file_scores_like_the_regression(tmp_path):
    data = tokens()
    head = fit(data, 0.1, "balanced")
    meta = JudgeMetadata(
        feature="pre_norm",
        hidden_size=12,
        target_fingerprint="f",
        tokenizer_hash="t",
        threshold=0.5,
        threshold_method="by hand",
        training_data_hash="d",
    )
    path = tmp_path / "judge.safetensors"
    Judge(torch.tensor(head.weight, dtype=torch.float32), head.bias, meta).save(path)
    loaded = Judge.load(path)
    assert loaded.metadata == meta
    scores = loaded.score(torch.from_numpy(data.hidden))
    np.testing.assert_allclose(scores.numpy(), head.score(data.hidden), atol=1e-4)


def test_a_judge_without_a_threshold_method_still_loads(tmp_path, tiny_target):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = write_judge(tmp_path / "judge.safetensors", tiny_target)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in ("weight", "bias")}
    meta = json.loads(header["judge"])
    del meta["threshold_method"]
    save_file(tensors, path, metadata=header | {"judge": json.dumps(meta)})
    assert Judge.load(path).metadata.threshold_method is None


def test_separable_features_are_separated():
    data = tokens(noise=0.1)
    assert cross_validate(data, 1.0, "balanced") == 1.0
    assert held_out_domains(data, data, 1.0, None) == {"chat": 1.0, "facts": 1.0}


def test_features_that_say_nothing_separate_nothing():
    data = tokens()
    data = replace(data, hidden=np.full((len(data.good), 3), 7.0, dtype=np.float32))
    scores = fit(data, 1.0, "balanced").score(data.hidden)
    np.testing.assert_allclose(scores, 0.5, atol=1e-6)  # balanced classes tell nothing


def test_a_token_of_weight_zero_is_not_there():
    data = tokens(noise=1.0)
    lies = replace(data, good=~data.good)
    both = join([data, lies])
    weight = np.repeat([1.0, 0.0], len(data.good))
    alone = fit(data, 0.1, None)
    found = fit(both, 0.1, None, weight)
    np.testing.assert_allclose(found.weight, alone.weight, rtol=1e-4, atol=1e-8)


def test_an_unseen_domain_is_tested_on_all_its_tokens():
    """In one domain the label means the opposite, so a head that never saw it gets it all wrong."""
    data = tokens(noise=0.1)
    chat = data.domain == "chat"
    data = replace(data, good=np.where(chat, ~data.good, data.good))
    train, heldout = data.where(~data.heldout), data.where(data.heldout)
    found = held_out_domains(train, heldout, 1.0, None)
    assert found == {"chat": 0.0, "facts": 0.0}


def test_mined_tokens_count_alone_where_there_are_any():
    data = tokens()
    assert (counted(data) == data.mismatch).all()
    origin = np.where(np.arange(400) < 100, "mined_search", "correct")
    found = counted(replace(data, origin=origin))
    assert (found == (data.mismatch & (np.arange(400) < 100))).all()


def test_labels_that_cannot_be_trained_on_are_refused():
    data = tokens()
    with pytest.raises(UserError, match="bad tokens to train on come from 0 group"):
        check_trainable(data.where(data.good))
    with pytest.raises(UserError, match="good tokens to train on come from 1 group"):
        check_trainable(data.where(~data.good | (data.group == data.group[data.good][0])))


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """Even ids are good, odd ones bad; a third of the groups is held out, one domain never seen."""
    rng = np.random.default_rng(0)
    records = []
    for n in range(48):
        ids = [int(i) for i in rng.integers(40, 120, 6)]
        spans = [
            Span(start=at, end=at + 1, label="bad" if i % 2 else "good", origin="mined_search")
            for at, i in enumerate(ids)
        ]
        records.append(
            LabelRecord(
                id=f"r{n}",
                group=f"g{n}",
                domain="new" if n >= 40 else "even" if n % 2 else "odd",
                prompt=f"Say {n}",
                response="",
                response_ids=ids,
                spans=spans,
                split="heldout" if n % 3 == 0 or n >= 40 else "train",
            )
        )
    path = tmp_path_factory.mktemp("labels") / "mined.jsonl"
    write_labels(path, records)
    return path


def train(labels, target, folder, **options):
    options = {"dtype": "float32", "cache": str(labels.parent), **options}
    train_judge(
        labels=[str(labels)],
        target=str(target),
        out=folder / "models" / "judge.safetensors",
        docs=folder / "docs",
        **options,
    )
    return Judge.load(folder / "models" / "judge.safetensors")


def test_training_ships_judge_card_figures_and_figures_of_merit(
    labels, tiny_target, tmp_path, capsys
):
    judge = train(labels, tiny_target, tmp_path, as_json=True)
    meta = judge.metadata
    assert meta.target_fingerprint == Checkpoint(tiny_target).fingerprint
    assert meta.threshold_method.startswith("the smallest that refuses 95 % of")
    assert meta.metrics["threshold_bad_rejected"] >= 0.95
    assert meta.metrics["auc_low"] <= meta.metrics["auc"] <= meta.metrics["auc_high"]
    document = json.loads((tmp_path / "docs" / "results" / "judge_training.json").read_text())
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["threshold"] == meta.threshold
    stages = [line for line in printed.err.splitlines() if "/4 " in line]
    assert [line[:4] for line in stages] == ["1/4 ", "2/4 ", "3/4 ", "4/4 "]
    assert stages[0].startswith("1/4 hidden states: 48 labelled answers, one pass of the target")
    assert stages[1] == "2/4 cross-validation: 12 settings, 3 fits each"
    written = [tmp_path / "models" / "judge.safetensors", tmp_path / "models" / "judge.md"]
    assert all(f"{file}\n" in printed.out for file in written)
    assert (
        f"next: name the judge in a deployment of this target (judge: {{path: {written[0]}}})"
        in (printed.out)
    )
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o666 & ~umask}
    assert document["provenance"]["versions"]["torch"] == version("torch")
    assert set(document["auc_on_unseen_domain"]) == {"even", "odd"}
    assert document["domains_never_trained_on"] == ["new"]
    assert document["heldout"]["new"]["groups"] == 8
    assert sorted(p.name for p in (tmp_path / "docs" / "figures").iterdir()) == [
        "judge_pr.png",
        "judge_reliability.png",
        "judge_roc.png",
        "judge_threshold.png",
    ]
    card = (tmp_path / "models" / "judge.md").read_text()
    assert f"**{meta.threshold:g}**: the smallest that refuses 95 %" in card
    assert "Domains that no training label is from: new." in card
    assert "](../docs/figures/judge_reliability.png)" in card
    assert "| new | " in card
    assert "nan" not in card


@pytest.mark.parametrize(
    ("low", "good_accepted", "bad_rejected", "warnings"),
    [
        (0.51, 0.2, 0.95, []),
        (0.5, 0.2, 0.95, ["the AUC is 0.600 [0.500, 0.700] on the tokens that count, and 0.5 is "]),
        (0.51, 0.0, 1.0, ["at threshold 0.9 the judge accepts none of the labelled tokens, so "]),
        (0.51, 0.0, 0.99, []),  # it accepts a bad token
    ],
)
def test_a_judge_that_knows_or_does_nothing_is_told(low, good_accepted, bad_rejected, warnings):
    meta = JudgeMetadata(
        feature="pre_norm",
        hidden_size=2,
        target_fingerprint="f",
        tokenizer_hash="t",
        threshold=0.9,
        training_data_hash="d",
    )
    document = {
        "counted": {"value": 0.6, "low": low, "high": 0.7},
        "at_threshold": {"good_accepted": good_accepted, "bad_rejected": bad_rejected},
    }
    trained = TrainedJudge(Judge(torch.zeros(2), 0.0, meta), fixed(0.9), document, {})
    found = trained.warnings()
    assert len(found) == len(warnings)
    assert all(text.startswith(begin) for text, begin in zip(found, warnings, strict=True))


def test_a_warning_is_printed_and_json_is_not(labels, tiny_target, tmp_path, capsys):
    train(labels, tiny_target, tmp_path, threshold=1.0)
    printed = capsys.readouterr()
    assert "warning: at threshold 1 the judge accepts none of" in printed.err.splitlines()[-1]
    assert printed.out.splitlines()[-1].startswith("next: ")


@pytest.fixture(scope="module")
def deployment(tiny_target, tiny_draft, tmp_path_factory):
    return write_tiny_task(tmp_path_factory.mktemp("deployment"), tiny_target, tiny_draft)


def test_training_by_a_quality_budget(labels, tiny_target, deployment, tmp_path):
    judge = train(
        labels,
        tiny_target,
        tmp_path,
        max_quality_drop=0.2,
        deployment=deployment,
        task=str(deployment.parent / "own.jsonl"),
        tried="0.999,1.0",
    )
    assert judge.metadata.threshold in (0.999, 1.0)
    assert judge.metadata.threshold_method.startswith("quality budget: ")
    assert judge.metadata.metrics["threshold_budget"] == 0.2


LABEL = {"label": "bad", "origin": "error"}
LABELLED = {"id": "one", "group": "g98", "domain": "d", "prompt": "p", "response": "r"}
LABELLED |= {"response_ids": [50], "spans": [{"start": 0, "end": 1} | LABEL], "split": "heldout"}
BUDGET = {"deployment": Path("nowhere.yaml"), "task": "court"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": "middle"}, "--feature: 'middle' is not one of pre_norm, post_norm, best"),
        ({"dtype": "float16"}, "--dtype: 'float16' is not auto, float32 or bfloat16"),
        ({"threshold": 0.5, "bad_recall": 0.9}, "give one of --threshold"),
        ({"max_quality_drop": 0.01}, "--max-quality-drop needs --deployment and --task"),
        (BUDGET | {"max_quality_drop": 0.0}, "--max-quality-drop: 0 is not above 0 and below 1"),
        (BUDGET | {"max_quality_drop": 1.0}, "--max-quality-drop: 1 is not above 0 and below 1"),
        ({"tried": "0.5,1.5"}, r"--try: 1.5 is not in \[0, 1\]"),
        ({"tried": "nan"}, r"--try: nan is not in \[0, 1\]"),
    ],
)
def test_wrong_options_say_so(labels, tiny_target, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        train(labels, tiny_target, tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "second.jsonl labels no token"),
        ({"spans": []}, "second.jsonl labels no token"),
        (
            {"response_ids": [50] * 1100, "spans": [{"start": 1090, "end": 1091} | LABEL]},
            r"record 'long' has \d+ tokens up to its last label, and 1024 can be read",
        ),
    ],
)
def test_labels_that_cannot_be_read_are_named_before_any_are(
    labels, tiny_target, tmp_path, monkeypatch, change, message
):
    """Regressions: "torch.cat(): expected a non-empty list", and a ValueError of the engine after
    the other files had been read."""
    second = tmp_path / "second.jsonl"
    second.touch()
    if change is not None:
        record = LABELLED | {"id": "long", "group": "g99"} | change
        write_labels(second, [LabelRecord.model_validate(record)])
    monkeypatch.setattr("judge_decoding.training.judge.features.load_reader", None)
    with pytest.raises(UserError, match=message):
        train(labels, tiny_target, tmp_path, held_out_labels=[str(second)], cache=str(tmp_path))


def test_what_follows_the_last_label_is_not_read(labels, tiny_target, tmp_path):
    """Only the text up to the last label must fit."""
    record = LABELLED | {"response_ids": [50] * 1100, "spans": [{"start": 5, "end": 6} | LABEL]}
    second = tmp_path / "second.jsonl"
    write_labels(second, [LabelRecord.model_validate(record)])
    train(labels, tiny_target, tmp_path, held_out_labels=[str(second)])
