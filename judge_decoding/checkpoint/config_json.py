"""Reads and checks the `config.json` of a Llama folder."""

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
    shared_with_target: tuple[str, ...] = ()
    """Names of tensors that the target's folder provides (the demo draft's embeddings)."""


def read_config(folder: Path) -> LlamaConfig:
    """Read a LlamaForCausalLM's `config.json`; UserError if it needs more than Llama-3 has."""
    if not folder.is_dir():
        raise UserError(f"model: no folder {folder}")
    return checked_config(folder, folder / "config.json", read_object(folder / "config.json"))


def checked_config(folder: Path, source: Path, raw: Mapping[str, Any]) -> LlamaConfig:
    """The configuration that `raw`, the contents of a `config.json`, describes.

    folder, source  the model and the file that errors name
    """
    if raw.get("model_type") != "llama":
        raise UserError(
            f"model: {folder} is a {shown(raw.get('model_type'))}, this engine runs 'llama'"
        )
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if raw.get(key, wanted) != wanted:
            raise UserError(
                f"model: {folder} has {key}={shown(raw[key])}, this engine needs {wanted!r}"
            )
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
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            tie_word_embeddings=raw.get("tie_word_embeddings") or False,
            end_ids=_end_ids(folder, raw),
            shared_with_target=_names(raw, "shared_with_target", source),
        )
    except KeyError as error:
        raise UserError(f"model: {source} lacks {error}") from None
    for name in _SIZES:
        value = getattr(config, name)
        most = _MOST_LAYERS if name == "num_layers" else _MOST
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(f"model: {source} has {name} {shown(value)}, not a size")
    if not isinstance(config.tie_word_embeddings, bool):
        raise UserError(
            f"model: {source} has tie_word_embeddings {shown(config.tie_word_embeddings)}, not "
            "true or false"
        )
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"model: {source} has {config.num_heads} attention heads, which "
            f"{config.num_kv_heads} key-value heads cannot share evenly"
        )
    return config


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
