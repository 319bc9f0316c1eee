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
    for changes, message in (
        ({"feature": "middle"}, "feature\n.*'pre_norm' or 'post_norm'"),
        ({"threshold": 1.01}, "threshold\n.*less than or equal to 1"),
        ({"threshold": -0.01}, "threshold\n.*greater than or equal to 0"),
        ({"hidden_size": 0}, "hidden_size\n.*greater than 0"),
        ({"target_fingerprint": ""}, "target_fingerprint\n.*at least 1 character"),
        ({"tokenizer_hash": ""}, "tokenizer_hash\n.*at least 1 character"),
        ({"layer": 7}, "layer\n.*Extra inputs are not permitted"),
    ):
        with pytest.raises(ValueError, match=f"1 validation error for JudgeMetadata\n{message}"):
            make(**changes)


def test_the_bounds_of_metadata_are_allowed() -> None:
    assert make(threshold=0.0).metadata.threshold == 0.0
    assert make(threshold=1.0).metadata.threshold == 1.0
    assert JudgeMetadata(**make().metadata.model_dump(exclude={"metrics"})).metrics == {}
    assert make().metadata.threshold_method is None


def header(**changes: str | None) -> dict[str, str]:
    values: dict[str, str | None] = {
        "format": "judge-decoding/1",
        "judge": make().metadata.model_dump_json(),
    }
    return {name: text for name, text in (values | changes).items() if text is not None}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (
            {},
            header(format="judge-decoding/2"),
            "has format 'judge-decoding/2', this version reads",
        ),
        ({}, header(judge=None), "has format 'judge-decoding/1', this version reads"),
        ({}, header(judge="{"), "has bad metadata: "),
        (
            {},
            header(judge='{"feature": 1}'),
            r"has bad metadata: \d+ validation errors .* feature ",
        ),
        ({"more": torch.zeros(1)}, header(), r"must hold weight \[H\] and bias \[1\]"),
        ({"bias": torch.zeros(2)}, header(), r"must hold weight \[H\] and bias \[1\]"),
        ({"bias": torch.tensor([torch.nan])}, header(), "NaN or infinite"),
        ({"weight": torch.zeros(H).half()}, header(), r"weight torch.float16 \[6\]"),
        ({"weight": torch.zeros(1, H)}, header(), r"weight torch.float32 \[1, 6\]"),
    ],
)
def test_a_file_that_is_no_judge_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "judge.safetensors"
    good = {"weight": torch.zeros(H), "bias": torch.zeros(1)}
    save_file(good, path, metadata=header())
    assert Judge.load(path).bias == 0.0
    save_file(good | tensors, path, metadata=metadata)
    with pytest.raises(UserError, match=message) as refused:
        Judge.load(path)
    assert "\n" not in str(refused.value)


def test_a_judge_that_could_not_be_read_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    good = make()
    for bad in (
        Judge(good.weight[:3], 0.0, good.metadata),
        Judge(good.weight, float("inf"), good.metadata),
        Judge(good.weight * float("nan"), 0.0, good.metadata),
    ):
        with pytest.raises(UserError, match=f"judge: {path}"):
            bad.save(path)
    assert not path.exists()


def test_the_saved_file_is_float32_and_names_its_format(tmp_path: Path) -> None:
    from safetensors import safe_open

    make().save(tmp_path / "judge.safetensors")
    tensors = load_file(tmp_path / "judge.safetensors")
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "weight": (torch.float32, (H,)),
        "bias": (torch.float32, (1,)),
    }
    with safe_open(str(tmp_path / "judge.safetensors"), framework="pt") as file:
        assert file.metadata() == header()


def rewrite(path: Path, **tensors: torch.Tensor) -> None:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | tensors, path, metadata=metadata)
