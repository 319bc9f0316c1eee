"""The shipped deployments: each loads without its models and fits its GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment, load_deployment
from judge_decoding.errors import UserError
from judge_decoding.trtllm.build.preflight import GIB, check_memory, size

ROOT = Path(__file__).parents[2]

FILES = sorted((ROOT / "configs").glob("*.yaml"))
MEMORY = {"h100": 79 * GIB, "h200": 139 * GIB}
"""Memory that the driver reports for an H100 80GB and an H200."""

SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    # hidden, intermediate, layers, heads, head_dim; all have 8 KV heads and 128256 tokens
    "llama-3.2-1b": (2048, 8192, 16, 32, 64),
    "llama-3.1-8b": (4096, 14336, 32, 32, 128),
    "llama-3.1-70b": (8192, 28672, 80, 64, 128),
    "llama-3.1-405b": (16384, 53248, 126, 128, 128),
}

LAYOUTS = {
    # name: (gpu, draft's tp, target's tp, draft's and target's quantization, mode)
    "llama-1b-70b-bf16-h200x2": ("h200", 1, 2, "none", "none", "orchestrator"),
    "llama-1b-70b-h200": ("h200", 1, 1, "none", "fp8", "orchestrator"),
    "llama-1b-8b": ("h100", 1, 1, "none", "none", "orchestrator"),
    "llama-1b-8b-fp8": ("h100", 1, 1, "fp8", "fp8", "orchestrator"),
    "llama-8b-405b-bf16-h100x16": ("h100", 8, 16, "none", "none", "leader"),
    "llama-8b-405b-h100x8": ("h100", 8, 8, "none", "fp8", "orchestrator"),
    "llama-8b-70b-bf16-h100x4": ("h100", 4, 4, "none", "none", "orchestrator"),
    "llama-8b-70b-h100x2": ("h100", 2, 2, "none", "fp8", "orchestrator"),
}


def shape_folder(folder: Path, shape: str) -> Path:
    hidden, intermediate, layers, heads, head_dim = SHAPES[shape]
    folder.mkdir()
    config = {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_shapes(deployment: Deployment, folder: Path) -> Deployment:
    changes: dict[str, Any] = {}
    for role in ("draft", "target"):
        shape = getattr(deployment, role).shape
        changes[role] = {"model": shape_folder(folder / role, shape), "shape": shape}
    return deployment.override(**changes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_deployment_loads_without_its_models(path: Path) -> None:
    assert load_deployment(path).name == path.stem


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    deployment = load_deployment(ROOT / "configs" / f"{name}.yaml")
    build, ranks = deployment.trtllm, deployment.ranks
    assert build is not None and ranks is not None
    assert LAYOUTS[name] == (
        build.gpu,
        ranks.draft.tp,
        ranks.target.tp,
        build.draft.quantization,
        build.target.quantization,
        build.mode,
    )
    assert deployment.acceptance.rule == "judge"
    assert build.engines == Path("/engines") / name


def test_no_layout_is_left_out() -> None:
    assert {path.stem for path in FILES if path.stem.startswith("llama-")} == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_fit_the_gpus(name: str, tmp_path: Path) -> None:
    deployment = with_shapes(load_deployment(ROOT / "configs" / f"{name}.yaml"), tmp_path)
    assert deployment.trtllm is not None
    check_memory(deployment, MEMORY[deployment.trtllm.gpu])


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    """405B in bf16 on 8 H100 puts 98 GiB of weights on each rank."""
    deployment = load_deployment(ROOT / "configs" / "llama-8b-405b-h100x8.yaml")
    assert deployment.trtllm is not None
    build = deployment.trtllm.model_dump() | {"target": {"quantization": "none"}}
    deployment = with_shapes(deployment.override(trtllm=build), tmp_path)
    with pytest.raises(
        UserError, match=r"GPU 0 has 79\.0 GiB, but needs draft .*; target 9\d\.\d GiB"
    ):
        check_memory(deployment, MEMORY["h100"])


@pytest.mark.parametrize(
    ("shape", "billions"),
    [("llama-3.1-8b", 8.03), ("llama-3.1-70b", 70.55), ("llama-3.1-405b", 405.85)],
)
def test_weights_are_counted_as_published(shape: str, billions: float, tmp_path: Path) -> None:
    config = Checkpoint(shape_folder(tmp_path / shape, shape)).config
    whole = size(config, quantization="none", tp=1)
    assert whole.total == whole.rank == pytest.approx(2e9 * billions, rel=0.002)
    half = size(config, quantization="fp8", tp=1)
    table = 2 * 128256 * config.hidden_size  # embedding and head stay in bf16
    assert half.total == pytest.approx((whole.total - 2 * table) / 2 + 2 * table)
    rank = size(config, quantization="none", tp=4)
    assert rank.rank == pytest.approx((whole.total - table) / 4 + table)


TRTLLM = """
name: test
engine: trtllm
target: {model: a}
draft: {model: b}
judge: {path: c}
acceptance: {rule: judge}
limits: {max_sequences: 8}
ranks: {draft: {devices: [0]}, target: {devices: [1]}}
trtllm: {engines: e, gpu: h100}
"""


def load(folder: Path, **changes: str) -> Deployment:
    lines = [line for line in TRTLLM.splitlines() if line.split(":")[0] not in changes]
    path = folder / "d.yaml"
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in changes.items())]))
    return load_deployment(path)


def test_the_trtllm_section(tmp_path: Path) -> None:
    build = load(tmp_path).trtllm
    assert build is not None
    assert build.engines == tmp_path / "e"
    assert (build.mode, build.logits_dtype, build.shared_gpus) == ("orchestrator", "float32", False)
    assert load(tmp_path, trtllm="null", engine="torch").trtllm is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trtllm": "null"}, "engine trtllm needs a trtllm section"),
        ({"ranks": "null"}, "engine trtllm needs ranks"),
        ({"draft": "null", "acceptance": "{rule: none}"}, "engine trtllm needs a draft"),
        ({"dtype": "float32"}, "engine trtllm runs dtype bfloat16, not float32"),
        (
            {"ranks": "{colocate_draft: true, target: {tp: 2, devices: [0, 1]}}"},
            r"engine trtllm has no ranks\.colocate_draft: .* trtllm\.shared_gpus: true",
        ),
        ({"max_draft_len": "0"}, "needs max_draft_len of at least 1"),
        ({"acceptance": "{rule: typical}"}, "engine trtllm has no acceptance.rule typical"),
        ({"ranks": "{draft: {devices: [0]}}"}, r"needs ranks\.target\.devices, a GPU number"),
        (
            {"ranks": "{draft: {devices: [cpu]}, target: {devices: [1]}}"},
            r"needs ranks\.draft\.devices, a GPU number",
        ),
        (
            {"ranks": "{draft: {devices: [0]}, target: {tp: 2, devices: [1, 1]}}"},
            r"ranks\.target\.devices names a GPU twice",
        ),
        (
            {"ranks": "{draft: {devices: [1]}, target: {devices: [1]}}"},
            r"both use GPU 1; .*say trtllm\.shared_gpus: true",
        ),
        (
            {"trtllm": "{engines: e, gpu: h100, shared_gpus: true}"},
            "shared_gpus is true, but no GPU is in both",
        ),
        (
            {"ranks": "{draft: {devices: [0]}, target: {devices: [8]}}"},
            "runs on one node of 8 GPUs, but GPU 8 is on another; use mode leader",
        ),
        (
            {"trtllm": "{engines: e, gpu: h100, fast_logits: true}"},
            r"trtllm\.fast_logits: unknown key",
        ),
        (
            {"trtllm": "{engines: e, gpu: h100, max_num_tokens: 64}"},
            r"max_num_tokens must hold .* = 72 tokens",
        ),
        (
            {"trtllm": "{engines: e, gpu: h100, max_num_tokens: 512}"},
            r"max_num_tokens 512 must hold a text of limits.max_context 2048 tokens",
        ),
        ({"trtllm": "{engines: e, gpu: a100}"}, r"trtllm\.gpu: .*'a100'"),
        (
            {"trtllm": "{engines: e, gpu: h100, target: {kv_cache_dtype: fp8}}"},
            r"trtllm\.target: kv_cache_dtype fp8 needs quantization fp8",
        ),
        ({"trtllm": "{engines: e, gpu: h100, pp: 2}"}, r"trtllm\.pp: unknown key"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, **changes)
    assert "\n" not in str(error.value)
