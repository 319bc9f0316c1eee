"""Reads and checks the `config.json` of a Llama folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge_decoding.errors import UserError


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


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"model: no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"model: {path} is not readable JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"model: {path} must hold a JSON object")
    return data


def read_config(folder: Path) -> LlamaConfig:
    """Read a LlamaForCausalLM's `config.json`; UserError if it needs more than Llama-3 has."""
    if not folder.is_dir():
        raise UserError(f"model: no folder {folder}")
    return checked_config(folder, folder / "config.json", read_json(folder / "config.json"))


def checked_config(folder: Path, source: Path, raw: Mapping[str, Any]) -> LlamaConfig:
    """The configuration that `raw`, the contents of a `config.json`, describes.

    folder, source  the model and the file that errors name
    """
    if raw.get("model_type") != "llama":
        raise UserError(f"model: {folder} is a {raw.get('model_type')!r}, this engine runs 'llama'")
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if raw.get(key, wanted) != wanted:
            raise UserError(f"model: {folder} has {key}={raw[key]!r}, this engine needs {wanted!r}")
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
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"model: {source} has {name} {value!r}, not a size")
    if not isinstance(config.tie_word_embeddings, bool):
        raise UserError(
            f"model: {source} has tie_word_embeddings {config.tie_word_embeddings!r}, not true or "
            "false"
        )
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"model: {source} has {config.num_heads} attention heads, which "
            f"{config.num_kv_heads} key-value heads cannot share evenly"
        )
    return config


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
        raise UserError(f"model: {source} has {name} {value!r}, not an object")
    return value or {}


def _names(raw: Mapping[str, Any], name: str, source: Path) -> tuple[str, ...]:
    value = raw.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"model: {source} has {name} {value!r}, not a list of tensor names")
    return tuple(value)


def _number(raw: Mapping[str, Any], name: str, source: Path) -> float:
    value = raw[name]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"model: {source} has {name} {value!r}, not a number above 0")
    return float(value)


def _rope_scaling(raw: Mapping[str, Any], source: Path) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"model: {source} has rope_type {kind!r}; supported: default, llama3")
    return RopeScaling(
        _number(raw, "factor", source),
        _number(raw, "low_freq_factor", source),
        _number(raw, "high_freq_factor", source),
        _number(raw, "original_max_position_embeddings", source),
    )


def _end_ids(folder: Path, raw: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json lists all end tokens of a chat model; config.json often only one."""
    source = folder / "generation_config.json"
    value = read_json(source).get("eos_token_id") if source.is_file() else None
    if value is None:
        source, value = folder / "config.json", raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(one) is int for one in ids):
        raise UserError(f"model: {source} has eos_token_id {value!r}, not an id or a list of ids")
    return tuple(ids)
