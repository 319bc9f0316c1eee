"""Writes GGUF files from tiny Llama and Qwen2 folders, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.checkpoint.gguf_file import KINDS

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block's float16 scale and minimum are; those of the others begin it."""


def random_blocks(name: str, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Blocks of any bits, but with finite scales: uint8 [rows, bytes of a row]."""
    kind = next(kind for kind in KINDS.values() if kind.name == name)
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (rows * columns // kind.block, kind.size), dtype=np.uint8)
    for at in HALVES.get(name, (0,)):
        halves = random.standard_normal((len(raw), 1)).astype(np.float16)
        raw[:, at : at + 2] = halves.view(np.uint8)
    return raw.reshape(rows, -1)


def llama_cpp_order(weight: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py: [rows, columns], rows moved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    folder: Path,
    kind: str = "F32",
    *,
    extra: dict[str, npt.NDArray[np.float32]] | None = None,
    **metadata: Any,
) -> Path:
    """The model in `folder` as one GGUF file with matrices of `kind`; `extra` tensors in float32.

    Matrices of Q4_K, Q5_K and Q6_K are `random_blocks`.

    metadata  values that replace the file's own, None to leave one out; "__" stands for a dot
    """
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    kind_of_model = config.model_type
    writer = gguf.GGUFWriter(path, arch=kind_of_model)
    sizes: dict[str, Any] = {
        "llama.block_count": config.num_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
    }
    values = {key.replace("llama", kind_of_model): value for key, value in sizes.items()}
    if config.end_ids:
        values["tokenizer.ggml.eos_token_id"] = config.end_ids[0]
    if checkpoint.has_tokenizer:
        values |= tokenizer_values(folder)
    values |= {key.replace("__", "."): value for key, value in metadata.items()}
    for key, value in values.items():
        _add(writer, key, value)
    form = gguf.GGMLQuantizationType[kind]
    architecture = gguf.MODEL_ARCH[kind_of_model.upper()]
    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    for name in checkpoint.tensors.names():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        weight = checkpoint.tensors.get(name).float().numpy()
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
        if heads is not None and kind_of_model == "llama":  # Qwen2's rows stay where they are
            columns = weight.reshape(len(weight), -1)
            weight = llama_cpp_order(columns, heads).reshape(weight.shape)
        if weight.ndim == 1:
            writer.add_tensor(stored, weight)
        else:
            if kind.endswith("_K"):  # the package quantizes to none of these
                data = random_blocks(kind, *weight.shape)
            else:
                data = gguf.quants.quantize(np.ascontiguousarray(weight), form)
            writer.add_tensor(stored, data, raw_dtype=form)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_values(folder: Path) -> dict[str, Any]:
    """The metadata for a byte-level `tokenizer.json` and the chat template beside it."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"] | {t["content"]: t["id"] for t in raw["added_tokens"]}
    special = {token["content"] for token in raw["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in raw["model"]["merges"]],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None or value == []:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
