"""TensorRT-LLM's external-draft acceptance in NumPy: how the stock runtime packs a batch for the
target engine, and which drafted tokens it accepts from the engine's logits. Greedy requests only
(temperature and penalties off; top-k 1, the default).

It follows the public sources of NVIDIA/TensorRT-LLM, which we have not run:

- cpp/tensorrt_llm/batch_manager/runtimeBuffers.cpp (setBufferSizes, setFromInputs): the packing
- cpp/tensorrt_llm/batch_manager/handleContextLogits.cpp: the decoder's view of the logits
- cpp/tensorrt_llm/runtime/gptDecoderBatched.cpp: step i looks at row i
- cpp/tensorrt_llm/layers/externalDraftTokensLayer.cpp @1d263f15: the order of a step
- cpp/tensorrt_llm/kernels/speculativeDecoding/externalDraftTokensKernels.cu @2931b93f:
  maskTargetLogitsKernel, acceptDraftTokensKernel, forwardAcceptedTokensKernel

Between equal logits, the runtime's top-k has no fixed preference (kernels/samplingTopKKernels.cu
uses reduce_topk_op_2, which returns its second argument for equals); this emulator takes the lowest
id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class EngineRequest:
    """One request's part in one engine step.

    In the context phase, `tokens` are the prompt tokens to compute now (those that no KV block
    holds; at least one), and `draft` follows them on the last chunk. In the generation phase there
    is one token.
    """

    tokens: tuple[int, ...]
    draft: tuple[int, ...] = ()
    last_chunk: bool = True
    generation: bool = False
    prompt_length: int = 1  # a generation request's entry in context_lengths

    def __post_init__(self) -> None:
        if not self.tokens or (self.generation and (len(self.tokens) != 1 or self.draft)):
            raise ValueError("a request computes at least one token, in the generation phase one")
        if self.draft and not self.last_chunk:
            raise ValueError("drafts follow the last chunk of a prompt")


@dataclass(frozen=True)
class Batch:
    """The engine's inputs, int32, and the requests in their packed order."""

    requests: list[EngineRequest]
    input_ids: np.ndarray  # [T]
    last_token_ids: np.ndarray  # [R]
    context_lengths: np.ndarray  # [B]
    rows: list[slice] = field(default_factory=list)  # each request's logits rows


def pack(requests: Sequence[EngineRequest]) -> Batch:
    """Pack unfinished chunks, then last chunks, then generation requests, like setFromInputs."""
    ordered = sorted(requests, key=lambda r: (r.generation, r.last_chunk))
    ids: list[int] = []
    last: list[int] = []
    lengths: list[int] = []
    rows: list[slice] = []
    for request in ordered:
        ids += request.tokens
        first = len(last)
        last.append(len(ids))  # 1-based position of the last prompt token
        for token in request.draft:
            ids.append(token)
            last.append(len(ids))
        rows.append(slice(first, len(last)))
        lengths.append(
            request.prompt_length
            if request.generation
            else len(request.tokens) + len(request.draft)
        )
    return Batch(
        ordered,
        np.array(ids, dtype=np.int32),
        np.array(last, dtype=np.int32),
        np.array(lengths, dtype=np.int32),
        rows,
    )


@dataclass(frozen=True)
class Accepted:
    """What one step adds to a request: accepted drafts, then the target's own token.

    The end token is not part of `tokens`: the sequence length does not count it.
    """

    tokens: list[int]
    accepted: int
    finished: bool


def accept(
    logits: np.ndarray,
    draft: Sequence[int],
    *,
    draft_logits: np.ndarray | None = None,
    thresholds: Sequence[float] | None = None,
    end_id: int = -1,
    vetoed: Sequence[int] = (),
) -> Accepted:
    """Run the decoder over one request's rows, logits [K + 1, V].

    draft_logits  [K, V] for acceptance by probabilities; None for acceptance by token ids
    thresholds    [K], one per step for acceptance by probabilities: a constant, or uniform draws
    vetoed        ids banned in every row (bad words, minimum length): -inf before acceptance
    """
    tokens: list[int] = []
    for step in range(len(draft) + 1):
        row = logits[step].astype(np.float32)
        row[list(vetoed)] = -np.inf
        choice = int(row.argmax())
        if step == len(draft):
            return _own(tokens, choice, end_id)
        drafted = int(draft[step])
        if draft_logits is None:
            ok, correction = choice == drafted, choice
        else:
            if thresholds is None:
                raise ValueError("acceptance by probabilities needs thresholds")
            # Top-k 1 leaves one token: the target's distribution is one-hot.
            p = np.zeros(len(row), dtype=np.float32)
            p[choice] = 1.0
            q = _softmax(draft_logits[step])
            ok = bool(p[drafted] > np.float32(thresholds[step]) * q[drafted])
            rest = np.maximum(p - q, 0.0)
            if not ok and rest.sum() == 0.0:
                raise ZeroDivisionError("upstream normalises an empty residual here")
            correction = int(rest.argmax())
        if not ok:
            return _own(tokens, correction, end_id)
        if drafted == end_id:
            return Accepted(tokens, step, True)
        tokens.append(drafted)
    raise AssertionError("unreachable")


def decode(edited: np.ndarray, batch: Batch, end_id: int = -1) -> list[Accepted]:
    """Run all requests of a batch in packed order, by token ids. An unfinished chunk adds nothing.

    A context request's rows are the last 1 + K of its own (handleContextLogits)."""
    results = []
    for request, rows in zip(batch.requests, batch.rows, strict=True):
        if request.last_chunk:
            results.append(accept(edited[rows], request.draft, end_id=end_id))
        else:
            results.append(Accepted([], 0, False))
    return results


def _own(tokens: list[int], token: int, end_id: int) -> Accepted:
    finished = token == end_id
    return Accepted(tokens if finished else [*tokens, token], len(tokens), finished)


def _softmax(row: np.ndarray) -> np.ndarray:
    exponents = np.exp(row.astype(np.float32) - row.max())
    return exponents / exponents.sum()
