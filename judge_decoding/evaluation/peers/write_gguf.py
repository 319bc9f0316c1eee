"""Writes a Llama as a GGUF file, for programs that read nothing else.

The vocabulary comes from `tokenizer.json` (byte-level BPE). Prompts go to these programs as token
ids, so only the tokens, their ids and the end ids have to be right, not how a text is split.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from judge_decoding.checkpoint import EMBEDDING, HEAD, Checkpoint, LlamaConfig
from judge_decoding.evaluation.bench_system import NotMeasured

_TOP = {EMBEDDING: "token_embd.weight", HEAD: "output.weight", "model.norm.weight": "output_norm"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMAL, _CONTROL = 1, 3  # llama.cpp's token types
_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
}


def write_gguf(path: Path, model: Checkpoint, kind: str, *, target: Checkpoint) -> Path:
    """Write `model` to `path` with matrices of `kind`, and return `path`.

    kind    F32, F16, BF16 or Q8_0; a matrix whose rows Q8_0 cannot divide into 32s stays F16
    target  gives the vocabulary, and the tensors that a draft shares with it

    NotMeasured if the `gguf` package is missing, or rotary scaling or biases would have to be
    written.
    """
    try:
        gguf: Any = import_module("gguf")
    except ImportError:
        raise NotMeasured("gguf is not installed; pip install 'judge-decoding[peers]'") from None
    config = model.config
    if not config.is_plain_llama:
        raise NotMeasured(f"{model.folder} has biases, which are not written to GGUF here")
    if config.rope_scaling is not None:
        raise NotMeasured(f"{model.folder} has rotary scaling, which is not written to GGUF here")
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[kind]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_vocabulary(writer, target, config.vocab_size)
    for name, tensor in _tensors(model, target).items():
        if tensor.ndim == 1:
            writer.add_tensor(_stored_name(name), tensor.numpy())
            continue
        fits = kind != "Q8_0" or tensor.shape[1] % 32 == 0
        form = gguf.GGMLQuantizationType[kind if fits else "F16"]
        matrix = _ordered(name, tensor, config).contiguous().numpy()
        writer.add_tensor(_stored_name(name), gguf.quants.quantize(matrix, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(model: Checkpoint, target: Checkpoint) -> dict[str, torch.Tensor]:
    """All weights in float32, also those shared with the target. A tied head is left out."""
    config, tensors = model.config, model.tensors
    # Only the weights of a Llama: a draft's list of ids for its short-list stays behind.
    found = {n: tensors.get(n) for n in tensors.names() if n.endswith(".weight")}
    for name in config.shared_with_target:
        if name in target.tensors:
            found[name] = target.tensors.get(name)
    if config.tie_word_embeddings and HEAD not in config.shared_with_target:
        found.pop(HEAD, None)
    return {name: tensor.float() for name, tensor in found.items()}


def _ordered(name: str, weight: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """Queries and keys in llama.cpp's order: each head's rotated pairs side by side."""
    projection = name.split(".")[-2]
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(projection)
    if heads is None:
        return weight
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def _stored_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name].removesuffix(".weight") + ".weight"
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _add_vocabulary(writer: Any, target: Checkpoint, size: int) -> None:
    """Ids that no token has, up to the model's vocabulary, get names of their own."""
    raw = target.tokenizer_json
    added = raw.get("added_tokens", [])
    by_id = {index: token for token, index in raw["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in added}
    control = {token["id"] for token in added if token.get("special")}
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"].get("merges", [])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([by_id.get(index, f"[unused {index}]") for index in range(size)])
    writer.add_token_types([_CONTROL if i in control else _NORMAL for i in range(size)])
    # llama.cpp insists on merges, and a vocabulary of single bytes has none. This one is not used.
    writer.add_token_merges(merges or [f"{by_id[0]} {by_id[1]}"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    beginning = raw["model"]["vocab"].get("<|im_start|>")
    if beginning is not None:
        writer.add_bos_token_id(beginning)
    if target.config.end_ids:
        writer.add_eos_token_id(target.config.end_ids[0])
        writer.add_pad_token_id(target.config.end_ids[0])
