"""A lean Llama and Qwen2 forward over packed ragged batches and preallocated key-value slots.

RMSNorm, rotary positions (with Llama-3.1's scaling), grouped-query attention, SwiGLU, tied or
untied embeddings, biases where the configuration has them (Qwen2's on q, k and v). The rows of all
sequences are packed into one [T, H] matrix for everything but attention, which runs per sequence
over that sequence's own slot. Several ranks may share a model (`tensor_parallel`): each then holds
a part of the heads, of the MLP and of the LM head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from judge_decoding.checkpoint import EMBEDDING, HEAD, Checkpoint, LlamaConfig, Tensors
from judge_decoding.errors import UserError
from judge_decoding.torch_engine.linear import Gated, Product
from judge_decoding.torch_engine.tensor_parallel import Group, Shard, split, sum_in_order
from judge_decoding.torch_engine.weights import (
    Weights,
    as_weights,
    gated,
    head_product,
    product,
    products_in,
)

_CONTEXT_STEP = 32


class Segment(NamedTuple):
    """`rows` rows of one sequence: positions start .. start + rows - 1 of slot `slot`."""

    slot: int
    start: int
    rows: int


class KeyValues:
    """Keys and values of every layer and slot, allocated once.

    `layers[l][slot]` is [2 * kv_heads, context, d], keys before values, so that one copy writes
    both. Positions past a sequence's length hold old values; attention masks them.
    """

    def __init__(self, config: LlamaConfig, slots: int, context: int, dtype: torch.dtype) -> None:
        shape = (config.num_layers, slots, 2 * config.num_kv_heads, context, config.head_dim)
        self.context = context
        try:
            self.data = torch.zeros(shape, dtype=dtype)
        except RuntimeError:
            size = math.prod(shape) * dtype.itemsize / 1e9
            raise UserError(
                f"limits: the caches of {slots} x {context} positions take {size:.1f} GB, more "
                "than there is; lower limits.max_sequences or limits.max_context"
            ) from None
        # Made once: making these views in every layer of every step costs as much as the copy.
        self.layers = [[self.data[i, slot] for slot in range(slots)] for i in range(shape[0])]


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


class RMSNorm:
    """x * rsqrt(mean(x^2) + eps) * weight, in float32, rounded once to x's dtype.

    On the CPU, PyTorch has no fused RMSNorm (eight small kernels) but a fused LayerNorm. Over
    [x, -x] the mean is 0 and the variance is mean(x^2): the first half of its output is RMSNorm.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.size, self.eps = weight.shape[0], eps
        self.weight = torch.cat([weight, weight])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x, x.neg()], -1)
        normed = F.layer_norm(both, (2 * self.size,), self.weight, None, self.eps)
        # Made contiguous once: otherwise every product that reads it would make its own copy.
        return normed[:, : self.size].contiguous()


class _Layer:
    """One transformer layer's weights; the query, key and value projections are fused."""

    def __init__(
        self,
        tensors: Tensors,
        index: int,
        config: LlamaConfig,
        shard: Shard,
        dtype: torch.dtype,
        weights: Weights,
    ) -> None:
        def norm(name: str) -> RMSNorm:
            weight = tensors.get(f"model.layers.{index}.{name}.weight")
            return RMSNorm(weight.to(dtype), config.rms_norm_eps)

        def part(name: str, dim: int, part: slice) -> torch.Tensor:
            return tensors.part(f"model.layers.{index}.{name}_proj.weight", dim, part)

        def bias(name: str, part: slice) -> torch.Tensor:
            return tensors.part(f"model.layers.{index}.{name}_proj.bias", 0, part)

        every = slice(None)
        self.attention_norm = norm("input_layernorm")
        rows = {p: shard.rows(config, p) for p in "qkv"}
        qkv = torch.cat([part(f"self_attn.{p}", 0, rows[p]) for p in "qkv"])
        qkv_bias = None
        if config.qkv_bias:
            qkv_bias = torch.cat([bias(f"self_attn.{p}", rows[p]) for p in "qkv"])
        self.qkv: Product = product(qkv, dtype, weights, qkv_bias)
        out_bias = config.out_bias and shard.adds_bias
        self.out: Product = product(
            part("self_attn.o", 1, rows["q"]),
            dtype,
            weights,
            bias("self_attn.o", every) if out_bias else None,
        )
        self.mlp_norm = norm("post_attention_layernorm")
        gate, up = (part(f"mlp.{name}", 0, shard.columns) for name in ("gate", "up"))
        biases = None
        if config.mlp_bias:
            biases = bias("mlp.gate", shard.columns), bias("mlp.up", shard.columns)
        self.gate_up: Gated = gated(gate, up, dtype, weights, biases)
        down_bias = config.mlp_bias and shard.adds_bias
        self.down: Product = product(
            part("mlp.down", 1, shard.columns),
            dtype,
            weights,
            bias("mlp.down", every) if down_bias else None,
        )


class Llama:
    """A Llama or Qwen2 model, run in three calls: `forward`, `final_norm` and `logits`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        context: int,
        weights: Weights | None = None,
        shared: Checkpoint | None = None,
        head_ids: torch.Tensor | None = None,
        group: Group | None = None,
    ) -> None:
        """dtype     of activations and caches
        weights   the format of the layers' matrices; None for `dtype`
        shared    the target, for the tensors that `config.shared_with_target` names
        head_ids  int64 [S], the ids that the LM head covers; None for all of them
        group     the ranks that share this model; None if this process holds all of it
        """

        config, tensors = checkpoint.config, checkpoint.tensors

        def source(name: str) -> tuple[Tensors, str]:
            owner = checkpoint
            if name in config.shared_with_target:
                if shared is None:
                    raise UserError(
                        f"model: {tensors.folder} takes {name} from a target, none given"
                    )
                owner = shared
            if owner.config.tie_word_embeddings and name not in owner.tensors:
                name = EMBEDDING if name == HEAD else HEAD  # saved under the other's name
            return owner.tensors, name

        index, size = (group.index, group.size) if group else (0, 1)
        shard = Shard.of(config, index, size)
        self.config = config
        self.local = shard.local(config)
        """`config` with this rank's counts of heads (also those of its caches) and MLP columns."""
        self.dtype = dtype
        self.weights: Weights = weights or as_weights(dtype)
        self.products_in = products_in(dtype, self.weights)
        """The dtype that decides how exact the layers are."""
        self._group = group if size > 1 else None
        tensors.check_shapes(config)
        tensors.check_tied(config)
        folder, name = source(EMBEDDING)
        self.embedding = folder.get(name).to(dtype)
        if tuple(self.embedding.shape) != (config.vocab_size, config.hidden_size):
            raise UserError(
                f"model: {tensors.folder} has embeddings {list(self.embedding.shape)}, its config "
                f"says [{config.vocab_size}, {config.hidden_size}]"
            )
        self._columns = split(config.vocab_size if head_ids is None else len(head_ids), size)
        mine = self._columns[index]
        folder, name = source(HEAD)
        if config.tie_word_embeddings and HEAD not in config.shared_with_target:
            head = self.embedding[mine if head_ids is None else head_ids[mine]]
        elif head_ids is None:
            head = folder.part(name, 0, mine)
        else:
            head = folder.get(name)[head_ids[mine]]
        self.head = head_product(head, dtype, self.weights)
        self.norm = RMSNorm(tensors.get("model.norm.weight").to(dtype), config.rms_norm_eps)
        self.layers = [
            _Layer(tensors, i, config, shard, dtype, self.weights) for i in range(config.num_layers)
        ]
        angles = torch.outer(torch.arange(context).float(), rope_frequencies(config))
        half_cos, half_sin = angles.cos(), angles.sin()
        # rotate_half(x) * sin == roll(x, d/2) * [-sin, sin]: one copy fewer than concatenating.
        self.cos = torch.cat([half_cos, half_cos], -1).to(dtype).unsqueeze(1)
        self.sin = torch.cat([-half_sin, half_sin], -1).to(dtype).unsqueeze(1)

    def forward(self, tokens: torch.Tensor, segments: list[Segment], kv: KeyValues) -> torch.Tensor:
        """Read `tokens` int64 [T] (the segments' rows in order) and fill `kv`; return the last
        hidden states *before* the final norm, [T, H].
        """
        config = self.local
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        total = tokens.shape[0]
        if len(segments) == 1:  # a slice costs nothing, an index copies
            at = slice(segments[0].start, segments[0].start + segments[0].rows)
            cos, sin = self.cos[at], self.sin[at]
        else:
            rows = torch.cat([torch.arange(s.start, s.start + s.rows) for s in segments])
            cos, sin = self.cos[rows], self.sin[rows]
        masks = [
            _causal_mask(s, heads // kv_heads, _width(s, kv.context), self.dtype) for s in segments
        ]
        x = F.embedding(tokens, self.embedding)
        for index, layer in enumerate(self.layers):
            h = layer.attention_norm(x)
            qkv = layer.qkv(h).view(total, heads + 2 * kv_heads, size)
            qk = qkv[:, : heads + kv_heads]
            torch.addcmul(qk * cos, qk.roll(size // 2, -1), sin, out=qk)
            x = self._plus(layer.out, self._attend(qkv, segments, masks, kv.layers[index]), x)
            h = layer.mlp_norm(x)
            x = self._plus(layer.down, layer.gate_up(h), x)
        return x

    def _plus(self, linear: Product, inner: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x + linear(inner), where every rank holds a part of `inner` and of the weight."""
        if self._group is None:
            return linear.plus(inner, x)
        part = linear(inner)
        return x + sum_in_order(self._group.exchange(part, [part.shape] * self._group.size))

    def _attend(
        self,
        qkv: torch.Tensor,
        segments: list[Segment],
        masks: list[torch.Tensor],
        slots: list[torch.Tensor],
    ) -> torch.Tensor:
        """Write the new keys and values, then attend per sequence; return [T, heads * d].

        The query heads that share a key head become rows of one matrix. The keys are then read
        once per group, which for one row in bf16 is 3x faster than expanding them.
        """
        heads, kv_heads, size = self.local.num_heads, self.local.num_kv_heads, qkv.shape[-1]
        group = heads // kv_heads
        outputs = []
        row = 0
        for (slot, start, count), mask in zip(segments, masks, strict=True):
            mine = qkv[row : row + count]
            cache = slots[slot]
            cache[:, start : start + count] = mine[:, heads:].transpose(0, 1)
            queries = mine[:, :heads].view(count, kv_heads, group, size).permute(1, 2, 0, 3)
            seen = cache[:, : mask.shape[-1]].unsqueeze(0)
            attended = F.scaled_dot_product_attention(
                queries.reshape(1, kv_heads, group * count, size),
                seen[:, :kv_heads],
                seen[:, kv_heads:],
                attn_mask=mask,
            )
            attended = attended.view(kv_heads, group, count, size).permute(2, 0, 1, 3)
            outputs.append(attended.reshape(count, heads * size))
            row += count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """pre-norm [n, H] -> post-norm [n, H]: the LM head's input."""
        return self.norm(hidden)

    def logits(self, post_norm: torch.Tensor) -> torch.Tensor:
        """post-norm [n, H] -> float32 [n, V], or [n, S] over a draft's short-list; whole on every
        rank.

        They are not rounded to bfloat16, in which 28 is followed by 28.125, so that near-ties would
        become ties, and the smallest id would win.
        """
        part = self.head.wide(post_norm)
        if self._group is None:
            return part
        shapes = [(part.shape[0], c.stop - c.start) for c in self._columns]
        return torch.cat(self._group.exchange(part, shapes), -1)


def _width(segment: Segment, context: int) -> int:
    """The number of positions that attention reads: those that hold tokens, rounded up.

    The matrix kernels are compiled and cached per shape. A context grows by a few tokens per round,
    so that without rounding nearly every round would bring new shapes.
    """
    end = segment.start + segment.rows
    return min(-(-end // _CONTEXT_STEP) * _CONTEXT_STEP, context)


def _causal_mask(segment: Segment, group: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive [group * rows, width]: row i of each group sees positions up to start + i."""
    mask = torch.full((segment.rows, width), -torch.inf, dtype=dtype).triu_(segment.start + 1)
    return mask.repeat(group, 1)
