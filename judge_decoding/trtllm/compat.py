"""All uses of TensorRT-LLM's private graph API, and of what drifts between its releases.

Written for TensorRT-LLM 1.2.1 (TensorRT 10.14.1), the last stable release with the TensorRT engine
backend, from the sources of NVIDIA/TensorRT-LLM around that tag: models/modeling_utils.py
@01ea6d79, _common.py @0fccc5b9, layers/linear.py @03961722, functional.py @0071496d, mapping.py
@05ebebb2 and graph_rewriting.py @138f96d4.

Importing this module imports `tensorrt_llm`. It raises UserError if that is missing or not 1.2.x,
since the graph API is private and the engine backend was removed upstream in mid-2026
(NVIDIA/TensorRT-LLM #15907, #15918).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judge_decoding.errors import UserError
from judge_decoding.trtllm.stack import (
    PLUGIN_ABI,
    PLUGIN_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    check_tensorrt_llm,
)

check_tensorrt_llm()  # before the import, which takes half a minute

import numpy as np  # noqa: E402
import tensorrt as trt  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tensorrt_llm._common import default_net, default_trtnet  # noqa: E402
from tensorrt_llm.functional import (  # noqa: E402
    Tensor,
    _create_tensor,
    allgather,
    cast,
    chunk,
    gather_last_token_logits,
)
from tensorrt_llm.graph_rewriting import Layer  # noqa: E402
from tensorrt_llm.models import LLaMAForCausalLM  # noqa: E402

__all__ = [
    "LLaMAForCausalLM",
    "Tensor",
    "add_judge",
    "cast",
    "gather_rows",
    "load_plugin",
    "same_on_ranks",
]

# The builder's rewriting pass asks the type of every layer and raises NotImplementedError for one
# that is not in this table (graph_rewriting.py `Layer.as_layer`). Some releases have no plugins of
# version 3 in it.
Layer.TRT_LAYER_TYPE_TO_LAYER.setdefault(trt.LayerType.PLUGIN_V3, trt.IPluginV3Layer)


def load_plugin(library: Path) -> None:
    """Load the judge's plugin library into this process and TensorRT's registry, which is global.

    A library that is linked with libnvinfer registers itself when it is loaded (RTLD_GLOBAL as in
    examples/openai_triton/manual_plugin/plugin.py); any other is passed to the registry.
    """
    try:
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UserError(
            f"plugin: cannot load {library} ({error}); build it against this container's "
            "TensorRT (plugins/judge_accept/README.md)"
        ) from None
    abi = getattr(loaded, "judge_accept_abi_version", lambda: None)()
    if abi != PLUGIN_ABI:
        raise UserError(
            f"plugin: {library} has ABI {abi}, this release {PLUGIN_ABI}; build it from this "
            "release's plugins/judge_accept"
        )
    if _creator() is None:
        trt.get_plugin_registry().load_library(str(library))
    if _creator() is None:
        raise UserError(
            f"plugin: {library} does not register {PLUGIN_NAME} version {PLUGIN_VERSION}; build it "
            "from this release's plugins/judge_accept"
        )


def _creator() -> Any:
    """The plugin's creator, or None. `get_creator` is TensorRT 10's name for V3 plugins."""
    return trt.get_plugin_registry().get_creator(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)


def gather_rows(hidden: Tensor, last_token_ids: Tensor) -> Tensor:
    """[T, H] -> [R, H]: the rows that get logits, as the stock model gathers them.

    tensorrt_llm/functional.py: index_select(hidden, 0, last_token_ids - 1) for packed input.
    """
    return gather_last_token_logits(
        hidden, last_token_ids, default_net().plugin_config.remove_input_padding
    )


def same_on_ranks(hidden: Tensor, mapping: Any) -> Tensor:
    """[R, H] that may differ between ranks -> [R, H] with the same bits on every rank.

    Every rank gives its own H / tp columns, and all ranks gather them. The gather copies, in the
    type of `nccl_plugin`, which is the model's own by default.

    mapping  tensorrt_llm.mapping.Mapping; tp_size must divide H
    """
    own = chunk(hidden, mapping.tp_size, dim=1)[mapping.tp_rank]
    return allgather(own, mapping.tp_group, gather_dim=1)


def add_judge(
    inputs: Sequence[Tensor],
    *,
    weight: NDArray[np.float32],
    bias: float,
    threshold: float,
    boost: float,
    vocab_size: int,
    end_ids: Sequence[int],
    protect_end_ids: bool,
    max_draft_len: int,
) -> list[Tensor]:
    """Add the JudgeAccept layer; its outputs are [logits, judge_scores].

    inputs  logits, hidden, input_ids, last_token_ids, context_lengths: the plugin's contract
            (plugins/judge_accept/README.md) fixes this order and the fields' names and types

    The V3 calls are TensorRT 10's (`create_plugin` with a phase, `add_plugin_v3`); `_create_tensor`
    and `default_trtnet` are how TensorRT-LLM's own layers wrap a plugin (functional.py, and
    `_gemm_plugin` of layers/linear.py).
    """
    floats, ints = trt.PluginFieldType.FLOAT32, trt.PluginFieldType.INT32
    values = {
        "weight": np.ascontiguousarray(weight, dtype=np.float32),
        "bias": np.array([bias], dtype=np.float32),
        "threshold": np.array([threshold], dtype=np.float32),
        "boost": np.array([boost], dtype=np.float32),
        "vocab_size": np.array([vocab_size], dtype=np.int32),
        "protect_end_ids": np.array([int(protect_end_ids)], dtype=np.int32),
        "max_draft_len": np.array([max_draft_len], dtype=np.int32),
    }
    if end_ids:  # an empty field has no data pointer
        values["end_ids"] = np.array(list(end_ids), dtype=np.int32)
    fields = trt.PluginFieldCollection(
        [
            trt.PluginField(name, value, floats if value.dtype == np.float32 else ints)
            for name, value in values.items()
        ]
    )
    plugin = _creator().create_plugin("judge", fields, trt.TensorRTPhase.BUILD)
    if plugin is None:
        raise RuntimeError(f"{PLUGIN_NAME} refused its fields; the line above says which")
    layer = default_trtnet().add_plugin_v3([t.trt_tensor for t in inputs], [], plugin)
    return [_create_tensor(layer.get_output(i), layer) for i in range(2)]
