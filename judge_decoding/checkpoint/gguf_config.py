"""A GGUF file's metadata as the `config.json` of the same model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from judge_decoding.checkpoint.gguf_file import GgufFile
from judge_decoding.errors import UserError

EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_END_TOKENS = {
    "llama": ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    "qwen2": ("<|im_end|>", "<|endoftext|>"),
}
"""Llama-3 and Qwen2 end their answers with any of these, and a GGUF file often names only one."""


def config_json(file: GgufFile) -> dict[str, Any]:
    """What `config.json` would say; UserError for another architecture than `llama` and `qwen2`.

    Values are passed on as they are: whoever reads a `config.json` checks them.
    """
    path, meta = file.path, file.metadata
    kind = meta.get("general.architecture")
    if kind not in _CLASSES:
        raise UserError(
            f"model: {path} has the architecture {kind!r}, this engine runs 'llama' and 'qwen2'"
        )
    if meta.get(f"{kind}.expert_count"):
        raise UserError(f"model: {path} is a mixture of experts, which this engine does not run")

    def value(name: str, default: Any = None) -> Any:
        """One number; UserError if it is missing and there is no default."""
        key = f"{kind}.{name}"
        found = meta.get(key, default)
        if found is None:
            raise UserError(f"model: {path} lacks the metadata {key}")
        if isinstance(found, (list, np.ndarray)):
            raise UserError(f"model: {path} has a list as {key}, this engine needs one value")
        return found

    if EMBEDDING not in file.tensors:
        raise UserError(f"model: {path} has no tensor {EMBEDDING}")
    width, heads = value("embedding_length"), value("attention.head_count")
    default = width // heads if type(width) is type(heads) is int and heads else 0
    size = value("attention.key_length", default)
    for key in ("attention.value_length", "rope.dimension_count"):
        if size and (found := value(key, size)) != size:
            raise UserError(
                f"model: {path} has {kind}.{key} {found}; this engine needs the keys' length, "
                f"{size}"
            )
    rope = {"rope_theta": value("rope.freq_base", 10000.0), "rope_type": "default"}
    scaling = _rope_scaling(file, rope["rope_theta"], size)
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "dtype": "bfloat16",
        "vocab_size": file.tensors[EMBEDDING].rows,
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": size,
        "hidden_act": "silu",
        # What a Llama's file does not hold (o's bias, say) is refused when its tensors are read.
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope | scaling,
        "rope_theta": rope["rope_theta"],  # where older readers look
        "tie_word_embeddings": HEAD not in file.tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_ids(file),
    }


def end_ids(file: GgufFile) -> list[int]:
    """The ids that end an answer, the file's main one first."""
    meta = file.metadata
    keys = ("eos", "eot", "eom")
    found = [meta.get(f"tokenizer.ggml.{key}_token_id") for key in keys]
    tokens = meta.get("tokenizer.ggml.tokens", [])
    ends = _END_TOKENS.get(meta.get("general.architecture", ""), ())
    known = [tokens.index(token) for token in ends if token in tokens]
    return list(dict.fromkeys(one for one in found + known if one is not None))


def _rope_scaling(file: GgufFile, theta: Any, size: Any) -> dict[str, Any]:
    """Llama-3.1's scaling; empty if there is none.

    The file has no parameters, only what each frequency is divided by. All of Llama-3.1 to 3.3 have
    the same ones but for `factor`, so they are assumed and compared with the file's numbers.
    """
    architecture = file.metadata["general.architecture"]
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none":
        raise UserError(f"model: {file.path} has rope scaling {kind!r}; supported: Llama-3.1's")
    sound = type(size) is int and size > 0 and type(theta) is float and theta > 0
    if ROPE_FACTORS not in file.tensors or not sound:  # what is not sound is refused later
        return {}
    stored = file.tensors[ROPE_FACTORS]
    if stored.kind.name != "F32" or stored.shape != (size // 2,):
        raise UserError(
            f"model: {file.path} has {ROPE_FACTORS} of shape {list(stored.shape)} as "
            f"{stored.kind.name}, not [{size // 2}] as F32"
        )
    factors = file.bytes_of(ROPE_FACTORS).reshape(-1).view("<f4").astype(np.float64)
    factor, low, high, old = float(factors.max()), 1.0, 4.0, 8192
    wavelength = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    smooth = np.clip((old / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise UserError(f"model: {file.path} has {ROPE_FACTORS} that are not Llama-3.1's")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": old,
    }
