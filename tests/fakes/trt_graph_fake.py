"""A RECORDING FAKE of the parts of `tensorrt` and `tensorrt_llm` that judge_llama.py uses.
It builds nothing.

TensorRT-LLM cannot be installed where these tests run. The fake has the documented signatures and
the order of calls of TensorRT-LLM 1.2.1 (NVIDIA/TensorRT-LLM: models/modeling_utils.py @01ea6d79
DecoderModelForCausalLM.forward, models/llama/model.py LLaMAModel.forward, module.py Module,
functional.py cast, chunk, allgather, gather_last_token_logits and _create_tensor, mapping.py
Mapping, graph_rewriting.py Layer and optimize; TensorRT 10's Python API for V3 plugins). It records
the network as text, so that a test can assert how everything is connected, and as steps, which
`tests.trtllm.numpy_ranks` computes. It cannot show that the real builder takes the result
(docs/h100.md, "Not executed").
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

VERSION = "1.2.1"


@dataclass
class Network:
    """Layers in the order of creation, as `out = op(inputs)`, and the outputs' types.

    steps  the same layers: outputs, operation, inputs, and a number or None
    kinds  the TensorRT type of every layer
    """

    layers: list[str] = field(default_factory=list)
    steps: list[tuple[list[str], str, list[str], Any]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    outputs: dict[str, tuple[str, str]] = field(default_factory=dict)
    plugins: list[dict[str, Any]] = field(default_factory=list)
    plugin_config: Any = field(
        default_factory=lambda: types.SimpleNamespace(
            remove_input_padding=True, paged_kv_cache=True
        )
    )
    strongly_typed: bool = True

    @property
    def trt_network(self) -> Network:
        return self

    def add(
        self,
        operation: str,
        *inputs: Tensor,
        dtype: str,
        name: str | None = None,
        value: Any = None,
        kind: str = "OTHER",
    ) -> Tensor:
        out = Tensor(name or f"{operation}{len(self.layers)}", dtype)
        names = [tensor.name for tensor in inputs]
        more = [] if value is None else [str(value)]
        self.layers.append(f"{out.name} = {operation}({', '.join(names + more)})")
        self.steps.append(([out.name], operation, names, value))
        self.kinds.append(kind)
        return out

    def add_plugin_v3(self, inputs: list[Any], shape_inputs: list[Any], plugin: Any) -> Any:
        assert shape_inputs == []
        names = [tensor.name for tensor in inputs]
        self.layers.append(f"judged, scores = {plugin.creator}({', '.join(names)})")
        self.steps.append((["judged", "scores"], "judge", names, plugin.fields))
        self.kinds.append("PLUGIN_V3")
        self.plugins.append(
            {"inputs": names, "types": [t.dtype for t in inputs], "fields": plugin.fields}
        )
        outputs = [Tensor("judged", inputs[0].dtype), Tensor("scores", "float32")]
        return types.SimpleNamespace(get_output=lambda index: outputs[index], name="plugin")


@dataclass(eq=False)
class Tensor:
    name: str
    dtype: str

    @property
    def trt_tensor(self) -> Tensor:
        return self

    def mark_output(self, name: str, dtype: str) -> None:
        current().outputs[name] = (self.name, dtype)

    def __mul__(self, factor: float) -> Tensor:
        return current().add("scale", self, dtype=self.dtype, value=factor)

    def __truediv__(self, factor: float) -> Tensor:
        return self * (1 / factor)


_network = Network()


def current() -> Network:
    return _network


class Module:
    """module.py: calling a module calls its `forward`. An attribute that is a module is kept apart,
    in `_modules`, any other in the instance; `del` finds only the latter."""

    def __init__(self) -> None:
        self._modules: dict[str, Module] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:  # only what the instance and its class lack
        if name in (modules := self.__dict__.get("_modules", {})):
            return modules[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(value, Module):
            object.__setattr__(self, name, value)
            return
        if name in self.__dict__:
            object.__delattr__(self, name)
        self._modules[name] = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class RmsNorm(Module):
    def forward(self, x: Tensor, normalized_shape: Any = None) -> Tensor:
        return current().add("ln_f", x, dtype=x.dtype)


class ColumnLinear(Module):
    """layers/linear.py: the LM head gathers over the ranks (gather_output=True)."""

    def forward(
        self, x: Tensor, lora_runtime_params: Any = None, lora_hidden_state: Any = None
    ) -> Tensor:
        return current().add("lm_head", x, dtype=x.dtype)


class LLaMAModel(Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ln_f = RmsNorm()
        self.config = config

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        assert set(kwargs) <= {
            "position_ids",
            "use_cache",
            "attention_mask",
            "kv_cache_params",
            "attention_params",
        }
        hidden = current().add("layers", input_ids, dtype=self.config.dtype)
        hidden = self.ln_f(hidden)
        return (hidden, ()) if kwargs.get("use_cache") else hidden


class LLaMAForCausalLM(Module):
    """models/modeling_utils.py DecoderModelForCausalLM.forward, without PP and CP."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.mup_width_multiplier = getattr(config, "mup_width_multiplier", None)
        self.transformer = LLaMAModel(config)
        self.lm_head = ColumnLinear()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Any = None,
        use_cache: bool = False,
        last_token_ids: Any = None,
        attention_mask: Any = None,
        kv_cache_params: Any = None,
        attention_params: Any = None,
        mrope_params: Any = None,
        hidden_states: Any = None,
        prompt_embedding_table: Any = None,
        prompt_tasks: Any = None,
        prompt_vocab_size: Any = None,
        lora_params: Any = None,
        spec_decoding_params: Any = None,
    ) -> Any:
        hidden = self.transformer.forward(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=use_cache,
            attention_mask=attention_mask,
            kv_cache_params=kv_cache_params,
            attention_params=attention_params,
        )
        if use_cache:
            hidden, _presents = hidden
        every = hidden
        hidden = gather_last_token_logits(
            hidden, last_token_ids, default_net().plugin_config.remove_input_padding
        )
        logits = self.lm_head(hidden)
        if hasattr(self.config, "output_multiplier_scale"):
            logits *= getattr(self.config, "output_multiplier_scale", 1)
        if self.mup_width_multiplier is not None:
            logits = logits / self.mup_width_multiplier
        logits.mark_output("logits", self.config.logits_dtype)
        return logits, hidden, every


def default_net() -> Network:
    return current()


def default_trtnet() -> Network:
    return current().trt_network


def cast(input: Tensor, dtype: str) -> Tensor:
    """functional.py: no layer if the tensor already has that type."""
    return input if input.dtype == dtype else current().add("cast", input, dtype=dtype)


def gather_last_token_logits(
    hidden_states: Tensor, last_token_ids: Tensor, remove_input_padding: bool
) -> Tensor:
    assert remove_input_padding
    return current().add("gather", hidden_states, last_token_ids, dtype=hidden_states.dtype)


def chunk(tensor: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    """One slice for each chunk, as the real one; TensorRT removes those that nothing reads."""
    assert dim == 1
    return [
        current().add("chunk", tensor, dtype=tensor.dtype, value=(i, chunks)) for i in range(chunks)
    ]


def allgather(tensor: Tensor, group: list[int], gather_dim: int = 0) -> Tensor:
    assert gather_dim == 1
    return current().add("allgather", tensor, dtype=tensor.dtype, value=group, kind="PLUGIN_V2")


@dataclass
class Mapping:
    """mapping.py, without the groups of pipelines and experts."""

    tp_size: int = 1
    rank: int = 0
    pp_size: int = 1
    cp_size: int = 1

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def tp_group(self) -> list[int]:
        return list(range(self.tp_size))


class Layer:
    """graph_rewriting.py: a layer is only known by its type's entry in the table."""

    TRT_LAYER_TYPE_TO_LAYER: ClassVar[dict[str, str]] = {}

    def __init__(self, kind: str) -> None:
        self.type = kind

    def as_layer(self) -> str:
        if self.type in self.TRT_LAYER_TYPE_TO_LAYER:
            return self.TRT_LAYER_TYPE_TO_LAYER[self.type]
        raise NotImplementedError(f"Unknown layer type: {self.type}")


def optimize(network: Network) -> int:
    """graph_rewriting.py `optimize`, which the builder calls: its only pattern looks for attention
    plugins of version 2, at every layer. Returns how many plugins of version 2 it met."""
    return sum(Layer(kind).as_layer() == "IPluginV2Layer" for kind in network.kinds)


def _create_tensor(trt_tensor: Tensor, producer: Any) -> Tensor:
    assert producer is not None
    return trt_tensor


@dataclass
class PluginField:
    """tensorrt.PluginField(name, data: buffer, type)."""

    name: str
    data: np.ndarray
    type: str


class _Creator:
    """TensorRT 10: IPluginCreatorV3One.create_plugin(name, field_collection, phase)."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def create_plugin(self, name: str, field_collection: list[PluginField], phase: str) -> Any:
        assert (name, phase) == ("judge", "BUILD")
        fields = {f.name: (f.type, f.data.dtype.name, f.data.tolist()) for f in field_collection}
        return types.SimpleNamespace(creator=self.identity, fields=fields)


class _Registry:
    """The plugin registry, empty until a library is loaded."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], _Creator] = {}
        self.handed: list[str] = []

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        return self.creators.get((type, version, plugin_namespace))

    def load_library(self, plugin_path: str) -> None:
        """Registers a library that has not registered itself; the fake knows one by its name."""
        self.handed.append(plugin_path)
        if plugin_path.endswith("unlinked.so"):
            self.creators["JudgeAccept", "1", "judge"] = _Creator("JudgeAccept/1")


@dataclass
class Graph:
    """The handle that a test gets."""

    network: Network
    registry: _Registry
    loaded: list[str]


def install(
    monkeypatch: pytest.MonkeyPatch, *, version: str = VERSION, knows_v3: bool = False
) -> Graph:
    """Replace the real modules by the fake ones; no library is loaded.

    knows_v3  whether the rewriting pass knows plugins of version 3, as in later releases
    """
    global _network
    import ctypes
    import sys
    from importlib import metadata

    _network = Network()
    registry, loaded = _Registry(), []
    trt = types.ModuleType("tensorrt")
    trt.LayerType = types.SimpleNamespace(PLUGIN_V3="PLUGIN_V3")
    trt.IPluginV3Layer = "IPluginV3Layer"
    table = {"OTHER": "ILayer", "PLUGIN_V2": "IPluginV2Layer"}
    later = {"PLUGIN_V3": "IPluginV3Layer"} if knows_v3 else {}
    monkeypatch.setattr(Layer, "TRT_LAYER_TYPE_TO_LAYER", table | later)
    trt.PluginFieldType = types.SimpleNamespace(FLOAT32="FLOAT32", INT32="INT32")
    trt.PluginField, trt.PluginFieldCollection = PluginField, list
    trt.TensorRTPhase = types.SimpleNamespace(BUILD="BUILD", RUNTIME="RUNTIME")
    trt.get_plugin_registry = lambda: registry
    modules = {
        "tensorrt": trt,
        "tensorrt_llm": types.ModuleType("tensorrt_llm"),
        "tensorrt_llm._common": _module(default_net, default_trtnet),
        "tensorrt_llm.functional": _module(
            Tensor, _create_tensor, allgather, cast, chunk, gather_last_token_logits
        ),
        "tensorrt_llm.graph_rewriting": _module(Layer, optimize),
        "tensorrt_llm.models": _module(LLaMAForCausalLM),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def cdll(path: str, mode: int = 0) -> object:
        assert mode == ctypes.RTLD_GLOBAL
        if not path.endswith("libjudge_accept_plugin.so"):
            raise OSError(f"{path}: cannot open shared object file")
        loaded.append(path)
        registry.creators["JudgeAccept", "1", "judge"] = _Creator("JudgeAccept/1")
        return types.SimpleNamespace(judge_accept_abi_version=lambda: 1)

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: version if name == "tensorrt_llm" else real(name)
    )
    return Graph(_network, registry, loaded)


def _module(*members: Any) -> types.ModuleType:
    module = types.ModuleType("fake")
    for member in members:
        setattr(module, member.__name__, member)
    return module
