"""Reads and checks the `config.json` of a Llama or Qwen2 folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge_client.echo import shown
from judge_decoding.errors import UserError
from judge_decoding.files import read_object


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1's `rope_scaling` (rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True)
class LlamaConfig:
    """The values of a `config.json` that the forward pass needs."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    end_ids: tuple[int, ...]
    model_type: str = "llama"
    """"llama" or "qwen2": a Llama with biases on q, k and v."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    """Whether q, k and v; o; gate, up and down have biases."""
    shared_with_target: tuple[str, ...] = ()
    """Names of tensors that the target's folder provides (the demo draft's embeddings)."""

    @property
    def is_plain_llama(self) -> bool:
        """Whether it is a Llama without biases, as all of Meta's are."""
        return self.model_type == "llama" and not self.biased

    @property
    def biased(self) -> list[str]:
        """Names of a layer's projections that have a bias."""
        return [
            *(f"self_attn.{name}_proj" for name in "qkv" if self.qkv_bias),
            *(["self_attn.o_proj"] if self.out_bias else []),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down") if self.mlp_bias),
        ]


def read_config(folder: Path) -> LlamaConfig:
    """Read the `config.json` of a LlamaForCausalLM or Qwen2ForCausalLM; UserError if it needs more
    than Llama-3 and Qwen2.5 have."""
    if not folder.is_dir():
        raise UserError(f"model: no folder {folder}")
    return checked_config(folder, folder / "config.json", read_object(folder / "config.json"))


def checked_config(folder: Path, source: Path, raw: Mapping[str, Any]) -> LlamaConfig:
    """The configuration that `raw`, the contents of a `config.json`, describes.

    folder, source  the model and the file that errors name
    """
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"model: {folder} is a {shown(kind)}, this engine runs 'llama' and 'qwen2'")
    for key, wanted in (("hidden_act", "silu"), ("use_sliding_window", False)):
        if (raw.get(key) or wanted) != wanted:
            raise UserError(
                f"model: {folder} has {key}={shown(raw[key])}, this engine needs {wanted!r}"
            )
    layer_types = raw.get("layer_types") or []
    if not isinstance(layer_types, list) or {*map(str, layer_types)} - {"full_attention"}:
        raise UserError(
            f"model: {folder} has layer_types {shown(layer_types)}, this engine needs "
            "'full_attention' in all layers"
        )
    qwen2 = kind == "qwen2"
    # transformers' Qwen2 has no such keys: q, k and v have a bias, the other projections none.
    attention_bias = qwen2 or _flag(raw, "attention_bias", source)
    if raw.get("quantization_config"):
        raise UserError(f"model: {folder} is quantized; re-save it as plain bf16 or fp32")
    rope, scaling = (_mapping(raw, key, source) for key in ("rope_parameters", "rope_scaling"))
    theta = {"rope_theta": rope.get("rope_theta") or raw.get("rope_theta") or 10000.0}
    try:
        config = LlamaConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or _head_dim(raw),
            rms_norm_eps=_number({"rms_norm_eps": 1e-6, **raw}, "rms_norm_eps", source),
            rope_theta=_number(theta, "rope_theta", source),
            rope_scaling=_rope_scaling(scaling or rope, source),
            max_position_embeddings=raw.get("max_position_embeddings", 32768 if qwen2 else 2048),
            tie_word_embeddings=_flag(raw, "tie_word_embeddings", source),
            end_ids=_end_ids(folder, raw),
            model_type=kind,
            qkv_bias=attention_bias,
            out_bias=attention_bias and not qwen2,
            mlp_bias=not qwen2 and _flag(raw, "mlp_bias", source),
            shared_with_target=_names(raw, "shared_with_target", source),
        )
    except KeyError as error:
        raise UserError(f"model: {source} lacks {error}") from None
    for name in _SIZES:
        value = getattr(config, name)
        most = _MOST_LAYERS if name == "num_layers" else _MOST
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(f"model: {source} has {name} {shown(value)}, not a size")
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"model: {source} has {config.num_heads} attention heads, which "
            f"{config.num_kv_heads} key-value heads cannot share evenly"
        )
    return config


MODEL_TYPES = ("llama", "qwen2")
_MOST, _MOST_LAYERS = 2**31 - 1, 10_000
"""Beyond them PyTorch raises an OverflowError, and the names of all tensors fill the memory."""
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
    *("num_kv_heads", "head_dim", "max_position_embeddings"),
)


def _head_dim(raw: Mapping[str, Any]) -> Any:
    """The default of `head_dim`, or 0 if it cannot be computed."""
    width, heads = raw["hidden_size"], raw["num_attention_heads"]
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else 0


def _flag(raw: Mapping[str, Any], name: str, source: Path) -> bool:
    value = raw.get(name) or False
    if not isinstance(value, bool):
        raise UserError(f"model: {source} has {name} {shown(value)}, not true or false")
    return value


def _mapping(raw: Mapping[str, Any], name: str, source: Path) -> Mapping[str, Any]:
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"model: {source} has {name} {shown(value)}, not an object")
    return value or {}


def _names(raw: Mapping[str, Any], name: str, source: Path) -> tuple[str, ...]:
    value = raw.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"model: {source} has {name} {shown(value)}, not a list of tensor names")
    return tuple(value)


def _number(raw: Mapping[str, Any], name: str, source: Path) -> float:
    value = raw[name]
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise UserError(f"model: {source} has {name} {shown(value)}, not a number above 0")
    return float(value)


def _rope_scaling(raw: Mapping[str, Any], source: Path) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"model: {source} has rope_type {shown(kind)}; supported: default, llama3")
    return RopeScaling(
        _number(raw, "factor", source),
        _number(raw, "low_freq_factor", source),
        _number(raw, "high_freq_factor", source),
        _number(raw, "original_max_position_embeddings", source),
    )


def _end_ids(folder: Path, raw: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json lists all end tokens of a chat model; config.json often only one."""
    source = folder / "generation_config.json"
    value = read_object(source).get("eos_token_id") if source.is_file() else None
    if value is None:
        source, value = folder / "config.json", raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(one) is int and abs(one) <= _MOST for one in ids):
        raise UserError(
            f"model: {source} has eos_token_id {shown(value)}, not an id or a list of ids"
        )
    return tuple(ids)
