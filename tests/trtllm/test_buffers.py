"""Memory of an engine beside weights and caches, by hand, and the tensors that TensorRT holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.errors import UserError
from judge_decoding.trtllm.buffers import TENSOR_ELEMENTS, buffers, widest_tensor
from judge_decoding.trtllm.build.preflight import check_tensors
from tests.config.test_configs import with_shapes

ROOT = Path(__file__).parents[2]
SIZES = {"hidden": 8, "intermediate": 24, "vocab": 99}


def deployment(name: str = "llama-8b-70b-h100x2", **changes: Any) -> Deployment:
    found = load_deployment(ROOT / "configs" / f"{name}.yaml")
    assert found.trtllm is not None
    return found.override(trtllm=found.trtllm.model_dump() | changes)


def test_the_targets_decoder_has_room_for_every_draft() -> None:
    """Regression (line-by-line review, 6): 32 sequences x 26 rows x 100 padded tokens, three times
    in float32, and what the runtime has per sequence."""
    rows = 32 * 26 * 100
    found = buffers(deployment(), "target", **SIZES)  # tp 2: the vocabulary is padded to 100
    assert found.decoder == 3 * 4 * rows + 32 * 100 * (2 * 4 + 4 + 4 + 1)
    assert found.logits == 2 * 4 * rows  # before and after the plugin
    assert found.activations == 32768 * 2 * (4 * 8 + 3 * 24 // 2)
    assert found.total == found.decoder + found.logits + found.activations
    half = buffers(deployment(logits_dtype="float16"), "target", **SIZES)
    assert half.logits == found.logits // 2
    assert half.decoder == 3 * 2 * rows + 32 * 100 * (2 * 2 + 2 + 4 + 1)


def test_the_draft_keeps_the_logits_of_eight_steps() -> None:
    found = buffers(deployment(), "draft", **SIZES)
    assert found.decoder == 32 * 100 * 4 * (2 + 8)
    assert found.logits == 4 * 32 * 100


def test_the_published_figure() -> None:
    """Three buffers of 0.43 GB each at 32 sequences, draft length 25 and Llama 3's vocabulary."""
    sizes = {"hidden": 8192, "intermediate": 28672, "vocab": 128256}
    found = buffers(deployment(), "target", **sizes)
    assert found.decoder == pytest.approx(3 * 0.427e9, rel=0.06)


def test_every_shipped_pass_fits_in_tensors(tmp_path: Path) -> None:
    """Upstream warns above 16384 tokens per pass, since a tensor may then be too large."""
    for path in sorted(ROOT.glob("configs/llama-*.yaml")):
        (folder := tmp_path / path.stem).mkdir()
        check_tensors(with_shapes(load_deployment(path), folder))
    alone = deployment("llama-1b-70b-h200")
    assert widest_tensor(alone, "target", intermediate=28672) == 32768 * 2 * 28672


def test_a_pass_whose_tensor_is_too_large_is_refused(tmp_path: Path) -> None:
    wide = with_shapes(deployment("llama-1b-70b-h200", max_num_tokens=65536), tmp_path)
    with pytest.raises(UserError) as error:
        check_tensors(wide)
    assert str(error.value) == (
        f"trtllm.max_num_tokens 65536 gives the target a tensor of {65536 * 57344} elements, and "
        f"TensorRT holds {TENSOR_ELEMENTS}; set it to 37449 or less, or use more GPUs "
        "(ranks.target.tp)"
    )
    assert 37449 * 57344 <= TENSOR_ELEMENTS < 37450 * 57344
