"""Matrices in other formats than the model's dtype, and float32 logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment, load_deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.torch_engine import weights as formats
from judge_decoding.torch_engine.engine import load_target
from judge_decoding.torch_engine.linear import Linear
from judge_decoding.torch_engine.llama import KeyValues, Llama, Segment
from judge_decoding.torch_engine.loading import open_torch_engines
from judge_decoding.torch_engine.narrow import (
    Float16Linear,
    Int4Linear,
    Int8Linear,
    OtherDtypeLinear,
    int4_error,
    quantize,
)
from tests.conftest import write_judge, write_llama, write_tokenizer


def rows_of(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def four_bit(rows: int, columns: int, steps: int = 15, seed: int = 1) -> torch.Tensor:
    """A float32 matrix as a 4-bit file holds it: in groups of 32, up to `steps` steps of a grid."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(0, steps + 1, (rows, columns // 32, 32), generator=generator)
    grid[..., 0], grid[..., 1] = 0, steps
    scale = torch.rand(rows, columns // 32, 1, generator=generator) / 50 + 0.01
    low = -torch.rand(rows, columns // 32, 1, generator=generator) / 5
    return (grid * scale + low).view(rows, columns)


@pytest.mark.parametrize("steps", [15, 12, 9])
def test_the_values_of_a_four_bit_file_come_back(steps: int) -> None:
    """Also those of groups that do not use all 16 values, and after bfloat16."""
    weight = four_bit(48, 96, steps)
    assert int4_error(weight) < 0.01
    grid, scale, zero = quantize(weight.to(torch.bfloat16))
    assert (grid.dtype, grid.shape, scale.shape) == (torch.int32, (48, 96), (48, 3))
    assert int(grid.min()) == 0 and int(grid.max()) == steps
    back = (grid.view(48, 3, 32) - 8) * scale.float().unsqueeze(-1) + zero.float().unsqueeze(-1)
    assert float((back.view(48, 96) - weight).abs().max()) < 0.004
    assert 0.05 < int4_error(rows_of(48, 96)) < 0.12  # no grid: what four bits cost


def test_constant_groups_and_zeros_are_kept() -> None:
    weight = torch.zeros(16, 64)
    weight[3, 32:] = 0.5
    grid, scale, zero = quantize(weight)
    back = (grid.view(16, 2, 32) - 8) * scale.float().unsqueeze(-1) + zero.float().unsqueeze(-1)
    assert torch.equal(back.view(16, 64), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "bound"),
    [(Float16Linear, 1e-3), (Int8Linear, 0.02), (Int4Linear, 0.02), (OtherDtypeLinear, 0.01)],
)
@pytest.mark.parametrize("rows", [1, 4, 9, 33])
def test_every_format_computes_the_product(
    make: type, bound: float, dtype: torch.dtype, rows: int
) -> None:
    weight, x, other = four_bit(80, 64), rows_of(rows, 64).to(dtype), rows_of(rows, 80).to(dtype)
    plain = Linear(weight, pack=False)
    made = make(weight)
    rounding = 0.0 if dtype == torch.float32 else 0.01
    for got, want in (
        (made(x), plain(x.float())),
        (made.plus(x, other), plain.plus(x.float(), other.float())),
    ):
        assert got.dtype == dtype
        assert float((got.float() - want).norm() / want.norm()) <= bound + rounding
    assert made.wide(x).dtype == torch.float32
    if make is Float16Linear:  # the inputs are not rounded, nor is the result
        want = plain(x.float())
        assert float((made.wide(x) - want).norm() / want.norm()) <= bound


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_a_gated_pair_is_the_same_in_every_format(weights: formats.Weights) -> None:
    gate, up, x = four_bit(48, 64), four_bit(48, 64, seed=2), rows_of(5, 64)
    want = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    got = formats.gated(gate, up, torch.float32, weights)(x)
    assert got.shape == (5, 48) and got.dtype == torch.float32
    assert float((got - want).norm() / want.norm()) <= 0.03


def test_what_a_format_cannot_hold_is_named() -> None:
    with pytest.raises(UserError, match=r"int4: a matrix of 48 x 40 .* use weights: int8"):
        Int4Linear(torch.zeros(48, 40))
    with pytest.raises(UserError, match="float16: a value is beyond 65504; use weights: bfloat16"):
        Float16Linear(torch.full((2, 2), 7e4))


def test_a_head_beyond_float16_stays_in_float32() -> None:
    head = formats.head_product(torch.full((2, 2), 7e4), torch.bfloat16, "bfloat16")
    assert head.wide(torch.ones(1, 2, dtype=torch.bfloat16)).tolist() == [[1.4e5, 1.4e5]]


@pytest.mark.parametrize("weights", [None, "int4"])
def test_logits_of_a_bfloat16_model_are_not_rounded(
    tmp_path: Path, weights: formats.Weights | None
) -> None:
    """Regression (issue 17): the head rounded to bfloat16, where 28 is followed by 28.125.
    Near-ties became ties, and the smallest id won."""
    checkpoint = Checkpoint(write_llama(tmp_path / "model", initializer_range=0.1))
    model = Llama(checkpoint, dtype=torch.bfloat16, context=32, weights=weights)
    kv = KeyValues(checkpoint.config, 1, 32, torch.bfloat16)
    with torch.inference_mode():
        post = model.final_norm(model.forward(torch.arange(1, 20), [Segment(0, 0, 19)], kv))
        logits = model.logits(post)
        head = checkpoint.tensors.get("lm_head.weight")
        want = post.float() @ head.T
    assert logits.dtype == torch.float32
    assert float((logits - want).abs().max()) < 1e-3 * float(want.abs().max())
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(
    ("asked", "dtype", "packs", "float16", "bits", "expected"),
    [
        (None, "float32", True, True, 4, "float32"),
        (None, "bfloat16", True, True, 4, "bfloat16"),
        ("int8", "float32", True, True, 16, "int8"),
        ("auto", "float32", False, True, 4, "float16"),
        ("auto", "float32", False, True, 16, "float16"),
        ("auto", "float32", False, True, 32, "float32"),
        ("auto", "float32", False, False, 16, "float32"),
        ("auto", "bfloat16", False, True, 4, "float16"),
        ("auto", "bfloat16", True, True, 4, "bfloat16"),
    ],
)
def test_auto_takes_what_the_cpu_is_fast_in_and_keeps_the_values(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str | None,
    dtype: str,
    packs: bool,
    float16: bool,
    bits: int,
    expected: str,
) -> None:
    monkeypatch.setattr(formats, "can_pack", lambda dtype: packs)
    monkeypatch.setattr(formats, "can_float16", lambda: float16)
    folder = four_bit_llama(tmp_path / "model", bits)
    assert formats.choose(asked, dtype, Checkpoint(folder))[0] == expected  # type: ignore[arg-type]


def four_bit_llama(folder: Path, bits: int) -> Path:
    """A Llama in bfloat16 (float32 for 32 bits); its layers hold values of four bits for 4."""
    from safetensors.torch import load_file, save_file

    write_llama(folder, intermediate_size=128)
    tensors = load_file(folder / "model.safetensors")
    for seed, (name, tensor) in enumerate(sorted(tensors.items())):
        if bits == 4 and "_proj" in name:
            tensor = 4 * four_bit(*tensor.shape, seed=seed)
        tensors[name] = tensor if bits == 32 else tensor.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("weights", ["float16", "int8", "int4"])
def test_strict_is_the_quantized_target_alone(
    tmp_path: Path, tiny_draft: Path, weights: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole way from the deployment's key to tokens, and caches that pass the deep check."""
    folder = four_bit_llama(tmp_path / "target", 4)
    deployment = Deployment.read(
        {
            "name": "narrow",
            "dtype": "float32",
            "target": {"model": str(folder), "weights": weights},
            "draft": {"model": str(tiny_draft), "weights": "auto"},
            "max_draft_len": 4,
            "limits": {"max_sequences": 2, "max_context": 128},
        },
        tmp_path,
        "here",
    )
    engines = open_torch_engines(deployment, Checkpoints.of(deployment))
    assert "draft: weights float32 (auto: the file has more than 16 bits)" in capfd.readouterr().err
    assert engines.target.model.weights == weights  # type: ignore[attr-defined]
    decoder = SpeculativeDecoder(engines, max_draft_len=4)
    prompt = [5, 6, 7]
    own, *_ = decoder.generate([Request(prompt, 40, Acceptance("none"))])
    decoder.add(Request(prompt, 40, Acceptance("strict")))
    for _ in range(5):
        decoder.step()
    decoder.check_integrity(deep=True)
    drafted, *_ = decoder.generate([Request(prompt, 40, Acceptance("strict"))])
    assert len(own.token_ids) == 40 and drafted.token_ids == own.token_ids


def test_tensor_parallel_ranks_share_a_model_in_every_format(tmp_path: Path) -> None:
    """Both ranks have the same bits, near those of one rank."""
    from tests.torch_engine.test_llama import run_on_ranks

    folder = four_bit_llama(tmp_path / "model", 4)
    for weights in ("float16", "int8", "int4"):
        first, second, alone = run_on_ranks(folder, torch.float32, weights)
        assert torch.equal(first, second)
        assert float((first - alone).abs().max() / alone.abs().max()) <= 0.06


def test_a_model_says_how_exact_its_layers_are(tiny_target: Path) -> None:
    """int4 rounds its inputs to bfloat16: the deep check must allow for it, even in float32."""
    bounds = {"dtype": "float32", "max_sequences": 1, "max_context": 64}
    for weights, dtype in (("float16", torch.float32), ("int8", torch.bfloat16)):
        engine = load_target(Checkpoint(tiny_target), weights=weights, **bounds)  # type: ignore[arg-type]
        assert engine.model.products_in == dtype


@pytest.mark.parametrize(
    ("bits", "trained", "warned"),
    [(4, None, None), (16, None, "its own"), (16, "float32", "float32"), (16, "int4", None)],
)
def test_a_judge_warns_of_weights_it_was_not_trained_for(
    tmp_path: Path,
    bits: int,
    trained: str | None,
    warned: str | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = four_bit_llama(tmp_path / "target", bits)
    write_tokenizer(folder)
    judge = write_judge(tmp_path / "judge.safetensors", folder, weights=trained)
    values = {
        "name": "narrow",
        "target": {"model": str(folder), "weights": "int4"},
        "judge": {"path": str(judge)},
        "acceptance": {"rule": "none"},
        "limits": {"max_sequences": 1, "max_context": 64},
    }
    deployment = Deployment.read(values, tmp_path, "here")
    open_torch_engines(deployment, Checkpoints.of(deployment))
    said = capfd.readouterr().err
    start = "judge: judge.safetensors was trained on the target in "
    assert (start in said) == (warned is not None)
    assert warned is None or f"{start}{warned} weights, and int4 has other values" in said


def test_engine_trtllm_has_its_own_quantization() -> None:
    values = load_deployment("llama-8b-70b-h100x2").model_dump()
    values["draft"]["weights"] = "int4"
    with pytest.raises(UserError, match=r"draft.weights int4 .* trtllm\.draft\.quantization"):
        Deployment.read(values, Path(), "here")
