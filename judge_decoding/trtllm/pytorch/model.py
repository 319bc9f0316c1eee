"""The judged target as a model of TensorRT-LLM's PyTorch backend: stock Llama, edited logits.

Importing this module registers the architecture `JudgeLlamaForCausalLM`, which the `config.json` of
a prepared folder names (`judged_target`). The draft keeps the stock class. Upstream accepts a
drafted token that equals the token it samples from the target's row, so a raised logit is enough.
The registered class reaches the worker processes by its name, so this package must be installed
where they run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from judge_decoding.decoding.judge import Judge
from judge_decoding.trtllm.pytorch import compat
from judge_decoding.trtllm.pytorch.judged_target import ARCHITECTURE, JudgedTarget
from judge_decoding.trtllm.pytorch.rows import raise_judged

_UPSTREAM = compat.upstream()
_Llama: Any = _UPSTREAM.llama


class JudgedLogits(nn.Module):
    """The stock logits processor, with the judge behind it.

    The buffers are no part of a checkpoint (`persistent=False`).
    """

    weight: Tensor
    end_ids: Tensor

    def __init__(
        self, stock: nn.Module, judge: Judge, end_ids: Tensor, target: JudgedTarget, mapping: Any
    ) -> None:
        super().__init__()
        self.stock = stock
        self.rule = target.rule(judge)
        self.agree = compat.one_ranks_scores(_UPSTREAM, mapping)
        self.post_norm = judge.metadata.feature == "post_norm"
        self.register_buffer("weight", judge.weight, persistent=False)
        self.register_buffer("end_ids", end_ids, persistent=False)
        self.token_ids: Tensor | None = None
        self.pre_norm: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The stock signature: (hidden_states, lm_head, attn_metadata, return_context_logits)."""
        logits: Tensor = self.stock.forward(hidden_states, *args, **kwargs)
        token_ids, self.token_ids = self.token_ids, None
        if token_ids is None:  # no drafts in this pass
            return logits
        metadata = kwargs["attn_metadata"] if "attn_metadata" in kwargs else args[1]
        count = compat.generation_rows(_UPSTREAM, metadata, len(logits))
        if count == 0:
            return logits
        first, last = metadata.num_ctx_tokens, metadata.num_tokens
        feature = hidden_states[-count:]
        if not self.post_norm:
            assert self.pre_norm is not None  # the hook on the last layer ran before
            feature = self.pre_norm[first:last]
        raise_judged(
            logits[-count:],
            feature,
            token_ids[first:last],
            metadata.seq_lens_cuda[metadata.num_contexts : metadata.num_seqs],
            weight=self.weight,
            end_ids=self.end_ids,
            rule=self.rule,
            agree=self.agree,
        )
        return logits

    def keep_pre_norm(self, _layer: nn.Module, _args: Any, output: tuple[Tensor, Tensor]) -> None:
        """Forward hook of the last layer, which returns (after the final norm, before it)."""
        self.pre_norm = output[1]


@_UPSTREAM.register_auto_model(ARCHITECTURE)
class JudgeLlamaForCausalLM(_Llama):  # type: ignore[misc]  # is Any here
    """A LlamaForCausalLM whose logits the judge edits when a pass verifies drafts."""

    logits_processor: Any

    def __init__(self, model_config: Any) -> None:
        compat.check_mapping(model_config.mapping)
        target = JudgedTarget.of_config(model_config.pretrained_config)
        judge, end_ids = _values(target)
        super().__init__(model_config)
        judged = JudgedLogits(self.logits_processor, judge, end_ids, target, model_config.mapping)
        self.logits_processor = judged
        if not judged.post_norm:
            last = model_config.pretrained_config.num_hidden_layers - 1
            self.model.layers[last].register_forward_hook(judged.keep_pre_norm)

    def forward(
        self,
        attn_metadata: Any,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_context_logits: bool = False,
        spec_metadata: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The stock forward; the parameters are upstream's, since it inspects this signature."""
        self.logits_processor.token_ids = None if spec_metadata is None else input_ids
        return super().forward(
            attn_metadata=attn_metadata,
            input_ids=input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_context_logits=return_context_logits,
            spec_metadata=spec_metadata,
            **kwargs,
        )


def _values(target: JudgedTarget) -> tuple[Judge, Tensor]:
    """The judge and the end ids [E] int64.

    Read in a thread: upstream makes models under a dispatch mode (`MetaInitMode`) in which
    safetensors cannot read, and such modes hold for one thread.
    """

    def read() -> tuple[Judge, Tensor]:
        return target.load_judge(), torch.tensor(target.end_ids, dtype=torch.int64)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read).result()
