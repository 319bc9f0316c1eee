"""Memory that an engine takes on each of its GPUs beside weights and caches.

From the sources of TensorRT-LLM near v1.2.1: cpp/tensorrt_llm/runtime/decoderState.cpp @00fdb650
(reshapeSpeculativeDecodingBuffers), layers/externalDraftTokensLayer.cpp @1d263f15 (allocateBuffer),
batch_manager/runtimeBuffers.h (GenerationLogitsCache).
"""

from __future__ import annotations

from dataclasses import dataclass

from judge_decoding.config import Deployment
from judge_decoding.config.layout import Model

TENSOR_ELEMENTS = 2**31 - 1
"""The most elements of one tensor in TensorRT. Above 16384 tokens per pass the builder warns of it
(tensorrt_llm/_common.py `check_max_num_tokens`), whatever the model's width."""
KEPT_LOGITS = 8
"""Steps whose logits the runtime keeps on the GPU where logits are gathered: the draft's."""


@dataclass(frozen=True)
class Buffers:
    """Bytes on each rank of an engine.

    activations  one pass of `max_num_tokens` tokens; an estimate, since TensorRT reuses memory
    logits       the pass's logits; twice where the plugin copies them
    decoder      the runtime's decoder, with space for `max_draft_len` drafts of every sequence
    """

    activations: int
    logits: int
    decoder: int

    @property
    def total(self) -> int:
        return self.activations + self.logits + self.decoder


def buffers(
    deployment: Deployment, model: Model, *, hidden: int, intermediate: int, vocab: int
) -> Buffers:
    """The buffers of a deployment's draft or target, given the model's sizes."""
    assert deployment.trtllm is not None and deployment.ranks is not None
    build, sequences = deployment.trtllm, deployment.limits.max_sequences
    tp: int = getattr(deployment.ranks, model).tp
    drafts = deployment.max_draft_len if model == "target" else 0
    element = 4 if build.logits_dtype == "float32" else 2
    vocab += -vocab % tp  # padded; every rank holds all logits
    per_token = 2 * (4 * hidden + 3 * intermediate // tp)
    copies = 2 if model == "target" and deployment.acceptance.rule == "judge" else 1
    # embeddingBias and runtimeLogits
    decoder = sequences * vocab * 2 * element
    if model == "target":
        # draftProbs, targetProbs, draftLogits [sequences, drafts + 1, V], also without draft logits
        decoder += 3 * sequences * (drafts + 1) * vocab * element
        # mTargetLogits, mOutputIdsAfterSampling (int32), mMaskBuffer (bool) [sequences, V]
        decoder += sequences * vocab * (element + 4 + 1)
    else:
        decoder += KEPT_LOGITS * sequences * vocab * element
    return Buffers(
        activations=build.max_num_tokens * per_token,
        logits=copies * sequences * (drafts + 1) * vocab * element,
        decoder=decoder,
    )


def widest_tensor(deployment: Deployment, model: Model, *, intermediate: int) -> int:
    """Elements of the largest tensor of a pass of `max_num_tokens`: gate and up of one MLP."""
    assert deployment.trtllm is not None and deployment.ranks is not None
    tp: int = getattr(deployment.ranks, model).tp
    return deployment.trtllm.max_num_tokens * 2 * intermediate // tp
