"""The target with the judge inside, for `trtllm-build --model_cls_file`.

`engines` starts trtllm-build with the path of this file, and a `judge_build.JudgeBuild` says what
to build. The package `judge_decoding` must be installed where trtllm-build runs. The class is the
stock Llama plus one layer: the JudgeAccept plugin between the LM head and the `logits` output, so
that TensorRT-LLM's unmodified runtime accepts what the judge accepts. The engine's inputs stay the
stock ones. It has one more output, `judge_scores` float32 [B, max_draft_len], NaN where there is no
score.

The judge's feature says what the plugin reads:
- `post_norm`: the LM head's input, already gathered to the rows that get logits
- `pre_norm`: the input of the final norm `ln_f`, gathered here by last_token_ids

With tensor parallelism every rank decodes by itself, and only the logits are gathered, so only they
are sure to be equal on every rank. The residual stream and the norm are computed on each rank by
kernels that TensorRT tunes there. One differing bit of the feature at the threshold would give the
ranks different texts, and the next all-reduce would hang. So the feature is put together from one
part per rank before the plugin reads it (`compat.same_on_ranks`). The LM head reads it too, which
orders the two gathers: they would otherwise be independent, and TensorRT runs independent layers in
any order, also on several streams, while NCCL needs one order on all ranks.

Read against TensorRT-LLM 1.2.1: tensorrt_llm/models/modeling_utils.py
(DecoderModelForCausalLM.forward: transformer, gather_last_token_logits, lm_head, multipliers,
mark_output), models/llama/model.py (LLaMAModel.forward: ln_f), commands/build.py
(SourceFileLoader), cpp/tensorrt_llm/batch_manager/trtGptModelInflightBatching.h
(broadcastPostDecoder: only behind a logits post-processor that runs on one rank).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError
from judge_decoding.trtllm import compat as trtllm
from judge_decoding.trtllm.build.judge_build import JudgeBuild, read_build


class JudgeLlamaForCausalLM(trtllm.LLaMAForCausalLM):  # type: ignore[misc]  # is Any here
    """A LLaMAForCausalLM whose logits the judge edits."""

    def __init__(self, config: Any) -> None:
        build = read_build()
        judge = Judge.load(build.judge)
        _check(config, build, judge)
        trtllm.load_plugin(build.plugin)
        super().__init__(config)
        # Not in a layer's constructor, since quantization and optimization passes replace layers.
        self.judge_build, self.judge = build, judge

    def forward(
        self, input_ids: Any, *args: Any, last_token_ids: Any, attention_params: Any, **kwargs: Any
    ) -> Any:
        """The stock forward, with the judge after the LM head.

        The builder passes every input by name (tensorrt_llm/builder.py `build`: model(**inputs)).
        """
        pre_norm = self.judge.metadata.feature == "pre_norm"
        mapping = self.config.mapping
        norms: list[tuple[Any, Callable[[Any], Any]]] = []

        def norm(stock: Callable[..., Any], hidden: Any, *more: Any, **named: Any) -> Any:
            norms.append((hidden, lambda rows: stock(rows, *more, **named)))
            return stock(hidden, *more, **named)

        def head(stock: Callable[..., Any], hidden: Any, *more: Any, **named: Any) -> Any:
            residual, final_norm = norms[-1]
            feature = trtllm.gather_rows(residual, last_token_ids) if pre_norm else hidden
            if mapping.tp_size > 1:
                feature = trtllm.same_on_ranks(feature, mapping)
                hidden = final_norm(feature) if pre_norm else feature
            logits = stock(hidden, *more, **named)
            return self._judged(
                logits, feature, input_ids, last_token_ids, attention_params.context_lengths
            )

        with wrapped(self.transformer.ln_f, norm), wrapped(self.lm_head, head):
            return super().forward(
                input_ids,
                *args,
                last_token_ids=last_token_ids,
                attention_params=attention_params,
                **kwargs,
            )

    def _judged(self, logits: Any, *inputs: Any) -> Any:
        """The edited logits, in the engine's logits dtype. They are cast here because the LM head
        gives bfloat16, the plugin takes only float32 and float16, and the stock cast, in
        mark_output, comes after the plugin."""
        build = self.judge_build
        logits = trtllm.cast(logits, self.config.logits_dtype)
        edited, scores = trtllm.add_judge(
            [logits, *inputs],
            weight=self.judge.weight.numpy(),
            bias=self.judge.bias,
            threshold=build.threshold,
            boost=build.boost,
            vocab_size=build.vocab_size,
            end_ids=build.end_ids,
            protect_end_ids=build.protect_end_ids,
            max_draft_len=build.max_draft_len,
        )
        scores.mark_output("judge_scores", "float32")
        return edited


@contextmanager
def wrapped(module: Any, around: Callable[..., Any]) -> Iterator[None]:
    """Call `around(stock forward, ...)` instead of the module's forward, only inside the block.

    The instance is changed and not its class, so that names of weights and layers stay the
    checkpoint's, and a layer that quantization has put there is kept.
    """
    stock = module.forward
    module.forward = lambda *args, **kwargs: around(stock, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward


def _check(config: Any, build: JudgeBuild, judge: Judge) -> None:
    """UserError for what cannot work, before a build of hours."""
    mapping = config.mapping
    if mapping.pp_size != 1 or mapping.cp_size != 1:
        raise UserError(
            f"judge_llama: pp_size {mapping.pp_size} and cp_size {mapping.cp_size} must be 1: the "
            "plugin needs input_ids and all rows on every rank; convert with --tp_size alone"
        )
    if config.hidden_size % mapping.tp_size:
        raise UserError(
            f"judge_llama: tp_size {mapping.tp_size} does not divide the hidden size "
            f"{config.hidden_size}, whose columns the ranks share; take one that does"
        )
    for name in ("output_multiplier_scale", "mup_width_multiplier"):
        if (value := getattr(config, name, None)) not in (None, 1):
            raise UserError(
                f"judge_llama: the checkpoint has {name} {value}, which would scale the logits "
                "behind the judge; the judge is for Llamas, which have none"
            )
    if config.hidden_size != judge.metadata.hidden_size:
        raise UserError(
            f"judge_llama: the judge is for hidden size {judge.metadata.hidden_size}, the "
            f"checkpoint has {config.hidden_size}; give the judge trained on this target"
        )
    if config.vocab_size != build.vocab_size:
        raise UserError(
            f"judge_llama: the checkpoint has {config.vocab_size} tokens, the target's config.json "
            f"{build.vocab_size}; convert the checkpoint again"
        )
