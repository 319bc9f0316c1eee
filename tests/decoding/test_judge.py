"""The judge file: what it holds, what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError

H = 6


def make(**changes: Any) -> Judge:
    values: dict[str, Any] = {
        "feature": "pre_norm",
        "hidden_size": H,
        "target_fingerprint": "aa",
        "tokenizer_hash": "bb",
        "threshold": 0.5,
        "training_data_hash": "cc",
        "metrics": {"auc": 0.9},
    }
    return Judge(torch.arange(H).float(), -1.5, JudgeMetadata(**(values | changes)))


def test_score_is_the_sigmoid_of_the_linear_head() -> None:
    hidden = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bfloat16)
    expected = torch.sigmoid(torch.tensor([-1.5, 1.5]))
    assert torch.allclose(make().score(hidden), expected)


def test_saving_and_loading_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    make().save(path)
    loaded = Judge.load(path)
    assert torch.equal(loaded.weight, make().weight)
    assert (loaded.bias, loaded.metadata) == (-1.5, make().metadata)


def target(fingerprint: str, tokenizer: str, hidden_size: int) -> Any:
    return SimpleNamespace(
        fingerprint=fingerprint,
        tokenizer_hash=tokenizer,
        config=SimpleNamespace(hidden_size=hidden_size),
    )


def test_the_right_target_is_accepted_and_any_other_refused() -> None:
    judge = make()
    judge.check_target(target("aa", "bb", H))
    with pytest.raises(UserError, match="trained on target aa, but this one is xx"):
        judge.check_target(target("xx", "bb", H))
    with pytest.raises(UserError, match="tokenizer bb"):
        judge.check_target(target("aa", "xx", H))
    with pytest.raises(UserError, match=r"hidden size 6, but the target's is 7"):
        judge.check_target(target("aa", "bb", 7))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "judge.safetensors"
    judge = make()
    judge.save(path)
    weight = judge.weight.clone()
    weight[2] = bad
    rewrite(path, weight=weight)
    with pytest.raises(UserError, match="NaN or infinite"):
        Judge.load(path)


def test_a_wrong_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    make().save(path)
    rewrite(path, weight=torch.zeros(H + 1))
    with pytest.raises(UserError, match=r"weight torch.float32 \[7\].*says float32 \[6\]"):
        Judge.load(path)


def test_missing_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(UserError, match="no file"):
        Judge.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match="not a readable"):
        Judge.load(path)
    save_file({"weight": torch.zeros(H)}, path)
    with pytest.raises(UserError, match="format None"):
        Judge.load(path)


def test_metadata_with_unknown_or_absurd_fields_is_refused() -> None:
    for changes in ({"feature": "middle"}, {"threshold": 1.5}, {"hidden_size": 0}):
        with pytest.raises(ValueError, match="validation error"):
            make(**changes)


def rewrite(path: Path, **tensors: torch.Tensor) -> None:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | tensors, path, metadata=metadata)
