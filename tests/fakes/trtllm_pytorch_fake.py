"""A RECORDING FAKE of TensorRT-LLM's PyTorch backend. It is not TensorRT-LLM and proves nothing
about it.

Built from signatures and control flow in NVIDIA/TensorRT-LLM (the files and commits are named in
judge_decoding/trtllm/pytorch/compat.py): registration, `SpecDecOneEngineForCausalLM.forward` of
both generations, `LogitsProcessor`, `_forward_step`, strict acceptance, and `MetaInitMode`, under
which models are made. A layer of the model adds its token's embedding; the final norm doubles.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

REGISTERED: dict[str, type] = {}


class MetaInitMode(TorchDispatchMode):
    """modeling_utils.py: while a model is made, `empty` tensors are made on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if func in (aten.empty.memory_format, aten.empty_like.default):
            return func(*args, **kwargs | {"device": torch.device("meta")})
        return func(*args, **kwargs)


@dataclass
class Mapping:
    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    enable_attention_dp: bool = False


@dataclass
class AttentionMetadata:
    """attention metadata of a packed batch: context requests first."""

    seq_lens: list[int]
    num_contexts: int
    padded_num_tokens: int | None = None
    seq_lens_cuda: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.seq_lens_cuda = torch.tensor(self.seq_lens, dtype=torch.int32)

    @property
    def num_seqs(self) -> int:
        return len(self.seq_lens)

    @property
    def num_tokens(self) -> int:
        return sum(self.seq_lens)

    @property
    def num_ctx_tokens(self) -> int:
        return sum(self.seq_lens[: self.num_contexts])


class LogitsProcessor(nn.Module):
    def forward(
        self,
        hidden_states: Tensor,
        lm_head: nn.Linear,
        attn_metadata: AttentionMetadata,
        return_context_logits: bool = False,
    ) -> Tensor:
        if not return_context_logits:
            last = torch.cumsum(attn_metadata.seq_lens_cuda, dim=0, dtype=torch.long) - 1
            hidden_states = hidden_states[last]
        return lm_head(hidden_states).float()


class DecoderLayer(nn.Module):
    """modeling_llama.py: returns (the next norm's output, the residual before it)."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        total = hidden_states if residual is None else residual + hidden_states / 2
        return 2 * total, total


class LlamaModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(config.num_hidden_layers))

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        hidden, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return hidden


class LlamaForCausalLM(nn.Module):
    def __init__(self, model_config: Any) -> None:
        super().__init__()
        config = model_config.pretrained_config
        self.model_config = model_config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.logits_processor = LogitsProcessor()
        self.spec_worker: Callable[..., Any] | None = None

    def forward(
        self,
        attn_metadata: Any,
        input_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        return_context_logits: bool = False,
        spec_metadata: Any = None,
        resource_manager: Any = None,
        **kwargs: Any,
    ) -> Any:
        hidden_states = self.model(input_ids=input_ids, attn_metadata=attn_metadata)
        if attn_metadata.padded_num_tokens is not None:
            hidden_states = hidden_states[: attn_metadata.num_tokens]
        if self.spec_worker is not None:
            logits = self.logits_processor.forward(
                hidden_states[spec_metadata.gather_ids], self.lm_head, attn_metadata, True
            )
            return self.spec_worker(logits=logits, attn_metadata=attn_metadata)
        return self.logits_processor.forward(
            hidden_states, self.lm_head, attn_metadata, return_context_logits
        )


def gather_ids(metadata: AttentionMetadata) -> Tensor:
    """The last position of each context request, then every position of the others."""
    ends = torch.tensor(metadata.seq_lens).cumsum(0)[: metadata.num_contexts] - 1
    return torch.cat([ends, torch.arange(metadata.num_ctx_tokens, metadata.num_tokens)])


def forward_step(model: Any, input_ids: Tensor, metadata: AttentionMetadata) -> Tensor:
    """`_forward_step`, or the one-model worker's view: logits of the rows of `gather_ids`."""
    spec = SimpleNamespace(gather_ids=gather_ids(metadata))
    logits = model(
        attn_metadata=metadata,
        input_ids=input_ids,
        return_context_logits=True,
        spec_metadata=spec,
    )
    return logits if model.spec_worker is not None else logits[spec.gather_ids]


def accept(logits: Tensor, metadata: AttentionMetadata, drafts: Tensor) -> list[list[int]]:
    """`_sample_and_accept_draft_tokens_base`, greedy: the tokens that each request emits."""
    tokens, contexts = logits.argmax(-1), metadata.num_contexts
    generated = tokens[contexts:].reshape(len(drafts), -1)
    run = torch.cumprod((drafts == generated[:, :-1]).int(), dim=-1).sum(1)
    emitted = [[int(token)] for token in tokens[:contexts]]
    rows = zip(generated.tolist(), run.tolist(), strict=True)
    return emitted + [row[: count + 1] for row, count in rows]


def install(monkeypatch: pytest.MonkeyPatch, version: str, **changes: Any) -> None:
    """Makes `import tensorrt_llm...` find this fake, as that version."""
    REGISTERED.clear()

    def register_auto_model(name: str) -> Callable[[type], type]:
        def decorator(cls: type) -> type:
            REGISTERED[name] = cls
            return cls

        return decorator

    def allgather(input: Tensor, mapping: Any, dim: int = -1, sizes: Any = None) -> Tensor:
        return torch.cat([input] * mapping.tp_size, dim=dim)

    parts: dict[str, dict[str, Any]] = {
        "tensorrt_llm": {},
        "tensorrt_llm._torch": {},
        "tensorrt_llm._torch.models": {},
        "tensorrt_llm._torch.models.modeling_llama": {"LlamaForCausalLM": LlamaForCausalLM},
        "tensorrt_llm._torch.models.modeling_utils": {"register_auto_model": register_auto_model},
        "tensorrt_llm._torch.distributed": {"allgather": allgather},
    }
    for name, content in parts.items():
        module = types.ModuleType(name)
        vars(module).update(content | {k: v for k, v in changes.items() if k in content})
        monkeypatch.setitem(sys.modules, name, module)
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda p: version if p == "tensorrt_llm" else real(p))
