"""All uses of TensorRT-LLM's PyTorch backend, and what differs between its two generations.

Read from NVIDIA/TensorRT-LLM: `_torch/models/modeling_speculative.py`
(SpecDecOneEngineForCausalLM.forward) @b35ac1b6 and @00679c66, `_torch/speculative/draft_target.py`,
`_torch/speculative/interface.py` (SpecWorkerBase), `_forward_step` of the model engine,
`_torch/distributed/ops.py` @0071496d, and `executor/proxy.py`, which sends the registered classes
to the workers.

    two_model  1.2.x: the target's pass returns a row of logits for every packed token; rows are
               gathered behind the model
    one_model  1.3 and later: it returns one row per context request and every row of a generation
               request, and the draft runs inside the same model

In both, the rows of generation requests are the last ones. Importing this module does not import
`tensorrt_llm`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Literal

from torch import Tensor

from judge_decoding.errors import UserError

Generation = Literal["two_model", "one_model"]
_FORWARD = {"attn_metadata", "input_ids", "return_context_logits", "spec_metadata"}


@dataclass(frozen=True)
class Upstream:
    """What the judged model is made of. `allgather(tensor, mapping, dim)` is over the TP group."""

    version: str
    generation: Generation
    llama: Any
    register_auto_model: Callable[[str], Callable[[type], type]]
    allgather: Callable[..., Tensor]


def generation_of(version: str) -> Generation:
    """The generation of a TensorRT-LLM version; UserError for one that this was not written for."""
    match = re.match(r"1\.(\d+)(\D|$)", version)
    minor = int(match[1]) if match else 0
    if minor < 2:
        raise UserError(
            f"TensorRT-LLM {version}: the judge on the PyTorch backend is written for 1.2 and for "
            "1.3 and later 1.x; use a container with one of these (docs/h100-pytorch.md)"
        )
    return "two_model" if minor == 2 else "one_model"


def installed_generation() -> Generation:
    """The generation that is installed here. Does not import it, which takes half a minute."""
    return generation_of(_version())


def upstream() -> Upstream:
    """Import TensorRT-LLM's parts. UserError if it is missing, another version or changed."""
    version = _version()
    generation = generation_of(version)
    try:
        llama = import_module("tensorrt_llm._torch.models.modeling_llama").LlamaForCausalLM
        register = import_module("tensorrt_llm._torch.models.modeling_utils").register_auto_model
        allgather = import_module("tensorrt_llm._torch.distributed").allgather
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"TensorRT-LLM {version} lacks a part that the judged model is made of ({error}); use "
            "a version named in docs/h100-pytorch.md"
        ) from None
    missing = _FORWARD - set(inspect.signature(llama.forward).parameters)
    if missing:
        raise UserError(
            f"TensorRT-LLM {version}: LlamaForCausalLM.forward no longer takes "
            f"{', '.join(sorted(missing))}; use a version named in docs/h100-pytorch.md"
        )
    return Upstream(version, generation, llama, register, allgather)


def check_mapping(mapping: Any) -> None:
    """UserError unless the model is split by tensor parallelism alone."""
    wrong = [name for name in ("pp_size", "cp_size") if getattr(mapping, name, 1) > 1]
    if getattr(mapping, "enable_attention_dp", False):
        wrong.append("enable_attention_dp")
    if wrong:
        raise UserError(
            f"judge: the target is split by {', '.join(wrong)}; the judge needs every row on every "
            "rank, so use tensor parallelism alone"
        )


def generation_rows(found: Upstream, attn_metadata: Any, rows: int) -> int:
    """How many of the pass's `rows` logit rows, at their end, are of generation requests.

    Reads host integers only. RuntimeError if the pass did not return the rows that this generation
    returns, since the judge would then read a wrong token.
    """
    tail = int(attn_metadata.num_tokens - attn_metadata.num_ctx_tokens)
    contexts = int(attn_metadata.num_contexts)
    expected = int(attn_metadata.num_tokens) if found.generation == "two_model" else contexts + tail
    if rows != expected:
        raise RuntimeError(
            f"judge: TensorRT-LLM {found.version} returned {rows} rows of logits for "
            f"{contexts} context requests and {tail} generation tokens, {expected} were expected; "
            "use draft-target decoding and a version named in docs/h100-pytorch.md"
        )
    return tail


def one_ranks_scores(found: Upstream, mapping: Any) -> Callable[[Tensor], Tensor]:
    """A function that replaces scores [n] by those of the first TP rank, equal on every rank."""

    def agree(scores: Tensor) -> Tensor:
        if mapping.tp_size == 1:
            return scores
        return found.allgather(scores.unsqueeze(0), mapping, dim=0)[0]

    return agree


def _version() -> str:
    try:
        return metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        raise UserError(
            "TensorRT-LLM is not installed here; run inside its container (docs/h100-pytorch.md)"
        ) from None
