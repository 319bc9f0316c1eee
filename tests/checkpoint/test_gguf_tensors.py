"""A GGUF file's tensors: every quantization, llama.cpp's order of rows, blocks, the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from judge_decoding.checkpoint import Checkpoint, LlamaConfig
from judge_decoding.checkpoint.gguf_blocks import dequantize
from judge_decoding.checkpoint.gguf_file import KINDS, Kind
from tests.checkpoint.gguf_world import llama_cpp_order, random_blocks, write_gguf
from tests.conftest import write_llama

QUANTIZED = [kind for kind in KINDS.values() if kind.name not in ("F32", "F16", "BF16")]


def as_stored(config: LlamaConfig) -> LlamaConfig:
    """GGUF has epsilon as float32."""
    return replace(config, rms_norm_eps=float(np.float32(config.rms_norm_eps)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for blocks of 256 values, in bf16 as real models are."""
    from transformers import AutoModelForCausalLM

    folder = write_llama(
        tmp_path_factory.mktemp("gguf") / "model", hidden_size=256, intermediate_size=256
    )
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_blocks_are_dequantized_as_the_gguf_package_does(kind: Kind) -> None:
    raw = random_blocks(kind.name, 70, 512)  # more values than are de-quantized at once
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
    found = dequantize(torch.from_numpy(raw), kind, torch.float32)
    assert torch.equal(found, torch.from_numpy(expected))
    rounded = dequantize(torch.from_numpy(raw), kind, torch.bfloat16)
    assert torch.equal(rounded, torch.from_numpy(expected).bfloat16())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_quantized_model_is_read_in_the_models_own_order(
    kind: str, model: Path, tmp_path: Path
) -> None:
    """Quantized before llama.cpp moves the rows and after, a row's values are the same."""
    form = gguf.GGMLQuantizationType[kind]
    plain, stored = Checkpoint(model), Checkpoint(write_gguf(tmp_path / "a.gguf", model, kind))
    assert stored.config == as_stored(plain.config)
    assert stored.tensors.names() == plain.tensors.names()
    for name in plain.tensors.names():
        weight = plain.tensors.get(name)
        if weight.dim() == 2:
            raw = gguf.quants.quantize(weight.float().numpy(), form)
            blocks = stored.tensors.blocks(name)
            assert blocks is not None
            assert (blocks.kind, blocks.columns) == (kind, weight.shape[1])
            assert np.array_equal(blocks.data, raw)
            weight = torch.from_numpy(gguf.quants.dequantize(raw, form)).bfloat16()
        assert torch.equal(stored.tensors.get(name), weight), name
        for dim, part in ((0, slice(3, 9)), (1, slice(40, 90)), (1, slice(128, 256))):
            if weight.dim() == 2:
                wanted = weight[part] if dim == 0 else weight[:, part]
                assert torch.equal(stored.tensors.part(name, dim, part), wanted), name


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256_values_are_read_in_parts(kind: str, tmp_path: Path) -> None:
    """Nothing quantizes to these kinds here, so the file holds blocks of any bits."""
    form = gguf.GGMLQuantizationType[kind]
    folder = write_llama(tmp_path / "model", hidden_size=512, intermediate_size=256)
    stored = Checkpoint(write_gguf(tmp_path / "a.gguf", folder, kind))
    heads = {"q_proj": stored.config.num_heads, "k_proj": stored.config.num_kv_heads}
    for name in (name for name in stored.tensors.names() if "norm" not in name):
        weight, blocks = stored.tensors.get(name), stored.tensors.blocks(name)
        rows, columns = weight.shape
        raw = random_blocks(kind, rows, columns)
        expected = gguf.quants.dequantize(raw, form)
        assert blocks is not None and blocks.kind == kind
        moved, moved_raw = weight.float().numpy(), blocks.data
        if name.split(".")[-2] in heads:
            count = heads[name.split(".")[-2]]
            moved, moved_raw = llama_cpp_order(moved, count), llama_cpp_order(moved_raw, count)
        assert np.array_equal(moved_raw, raw), name
        assert torch.equal(torch.from_numpy(moved), torch.from_numpy(expected).bfloat16().float())
        for part in (slice(0, 100), slice(200, 256), slice(columns - 300, columns)):
            if part.start >= 0:
                assert torch.equal(stored.tensors.part(name, 1, part), weight[:, part]), name


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "qwen2"}, {"attention_bias": True, "mlp_bias": True}],
    ids=["qwen2", "llama"],
)
def test_biases_come_back_in_the_models_own_order(changes: dict[str, Any], tmp_path: Path) -> None:
    """llama.cpp moves the rows of a Llama's q and k, and their biases with them; not a Qwen2's."""
    folder = write_llama(tmp_path / "model", **changes)
    plain, stored = Checkpoint(folder), Checkpoint(write_gguf(tmp_path / "a.gguf", folder))
    assert stored.config == as_stored(plain.config)
    assert stored.fingerprint == plain.fingerprint
    assert stored.tensors.names() == plain.tensors.names()
    for name in plain.tensors.names():
        weight = plain.tensors.get(name)
        assert torch.equal(stored.tensors.get(name), weight), name
        part = slice(5, 29)
        assert torch.equal(stored.tensors.part(name, 0, part), weight[part]), name


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_plain_file_has_the_fingerprint_of_its_folder(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    dtype: Any = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    folder = write_llama(tmp_path / "model", tie_word_embeddings=True)
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    plain, stored = Checkpoint(folder), Checkpoint(write_gguf(tmp_path / "a.gguf", folder, kind))
    assert stored.fingerprint == plain.fingerprint
    assert stored.config == as_stored(plain.config)
    assert stored.has_weights
    for name in plain.tensors.names():
        assert torch.equal(stored.tensors.get(name), plain.tensors.get(name)), name
        assert stored.tensors.get(name).dtype == dtype
        assert (stored.tensors.blocks(name), plain.tensors.blocks(name)) == (None, None)


def test_a_norm_that_bf16_cannot_hold_stays_float32(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((256,), 1 / 3)
    save_file(tensors, folder / "model.safetensors")
    stored = Checkpoint(write_gguf(tmp_path / "a.gguf", folder, "Q4_0")).tensors
    assert torch.equal(stored.get("model.norm.weight"), tensors["model.norm.weight"])
    assert stored.get("model.layers.0.input_layernorm.weight").dtype == torch.bfloat16
