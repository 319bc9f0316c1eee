"""The judge's place in the target's graph, against a recording fake of TensorRT-LLM's graph API."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plugin_builds import LEAN_VERSIONS, lean_runtime, needs_nvcc, plugin_library

from judge_decoding import trtllm
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError
from judge_decoding.trtllm.build.engines import MODEL_CLASS_FILE
from plugins.judge_accept.reference import PluginSettings, score
from tests.fakes import trt_graph_fake as fake
from tests.trtllm import numpy_ranks

ROOT = Path(__file__).parents[2]

WEIGHT = [0.5, -1.0, 0.25, 2.0]
INPUTS = "input_ids, last_token_ids, context_lengths"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Imports the two modules anew in every test, so that none is left that saw the fake."""
    yield
    sys.modules.pop("judge_decoding.trtllm.compat", None)
    vars(trtllm).pop("compat", None)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> fake.Graph:
    return fake.install(monkeypatch)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """build(feature, **changes) writes a judge and the build file that the environment names."""

    def write(feature: str = "post_norm", **changes: Any) -> None:
        metadata = JudgeMetadata(
            feature=feature,
            hidden_size=len(WEIGHT),
            target_fingerprint="f" * 16,
            tokenizer_hash="t" * 16,
            threshold=0.5,
            training_data_hash="d",
        )
        judge = tmp_path / "judge.safetensors"
        Judge(torch.tensor(WEIGHT), -0.75, metadata).save(judge)
        values = {
            "judge": str(judge),
            "plugin": "/lib/libjudge_accept_plugin.so",
            "threshold": 0.8,
            "boost": 1e4,
            "vocab_size": 250,
            "end_ids": [7, 9],
            "protect_end_ids": True,
            "max_draft_len": 5,
        }
        file = tmp_path / "build.json"
        file.write_text(json.dumps(values | changes))
        monkeypatch.setenv("JUDGE_DECODING_BUILD", str(file))

    return write


def config(**changes: Any) -> Any:
    values = {
        "hidden_size": 4,
        "vocab_size": 250,
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "mapping": fake.Mapping(),
    }
    return types.SimpleNamespace(**(values | changes))


def inputs() -> dict[str, Any]:
    """The inputs, named as in PretrainedModel.prepare_inputs."""

    def tensor(name: str, dtype: str = "int32") -> fake.Tensor:
        return fake.Tensor(name, dtype)

    return {
        "input_ids": tensor("input_ids"),
        "position_ids": tensor("position_ids"),
        "use_cache": True,
        "last_token_ids": tensor("last_token_ids"),
        "attention_mask": None,
        "kv_cache_params": object(),
        "attention_params": types.SimpleNamespace(
            context_lengths=tensor("context_lengths"),
            host_request_types=tensor("host_request_types"),
        ),
    }


def load() -> Any:
    """Loads the file as trtllm-build does for --model_cls_file: by its path, under its own name."""
    spec = spec_from_file_location("judge_llama", MODEL_CLASS_FILE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged() -> Any:
    """The class, from a module that was imported with the fake."""
    return load().JudgeLlamaForCausalLM


def test_post_norm_wires_the_lm_heads_input(graph: fake.Graph, build: Any) -> None:
    build("post_norm")
    model = judged()(config())
    assert graph.loaded == ["/lib/libjudge_accept_plugin.so"]
    assert graph.registry.handed == []  # the library has registered itself
    assert graph.network.layers == []  # the plugin is loaded before the network is made
    result = model(**inputs())
    assert graph.network.layers == [
        "layers0 = layers(input_ids)",
        "ln_f1 = ln_f(layers0)",
        "gather2 = gather(ln_f1, last_token_ids)",
        "lm_head3 = lm_head(gather2)",
        "cast4 = cast(lm_head3)",
        f"judged, scores = JudgeAccept/1(cast4, gather2, {INPUTS})",
    ]
    assert graph.network.outputs == {
        "judge_scores": ("scores", "float32"),
        "logits": ("judged", "float32"),
    }
    assert result[0].name == "judged"
    assert len(result) == 3  # as the stock forward returns


def test_pre_norm_gathers_the_final_norms_input(graph: fake.Graph, build: Any) -> None:
    build("pre_norm")
    judged()(config())(**inputs())
    assert graph.network.layers == [
        "layers0 = layers(input_ids)",
        "ln_f1 = ln_f(layers0)",
        "gather2 = gather(ln_f1, last_token_ids)",
        "gather3 = gather(layers0, last_token_ids)",
        "lm_head4 = lm_head(gather2)",
        "cast5 = cast(lm_head4)",
        f"judged, scores = JudgeAccept/1(cast5, gather3, {INPUTS})",
    ]


# --- tensor parallelism ---


def test_two_ranks_share_the_lm_heads_input(graph: fake.Graph, build: Any) -> None:
    """The LM head reads the gathered rows, so that its own gather comes second on every rank."""
    build("post_norm")
    judged()(config(mapping=fake.Mapping(tp_size=2, rank=1)))(**inputs())
    assert graph.network.layers[2:] == [
        "gather2 = gather(ln_f1, last_token_ids)",
        "chunk3 = chunk(gather2, (0, 2))",
        "chunk4 = chunk(gather2, (1, 2))",
        "allgather5 = allgather(chunk4, [0, 1])",
        "lm_head6 = lm_head(allgather5)",
        "cast7 = cast(lm_head6)",
        f"judged, scores = JudgeAccept/1(cast7, allgather5, {INPUTS})",
    ]


def test_two_ranks_share_the_final_norms_input(graph: fake.Graph, build: Any) -> None:
    build("pre_norm")
    judged()(config(mapping=fake.Mapping(tp_size=2, rank=0)))(**inputs())
    assert graph.network.layers[2:] == [
        "gather2 = gather(ln_f1, last_token_ids)",
        "gather3 = gather(layers0, last_token_ids)",
        "chunk4 = chunk(gather3, (0, 2))",
        "chunk5 = chunk(gather3, (1, 2))",
        "allgather6 = allgather(chunk4, [0, 1])",
        "ln_f7 = ln_f(allgather6)",
        "lm_head8 = lm_head(ln_f7)",
        "cast9 = cast(lm_head8)",
        f"judged, scores = JudgeAccept/1(cast9, allgather6, {INPUTS})",
    ]


@pytest.mark.parametrize("feature", ["post_norm", "pre_norm"])
def test_one_ulp_between_ranks_split_what_they_accept(
    graph: fake.Graph, build: Any, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    """Regression (line-by-line review, 1): the judge read each rank's own feature."""
    # Drafts 3 and 3 behind token 1. The judged rows are 1 and 2; their last two columns differ by
    # one ulp of bfloat16 between the ranks, and the threshold lies between the two scores.
    residual = np.full((3, 4), 0.5, dtype=np.float32)
    other = residual.copy()
    other[:, 2:] += 2**-8
    given = {"input_ids": [1, 3, 3], "last_token_ids": [1, 2, 3], "context_lengths": [3]}
    head = np.zeros((4, 6), dtype=np.float32)
    head[:, 5] = 1  # the target's own choice, everywhere
    weight = np.array(WEIGHT, dtype=np.float32)
    scale = 2 if feature == "post_norm" else 1
    settings = PluginSettings(weight, -0.75, 0.5, 6)
    low, high = (score(scale * rows[1], settings) for rows in (residual, other))
    assert low < high
    threshold = float(low + high) / 2
    build(feature, threshold=threshold, vocab_size=6, end_ids=[0])

    def networks(tp: int) -> list[fake.Network]:
        made = []
        for rank in range(2):
            made.append(fake.install(monkeypatch).network)
            mapping = fake.Mapping(tp_size=tp, rank=rank % tp)
            judged()(config(mapping=mapping, vocab_size=6))(**inputs())
        return made

    # 1. As it was: each rank judges its own feature. One accepts both drafts, the other none.
    for network, rows, accepted in zip(
        networks(tp=1), (residual, other), ([5, 5, 5], [3, 3, 5]), strict=True
    ):
        (tensors,) = numpy_ranks.run([network], [rows], head, **given)
        assert tensors["judged"].argmax(-1).tolist() == accepted
    # 2. As it is: every rank reads the first rank's first half and the second rank's second half.
    one, two = numpy_ranks.run(networks(tp=2), [residual, other], head, **given)
    for name in ("judged", "scores"):
        assert one[name].tobytes() == two[name].tobytes()
    both = np.concatenate([residual[1, :2], other[1, 2:]])
    own = score(scale * both, settings)
    assert np.abs(one["scores"][0, :2]).tolist() == [own, own]
    assert one["judged"].argmax(-1).tolist() == ([3, 3, 5] if own > threshold else [5, 5, 5])


@pytest.mark.parametrize("knows_v3", [False, True])
def test_the_builders_rewriting_pass_meets_the_plugin(
    monkeypatch: pytest.MonkeyPatch, build: Any, knows_v3: bool
) -> None:
    """Some releases know no plugins of version 3 there, and would stop the build."""
    graph = fake.install(monkeypatch, knows_v3=knows_v3)
    build()
    if not knows_v3:
        with pytest.raises(NotImplementedError, match="PLUGIN_V3"):
            fake.optimize(fake.Network(kinds=["PLUGIN_V3"]))
    judged()(config(mapping=fake.Mapping(tp_size=2)))(**inputs())
    assert "PLUGIN_V3" in graph.network.kinds
    assert fake.optimize(graph.network) == 1  # the gather's


def test_the_plugins_inputs_and_fields(graph: fake.Graph, build: Any) -> None:
    build()
    judged()(config())(**inputs())
    (plugin,) = graph.network.plugins
    assert plugin["types"] == ["float32", "bfloat16", "int32", "int32", "int32"]
    assert plugin["fields"] == {
        "weight": ("FLOAT32", "float32", WEIGHT),
        "bias": ("FLOAT32", "float32", [-0.75]),
        "threshold": ("FLOAT32", "float32", [pytest.approx(0.8)]),
        "boost": ("FLOAT32", "float32", [10000.0]),
        "vocab_size": ("INT32", "int32", [250]),
        "protect_end_ids": ("INT32", "int32", [1]),
        "max_draft_len": ("INT32", "int32", [5]),
        "end_ids": ("INT32", "int32", [7, 9]),
    }


def test_half_precision_logits_no_end_ids_no_protection(graph: fake.Graph, build: Any) -> None:
    build(end_ids=[], protect_end_ids=False, boost=3e4)
    judged()(config(logits_dtype="float16"))(**inputs())
    (plugin,) = graph.network.plugins
    assert plugin["types"][:2] == ["float16", "bfloat16"]
    assert "end_ids" not in plugin["fields"]  # the plugin's default is none
    assert plugin["fields"]["protect_end_ids"] == ("INT32", "int32", [0])
    assert graph.network.outputs["logits"] == ("judged", "float16")


def test_logits_of_the_right_type_are_not_cast(graph: fake.Graph, build: Any) -> None:
    build()
    judged()(config(dtype="float16", logits_dtype="float16"))(**inputs())
    assert not any("cast" in layer for layer in graph.network.layers)


def test_a_stock_model_is_untouched(graph: fake.Graph, build: Any) -> None:
    """Neither importing the file nor building a judged model changes the stock class."""
    build()
    model = judged()(config())
    model(**inputs())
    assert "forward" not in vars(model.lm_head)
    assert "forward" not in vars(model.transformer.ln_f)
    graph.network.layers.clear()
    graph.network.outputs.clear()
    fake.LLaMAForCausalLM(config())(**inputs())
    assert graph.network.layers == [
        "layers0 = layers(input_ids)",
        "ln_f1 = ln_f(layers0)",
        "gather2 = gather(ln_f1, last_token_ids)",
        "lm_head3 = lm_head(gather2)",
    ]
    assert graph.network.outputs == {"logits": ("lm_head3", "float32")}


def test_the_hooks_go_when_the_graph_fails(graph: fake.Graph, build: Any) -> None:
    build()
    model = judged()(config())
    broken = inputs() | {"attention_params": types.SimpleNamespace()}
    with pytest.raises(AttributeError, match="context_lengths"):
        model(**broken)
    assert "forward" not in vars(model.lm_head)


def test_whatever_layer_quantization_put_there_is_kept(graph: fake.Graph, build: Any) -> None:
    build()
    model = judged()(config())

    class FP8Linear(fake.Module):
        def forward(self, x: fake.Tensor, lora_runtime_params: Any = None) -> fake.Tensor:
            return fake.current().add("fp8_head", x, dtype="bfloat16")

    model.lm_head = FP8Linear()
    model(**inputs())
    assert graph.network.layers[3:5] == ["fp8_head3 = fp8_head(gather2)", "cast4 = cast(fp8_head3)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 8}, "judge is for hidden size 4, the checkpoint has 8"),
        ({"vocab_size": 256}, "checkpoint has 256 tokens, the target's config.json 250"),
        (
            {"mapping": fake.Mapping(pp_size=2)},
            "pp_size 2 and cp_size 1 must be 1",
        ),
        (
            {"mapping": fake.Mapping(cp_size=2)},
            "pp_size 1 and cp_size 2 must be 1",
        ),
        ({"mapping": fake.Mapping(tp_size=3)}, "tp_size 3 does not divide the hidden size 4"),
        ({"output_multiplier_scale": 0.5}, "has output_multiplier_scale 0.5, which would scale"),
        ({"mup_width_multiplier": 8.0}, "has mup_width_multiplier 8.0, which would scale"),
    ],
)
def test_what_cannot_work_is_refused_before_the_network(
    graph: fake.Graph, build: Any, changes: dict[str, Any], message: str
) -> None:
    build()
    with pytest.raises(UserError, match=message):
        judged()(config(**changes))
    assert graph.network.layers == []


def test_a_library_that_does_not_load_or_is_another(
    graph: fake.Graph, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(plugin="/lib/other.so")
    with pytest.raises(UserError, match=r"cannot load /lib/other\.so .*build it against"):
        judged()(config())
    library = types.SimpleNamespace(judge_accept_abi_version=lambda: 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode=0: library)
    with pytest.raises(UserError, match=r"other\.so does not register JudgeAccept version 1"):
        judged()(config())
    build(plugin="/lib/unlinked.so")  # registers once the registry loads it
    judged()(config())
    assert graph.registry.handed == ["/lib/other.so", "/lib/unlinked.so"]
    build(plugin="/lib/other.so")
    library.judge_accept_abi_version = lambda: 2
    with pytest.raises(UserError, match=r"other\.so has ABI 2, this release 1; build it from this"):
        judged()(config())
    del library.judge_accept_abi_version
    with pytest.raises(UserError, match=r"other\.so has ABI None"):
        judged()(config())


def test_the_build_file(graph: fake.Graph, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build(threshold=1.5)
    with pytest.raises(UserError, match=r"is no judge build .*threshold"):
        judged()(config())
    monkeypatch.delenv("JUDGE_DECODING_BUILD")
    with pytest.raises(UserError, match=r"JUDGE_DECODING_BUILD is not set; build with"):
        judged()(config())


@pytest.mark.parametrize("version", ["1.1.0", "1.3.0rc4", "2.0.0"])
def test_another_release_stops_at_import(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake.install(monkeypatch, version=version)
    with pytest.raises(UserError, match=f"TensorRT-LLM {version} is installed, this needs 1.2.1"):
        load()


def test_no_release_stops_at_import() -> None:
    with pytest.raises(UserError, match=r"not installed here; run inside the container nvcr\.io"):
        load()


# --- the same graph with TensorRT's own registry and the real plugin ---

REAL = """
import json, sys
import pytest
import tensorrt_lean_bindings as trt
from tests.fakes import trt_graph_fake as fake
from tests.trtllm import test_judge_llama as here

with pytest.MonkeyPatch.context() as patch:
    cdll = here.ctypes.CDLL
    graph = fake.install(patch)
    patch.setattr(here.ctypes, "CDLL", cdll)
    built = sys.modules["tensorrt"]  # the lean runtime has no layers
    trt.LayerType, trt.IPluginV3Layer = built.LayerType, built.IPluginV3Layer
    patch.setitem(sys.modules, "tensorrt", trt)

    def add_plugin_v3(inputs, shape_inputs, plugin):
        core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        print(json.dumps([core.plugin_name, core.plugin_version, core.plugin_namespace]))
        outputs = [fake.Tensor("judged", "float32"), fake.Tensor("scores", "float32")]
        return here.types.SimpleNamespace(get_output=outputs.__getitem__)

    graph.network.add_plugin_v3 = add_plugin_v3
    here.judged()(here.config())(**here.inputs())
"""


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("version", LEAN_VERSIONS)
def test_the_real_registry_and_plugin_take_what_the_model_gives(build: Any, version: str) -> None:
    """TensorRT's registry, field and creator calls are real here; TensorRT-LLM's are fakes."""
    build(plugin=str(plugin_library()))
    done = subprocess.run(
        [sys.executable, "-c", REAL],
        env=os.environ | {"PYTHONPATH": f"{lean_runtime(version)}:{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["JudgeAccept", "1", "judge"]
