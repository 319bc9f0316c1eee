"""The prepared target folder, its options and Triton's model around it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError
from judge_decoding.trtllm.manifest import judge_hash
from judge_decoding.trtllm.pytorch.judged_target import JudgedTarget
from judge_decoding.trtllm.pytorch.options import llm_options
from judge_decoding.trtllm.pytorch.prepare import MODULE, REGISTER, prepare
from tests.commands_world import run_command
from tests.trtllm.test_manifest import write_judge

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path, tiny_target: Path, tiny_draft: Path) -> Path:
    judge = write_judge(tmp_path / "judge.safetensors", tiny_target)
    path = tmp_path / "deployment.yaml"
    path.write_text(
        f"""
name: test
engine: trtllm
target: {{model: {tiny_target}}}
draft: {{model: {tiny_draft}}}
judge: {{path: {judge}}}
acceptance: {{rule: judge}}
max_draft_len: 6
limits: {{max_sequences: 2, max_context: 512}}
ranks: {{draft: {{devices: [0]}}, target: {{tp: 2, devices: [1, 2]}}}}
trtllm: {{engines: {tmp_path / "engines"}, gpu: h100, max_num_tokens: 1024}}
"""
    )
    return path


@pytest.fixture
def deployment(config: Path) -> Deployment:
    return load_deployment(config)


def test_the_folder(deployment: Deployment, tmp_path: Path, tiny_target: Path) -> None:
    out = tmp_path / "judged"
    manifest = prepare(deployment, out, "two_model")
    stock = {path.name for path in tiny_target.iterdir() if path.is_file()}
    ours = {"judge.safetensors", "judge_manifest.json", "serve.yaml"}
    assert {path.name for path in out.iterdir()} == stock | ours
    for name in stock - {"config.json"}:
        assert (out / name).is_symlink() and (out / name).samefile(tiny_target / name)
    config = json.loads((out / "config.json").read_text())
    original = json.loads((tiny_target / "config.json").read_text())
    assert config.pop("judge_decoding") == {"folder": str(out)}
    assert config == original | {"architectures": ["JudgeLlamaForCausalLM"]}
    assert original["architectures"] == ["LlamaForCausalLM"]
    assert manifest == JudgedTarget.load(out)
    assert manifest.threshold == 0.6 and manifest.judge == judge_hash(out / "judge.safetensors")
    assert (manifest.vocab_size, manifest.hidden_size, manifest.max_draft_len) == (256, 64, 6)
    judge = manifest.load_judge()
    assert isinstance(judge, Judge) and manifest.rule(judge).bias == 0.5
    assert yaml.safe_load((out / "serve.yaml").read_text()) == llm_options(deployment, "two_model")


def test_transformers_hands_the_folder_to_the_model(deployment: Deployment, tmp_path: Path) -> None:
    """Upstream reads config.json with AutoConfig, which must keep the key."""
    from transformers import AutoConfig

    manifest = prepare(deployment, tmp_path / "judged", "one_model")
    assert JudgedTarget.of_config(AutoConfig.from_pretrained(tmp_path / "judged")) == manifest


def test_a_second_call_replaces_the_first_ones_folder(
    deployment: Deployment, tmp_path: Path
) -> None:
    out = tmp_path / "judged"
    prepare(deployment, out, "two_model")
    (out / "left").touch()
    prepare(deployment, out, "one_model")
    assert not (out / "left").exists()
    assert "speculative_model: " in (out / "serve.yaml").read_text()


@pytest.mark.parametrize("name", ["llama-8b-70b-h100x2", "llama-8b-405b-h100x8"])
def test_options_of_the_shipped_deployments(name: str) -> None:
    deployment = load_deployment(ROOT / "configs" / f"{name}.yaml")
    tp = 2 if "70b" in name else 8
    two, one = (llm_options(deployment, g) for g in ("two_model", "one_model"))
    draft = "/models/Llama-3.1-8B-Instruct"
    assert two.pop("speculative_config") == {
        "decoding_type": "DraftTarget",
        "max_draft_len": 25,
        "speculative_model_dir": draft,
    }
    assert one.pop("speculative_config") == {
        "decoding_type": "Draft_Target",
        "max_draft_len": 25,
        "speculative_model": draft,
    }
    assert two == one
    limits = deployment.limits
    assert one["tensor_parallel_size"] == tp
    assert (one["max_batch_size"], one["max_seq_len"]) == (limits.max_sequences, limits.max_context)
    rows = limits.max_sequences * 26
    assert one["max_num_tokens"] == max(rows, min(limits.max_context, 16384))
    assert one["kv_cache_config"]["dtype"] == "fp8"


def refused(deployment: Deployment, out: Path, message: str, **more: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(deployment, out, "two_model", **more)
    assert not (out / "judge_manifest.json").exists()


def test_refusals(deployment: Deployment, tmp_path: Path, tiny_target: Path) -> None:
    out = tmp_path / "judged"
    refused(deployment, tiny_target, r"--out: .* is the target itself")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    refused(deployment, taken, r"exists and was not made by this command")
    assert (taken / "file").exists()
    strict = deployment.model_copy(
        update={"acceptance": deployment.acceptance.model_copy(update={"rule": "strict"})}
    )
    refused(strict, out, "acceptance.rule strict; without a judge")
    refused(deployment, out, r"no .*config\.pbtxt", llmapi=tmp_path)
    refused(deployment, out, "is not a model folder", served=tmp_path / "missing")
    other = tmp_path / "quantized"
    shutil.copytree(tiny_target, other)
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"architectures": ["Qwen2ForCausalLM"]}))
    refused(deployment, out, r"has architectures .*Qwen2ForCausalLM", served=other)
    (other / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    refused(deployment, out, "has num_layers 3, target.model has 2", served=other)


def test_quantized_weights_are_linked(
    deployment: Deployment, tmp_path: Path, tiny_target: Path
) -> None:
    other = tmp_path / "quantized"
    shutil.copytree(tiny_target, other)
    (other / "hf_quant_config.json").write_text("{}")
    prepare(deployment, tmp_path / "judged", "two_model", served=other)
    assert (tmp_path / "judged" / "hf_quant_config.json").samefile(other / "hf_quant_config.json")


STOCK_MODEL = """
import helpers
class TritonPythonModel:
    def initialize(self, args):
        print(helpers.NAME, args)
"""


def test_tritons_model_registers_before_the_stock_one_starts(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Upstream's model.py and our class's module are stand-ins here; both say when they ran."""
    llmapi = tmp_path / "llmapi"
    (llmapi / "1").mkdir(parents=True)
    (llmapi / "config.pbtxt").write_text('name: "tensorrt_llm"\n')
    (llmapi / "1" / "helpers.py").write_text("NAME = 'stock'\n")
    (llmapi / "1" / "model.py").write_text(STOCK_MODEL)
    prepare(deployment, tmp_path / "judged", "one_model", llmapi=llmapi)
    model = tmp_path / "judged" / "triton" / "tensorrt_llm"
    assert (model / "config.pbtxt").read_text() == 'name: "tensorrt_llm"\n'
    settings = yaml.safe_load((model / "1" / "model.yaml").read_text())
    assert settings == {
        "model": str(tmp_path / "judged"),
        **llm_options(deployment, "one_model"),
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    code = f"""
import sys, types
sys.path.insert(0, {str(model / "1")!r})
name = "judge_decoding.trtllm.pytorch.model"
import judge_decoding.trtllm.pytorch
class Finder:
    def find_spec(self, wanted, path=None, target=None):
        if wanted == name:
            print("registered")
            sys.modules[name] = types.ModuleType(name)
            from importlib.machinery import ModuleSpec
            return ModuleSpec(name, self)
    def create_module(self, spec): return None
    def exec_module(self, module): pass
sys.meta_path.insert(0, Finder())
import model
model.TritonPythonModel().initialize("args")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["registered", "stock args"]


def test_the_command_prints_how_to_serve(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "judged"
    arguments = ("--config", str(config), "--out", str(out))
    done = run_command("prepare-pytorch-target", *arguments, "--tensorrt-llm", "1.3.0rc24")
    assert done.code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"{out}: judge {judge_hash(out / 'judge.safetensors')}, threshold 0.6"
    assert second == (
        f"trtllm-serve {out} --backend pytorch --custom_module_dirs {MODULE} "
        f"--extra_llm_api_options {out}/serve.yaml"
    )
    assert (MODULE / "__init__.py").is_file() and MODULE.parent == REGISTER


@pytest.mark.parametrize(
    ("version", "message"),
    [("1.1.0", "TensorRT-LLM 1.1.0: the judge"), (None, "TensorRT-LLM is not installed here")],
)
def test_another_version_or_none_is_one_line(
    config: Path, tmp_path: Path, version: str | None, message: str
) -> None:
    arguments = ["--config", str(config), "--out", str(tmp_path / "judged")]
    if version:
        arguments += ["--tensorrt-llm", version]
    done = run_command("prepare-pytorch-target", *arguments)
    assert done.code == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
