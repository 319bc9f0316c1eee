"""The sizes of a Llama: from its folder, or by a known name where the folder is not at hand."""

from __future__ import annotations

from dataclasses import dataclass

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import ModelConfig
from judge_decoding.errors import UserError


@dataclass(frozen=True)
class ModelShape:
    """The sizes that memory and time follow from."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def layer_parameters(self, tp: int = 1) -> int:
        """Parameters of all layers on all `tp` ranks: q, k, v, o, gate, up, down. If there are more
        ranks than KV heads, ranks hold copies of heads. Norms are left out (0.01 %)."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + max(self.kv_heads, tp))
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Parameters of the LM head; the embedding has as many. An engine holds both, even tied."""
        return self.vocab * self.hidden

    def kv_bytes(self, element_bytes: int, tp: int = 1) -> float:
        """Bytes of one token's keys and values on one of `tp` ranks, which hold at least one KV
        head each."""
        heads = max(self.kv_heads / tp, 1)
        return 2 * self.layers * heads * self.head_dim * element_bytes


_70B = ModelShape(80, 8192, 28672, 64, 8, 128, 128256)
SHAPES = {
    "llama-3.2-1b": ModelShape(16, 2048, 8192, 32, 8, 64, 128256),
    "llama-3.2-3b": ModelShape(28, 3072, 8192, 24, 8, 128, 128256),
    "llama-3.1-8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256),
    "llama-3.1-70b": _70B,
    "llama-3.3-70b": _70B,
    "llama-3.1-405b": ModelShape(126, 16384, 53248, 128, 8, 128, 128256),
}
"""Name -> sizes, from config.json of meta-llama's releases."""


def shape_of(model: ModelConfig) -> ModelShape:
    """The folder's config.json where there is one, else the known shape that the file names."""
    if model.model.is_file() or (model.model / "config.json").is_file():
        config = Checkpoint(model.model).config
        return ModelShape(
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.vocab_size,
        )
    if model.shape is None:
        raise UserError(
            f"model: no {model.model}/config.json; give its `shape`: {', '.join(SHAPES)}"
        )
    if model.shape not in SHAPES:
        raise UserError(f"model: unknown shape {model.shape!r}; known are {', '.join(SHAPES)}")
    return SHAPES[model.shape]
