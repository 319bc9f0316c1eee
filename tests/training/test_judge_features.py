"""The judge's training data as arrays: labels, hidden states and likelihoods in step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import load_target
from judge_decoding.training import target_reader
from judge_decoding.training.judge.features import (
    Precision,
    gather,
    hidden_of,
    precision_of,
    read_likelihood,
)
from judge_decoding.training.labels import LabelRecord, Span
from judge_decoding.training.transformers_reader import TransformersReader


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
    found = gather([record], hidden, "pre_norm", None, "file")
    assert found.good.tolist() == [True, True, False]
    assert found.mismatch.tolist() == [False, True, True]
    assert found.hidden.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.heldout.all()
    assert set(found.source) == {"file"}
    assert list(found.origin) == ["before_error", "before_error", "error"]
    assert gather([record], hidden, "pre_norm", "negative").good.tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_states_read_with_shared_prefixes_are_those_read_alone(tiny_target):
    """Records that share a beginning, in any order and with sparse spans, as if read one by one."""
    limits = {"dtype": "float32", "max_sequences": 1, "max_context": 256}
    target = load_target(Checkpoint(tiny_target), **limits)
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
    reader = target_reader.load_reader(Checkpoint(tiny_target), **limits)
    found = target_reader.read_states(records, reader, tokenizer, block=4)
    likely = read_likelihood(records, reader, tokenizer)
    foreign = TransformersReader(tiny_target, "float32")
    again = target_reader.read_states(records, foreign, tokenizer, block=4)
    assert torch.equal(again["argmax"], found["argmax"])
    foreign.release(0)
    same = read_likelihood(records, foreign, tokenizer)
    assert torch.allclose(same, likely, atol=1e-3)
    for name in ("pre_norm", "post_norm"):
        assert torch.allclose(again[name], found[name], atol=1e-3)
    row = 0
    for r in records:
        prompt = tokenizer.chat([{"role": "user", "content": r.prompt}])
        alone = target.teacher_forced(prompt, r.response_ids, block=64)
        for at in target_reader.in_span(r):
            assert torch.allclose(found["pre_norm"][row], alone.pre_norm[at], atol=1e-3)
            assert torch.allclose(found["post_norm"][row], alone.post_norm[at], atol=1e-3)
            assert found["argmax"][row] == alone.argmax[at]
            assert torch.allclose(likely[row], alone.logprob[at], atol=1e-3)
            row += 1
    assert row == len(found["argmax"]) == 7


def test_states_in_other_weights_are_other_states(tiny_target: Path, tmp_path: Path) -> None:
    span = Span(start=0, end=1, label="good", origin="o")
    record = LabelRecord(
        id="a",
        group="g",
        domain="d",
        prompt="Hi",
        response="r",
        response_ids=[5, 6],
        spans=[span],
        split="train",
    )
    target = Checkpoint(tiny_target)
    own = hidden_of([record], target, tmp_path, precision_of("float32", "torch", "float32"), 4)
    narrow = hidden_of([record], target, tmp_path, precision_of("float32", "torch", "int8"), 4)
    assert not torch.equal(own["post_norm"], narrow["post_norm"])
    assert len(list(tmp_path.glob("hidden-*.safetensors"))) == 2
    assert str(precision_of("float32", "torch", "int8")) == "float32, weights int8"
    with pytest.raises(UserError, match=r"--weights int8: --reader transformers has its own"):
        precision_of("float32", "transformers", "int8")
    with pytest.raises(UserError, match=r"--weights.*int5"):
        precision_of("float32", "torch", "int5")


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
    first = hidden_of([record], Checkpoint(tiny_target), tmp_path, Precision("float32"), 4)
    monkeypatch.setattr("judge_decoding.training.judge.features.load_reader", None)
    bad = record.model_copy(update={"spans": [span.model_copy(update={"label": "bad"})]})
    again = hidden_of([bad], Checkpoint(tiny_target), tmp_path, Precision("float32"), 4)
    assert torch.equal(first["pre_norm"], again["pre_norm"])
    assert not gather([bad], again, "pre_norm", None).good.any()
