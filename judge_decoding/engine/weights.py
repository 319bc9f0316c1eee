"""Reading a Hugging Face Llama folder: configuration, safetensors (sharded or not), identity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from judge_decoding.errors import UserError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1's `rope_scaling` (rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True)
class LlamaConfig:
    """What the forward needs of a `config.json`."""

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
    """Tensors that are not in the folder but are the target's (the demo draft's embeddings)."""


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
    """`config.json` of a LlamaForCausalLM; UserError where it asks for what Llama-3 has not."""
    if not folder.is_dir():
        raise UserError(f"model: no folder {folder} (for the demo: make venv && make target)")
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != "llama":
        raise UserError(f"model: {folder} is a {raw.get('model_type')!r}, this engine runs 'llama'")
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if raw.get(key, wanted) != wanted:
            raise UserError(f"model: {folder} has {key}={raw[key]!r}, this engine needs {wanted!r}")
    if raw.get("quantization_config"):
        raise UserError(f"model: {folder} is quantized; re-save it as plain bf16 or fp32")
    source = folder / "config.json"
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
            rms_norm_eps=_number({"rms_norm_eps": 1e-6} | raw, "rms_norm_eps", source),
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
    """What `head_dim` is where it is not given; 0 where that is not to be had."""
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
    """generation_config.json knows all of a chat model's end tokens; config.json often only one."""
    source = folder / "generation_config.json"
    value = read_json(source).get("eos_token_id") if source.is_file() else None
    if value is None:
        source, value = folder / "config.json", raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(one) is int for one in ids):
        raise UserError(f"model: {source} has eos_token_id {value!r}, not an id or a list of ids")
    return tuple(ids)


def rope_frequencies(config: LlamaConfig) -> torch.Tensor:
    """Inverse frequencies, float32 [head_dim / 2], with Llama-3.1's scaling where configured."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    freq = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return freq
    old = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / freq
    smooth = (old / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * freq / scaling.factor + smooth * freq
    low = wavelength > old / scaling.low_freq_factor
    high = wavelength < old / scaling.high_freq_factor
    return torch.where(low, freq / scaling.factor, torch.where(high, freq, blended))


class Tensors:
    """The tensors of a folder by name, read on demand."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"model: no .safetensors file in {folder}")
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            named = set(read_json(index).get("weight_map", {}).values())
            if missing := sorted(named - {file.name for file in files}):
                raise UserError(f"model: {folder} lacks the shard {missing[0]}")
            files = [file for file in files if file.name in named]
        self._where: dict[str, Any] = {}
        for file in files:
            try:
                handle: Any = safe_open(str(file), framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"model: {file} is damaged ({error})") from None
            self._where.update((name, handle) for name in handle.keys())  # noqa: SIM118

    def names(self) -> list[str]:
        return sorted(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> torch.Tensor:
        """UserError, as for `part`, where a weight holds other things than finite numbers."""
        return self._sound(name, self._file(name).get_tensor(name))

    def part(self, name: str, dim: int, part: slice) -> torch.Tensor:
        """Rows (`dim` 0) or columns (1) of a matrix; the rest of it is not loaded."""
        matrix = self.slice(name)
        return self._sound(name, matrix[part] if dim == 0 else matrix[:, part])

    def _sound(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not name.endswith(".weight"):  # the draft's list of ids
            return tensor
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(
                f"model: {self.folder} has {name} as {str(tensor.dtype).removeprefix('torch.')}; "
                "re-save it as plain bf16 or fp32"
            )
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):  # one NaN or infinity is enough
            raise UserError(f"model: {self.folder} has values in {name} that are not finite")
        return tensor

    def check_shapes(self, config: LlamaConfig) -> None:
        """UserError where a weight is missing or has another shape than `config` says.

        What `config.shared_with_target` names is not looked for here.
        """
        hidden, inner = config.hidden_size, config.intermediate_size
        query, key = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        layer = {
            "input_layernorm": [hidden],
            "self_attn.q_proj": [query, hidden],
            "self_attn.k_proj": [key, hidden],
            "self_attn.v_proj": [key, hidden],
            "self_attn.o_proj": [hidden, query],
            "post_attention_layernorm": [hidden],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }
        wanted = {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(config.num_layers)
            for name, shape in layer.items()
        }
        wanted["model.norm.weight"] = [hidden]
        for name, shape in wanted.items():
            if name not in config.shared_with_target:
                found = list(self.slice(name).get_shape())
                if found != shape:
                    raise UserError(
                        f"model: {self.folder} has {name} of shape {found}, its config says {shape}"
                    )

    def slice(self, name: str) -> Any:
        return self._file(name).get_slice(name)

    def _file(self, name: str) -> Any:
        if name not in self._where:
            raise UserError(f"model: {self.folder} has no tensor {name}")
        return self._where[name]


def fingerprint(folder: Path) -> str:
    """Identity of a model's weights, the same however they are sharded: 16 hex digits.

    Hashes every tensor's name, dtype, shape and a sample of its first rows, not all bytes: a
    fine-tune changes every tensor, and a 405B must not be read whole to check a judge.
    """
    tensors = Tensors(folder)
    digest = hashlib.sha256()
    for name in tensors.names():
        part = tensors.slice(name)
        shape = part.get_shape()
        row_bytes = 2 * max(1, math.prod(shape[1:]))
        rows = part[: max(1, min(shape[0], _SAMPLE_BYTES // row_bytes))] if shape else part[:]
        sample = rows.contiguous().flatten().view(torch.uint8)[:_SAMPLE_BYTES]
        digest.update(f"{name} {part.get_dtype()} {shape}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_hash(folder: Path) -> str:
    """Identity of a vocabulary: 16 hex digits over `tokenizer.json`'s model and added tokens."""
    raw = read_json(folder / "tokenizer.json")
    core = json.dumps([raw.get("model"), raw.get("added_tokens")], sort_keys=True)
    return hashlib.sha256(core.encode()).hexdigest()[:16]
