"""Converting, building and verifying: exact commands, clear refusals, resumable steps.

`trtllm-build`, `mpirun` and the examples' scripts are RECORDING FAKES here: small scripts that
record their arguments and make the files that the real ones document. Nothing is compiled.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import load_deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.errors import UserError
from judge_decoding.trtllm.build import preflight
from judge_decoding.trtllm.build.convert import converter, quantizer
from judge_decoding.trtllm.build.engines import MODEL_CLASS_FILE, verified_rows
from judge_decoding.trtllm.build.judge_build import JudgeBuild
from judge_decoding.trtllm.build.verify import PROMPTS, first_difference, read_tokens
from judge_decoding.trtllm.manifest import EngineManifest, check_engine
from judge_decoding.trtllm.stack import Runtime
from tests.commands_world import run_command
from tests.conftest import write_llama, write_tokenizer
from tests.trtllm.test_manifest import write_judge

ROOT = Path(__file__).parents[2]

CONVERT, BUILD, VERIFY = "convert-checkpoint", "build-engines", "verify-engines"
RUNTIME = Runtime("10.14.1.48", "1.2.1", 90)
PYTHON = sys.executable


class Site:
    """A folder with models, judge and deployment, as deployers have them."""

    def __init__(self, folder: Path, target: Path, draft: Path) -> None:
        self.folder, self.target, self.draft = folder, target, draft
        self.engines = folder / "engines"
        self.examples = folder / "examples"
        self.plugin = folder / "libjudge_accept_plugin.so"
        self.plugin.touch()
        self.judge = write_judge(folder / "judge.safetensors", target)
        self.config = folder / "deployment.yaml"
        self.write()

    def write(self, *, ranks: str = "", trtllm: str = "", rest: str = "") -> None:
        ranks = ranks or "{draft: {devices: [0]}, target: {tp: 2, devices: [1, 2]}}"
        rest = rest or f"judge: {{path: {self.judge}}}\nacceptance: {{rule: judge}}"
        self.config.write_text(
            f"""
name: test
engine: trtllm
target: {{model: {self.target}}}
draft: {{model: {self.draft}}}
max_draft_len: 6
limits: {{max_sequences: 2, max_context: 512}}
ranks: {ranks}
trtllm: {{engines: {self.engines}, gpu: h100, max_num_tokens: 1024, plugin: {self.plugin}{trtllm}}}
{rest}
"""
        )

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `python build/SCRIPT --config ...`."""
        done = run_command(script, "--config", str(self.config), *arguments)
        return done.code, done.stdout, done.stderr

    def refused(self, script: str, *arguments: str) -> str:
        """The single line of a refusal."""
        code, _, error = self.run(script, *arguments)
        assert code == 2, error
        assert len(error.strip().splitlines()) == 1, error
        return error.strip()


@pytest.fixture
def site(tmp_path: Path, tiny_target: Path, tiny_draft: Path) -> Site:
    return Site(tmp_path, tiny_target, tiny_draft)


@pytest.fixture
def machine(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """machine(**what it has) sets up the pinned container with fake tools, and pretended GPUs."""

    def script(path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
        path.chmod(0o755)

    def make(
        *,
        gpus: int = 3,
        name: str = "NVIDIA H100 80GB HBM3",
        capability: tuple[int, int] = (9, 0),
        memory: int = 79 * preflight.GIB,
        free: int = 10**15,
        version: str | None = "1.2.1",
        tools: tuple[str, ...] = ("trtllm-build", "mpirun"),
    ) -> None:
        bin = site.folder / "bin"
        shutil.rmtree(bin, ignore_errors=True)
        bin.mkdir()
        note = f'echo "$@" >> {site.folder}/called\n'
        if "trtllm-build" in tools:
            script(
                bin / "trtllm-build",
                f"#!/bin/bash\n{note}"
                'for a in "$@"; do case $a in --output_dir=*) out=${a#*=};; esac; done\n'
                "echo building; [ -e $BREAK ] || { echo out of memory; exit 3; }\n"
                "mkdir -p $out; touch $out/config.json $out/rank0.engine $out/rank1.engine\n",
            )
        if "mpirun" in tools:
            script(
                bin / "mpirun",
                f"#!/bin/bash\n{note}"
                "while [[ $1 == -* ]]; do\n"
                "case $1 in -n|-x|--bind-to) shift 2;; *) shift;; esac\ndone\n"
                'exec "$@"\n',
            )
        monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
        monkeypatch.setenv("BREAK", "/")  # it exists, so nothing breaks
        real = metadata.version

        def installed(package: str) -> str:
            if package != "tensorrt_llm":
                return real(package)
            if version is None:
                raise metadata.PackageNotFoundError(package)
            return version

        monkeypatch.setattr(metadata, "version", installed)
        trt = type(sys)("tensorrt")
        trt.__version__ = RUNTIME.tensorrt
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        properties = type("Properties", (), {"total_memory": memory})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=0: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
        script_text = (
            f"import sys, os\nopen({str(site.folder / 'called')!r}, 'a').write("
            "' '.join(sys.argv[1:]) + '\\n')\n"
            "given = dict(a.split('=', 1) for a in sys.argv[1:] if '=' in a)\n"
        )
        writes = (
            "out = given['--output_dir']\nos.makedirs(out)\n"
            "for name in ['config.json', 'rank0.safetensors', 'rank1.safetensors']:\n"
            "    open(os.path.join(out, name), 'w').close()\n"
        )
        script(converter(site.examples), script_text + writes)
        script(quantizer(site.examples), script_text + writes)
        script(
            site.examples / "run.py",
            script_text
            + "os.makedirs(os.path.dirname(given['--output_csv']))\n"
            + "strict = os.environ.get('JUDGE_ACCEPT_THRESHOLD') == '1'\n"
            + "name = 'strictly' if strict else 'says'\n"
            + "lines = open(os.path.join(given['--engine_dir'], name)).read().splitlines()\n"
            + "open(given['--output_csv'], 'w').write(lines.pop(0))\n"
            + "if strict and lines:\n"  # what the next run says
            + "    open(os.path.join(given['--engine_dir'], name), 'w').write(lines[0])\n"
            + "if '--output_logits_npy' in given:\n"
            + "    import numpy\n"
            + "    assert '--output_generation_logits' in sys.argv\n"
            + "    prefix = open(given['--input_file']).read()\n"
            + "    row = [10.0 * len(prefix.split(',')), 0, 0, 0, 24.5, 24.75]\n"
            + "    path = given['--output_logits_npy'].split('.npy')[0] + '_generation'\n"
            + "    numpy.save(path, numpy.array(row, dtype='float32').reshape(1, 1, 1, -1))\n",
        )

    make()
    return make


# --- what is printed -----------------------------------------------------------------------------


def test_dry_run_of_a_conversion(site: Site) -> None:
    code, out, _ = site.run(CONVERT, "--dry-run")
    assert code == 0
    root, script = site.engines, "/app/examples/models/core/llama/convert_checkpoint.py"
    assert out.splitlines() == [
        "step     convert draft",
        f"command  {PYTHON} {script} --model_dir={site.draft} "
        f"--output_dir={root}/checkpoints/draft.partial --dtype=bfloat16 --tp_size=1 --workers=1",
        f"makes    {root}/checkpoints/draft/config.json",
        f"makes    {root}/checkpoints/draft/rank0.safetensors",
        f"makes    {root}/checkpoints/draft/source.json",
        f"log      {root}/logs/convert-draft.log",
        "step     convert target",
        f"command  {PYTHON} {script} --model_dir={site.target} "
        f"--output_dir={root}/checkpoints/target.partial --dtype=bfloat16 --tp_size=2 --workers=1",
        f"makes    {root}/checkpoints/target/config.json",
        f"makes    {root}/checkpoints/target/rank0.safetensors",
        f"makes    {root}/checkpoints/target/rank1.safetensors",
        f"makes    {root}/checkpoints/target/source.json",
        f"log      {root}/logs/convert-target.log",
    ]
    assert not root.exists()


def test_dry_run_of_a_quantization(site: Site) -> None:
    site.write(trtllm=", target: {quantization: fp8, kv_cache_dtype: fp8}")
    arguments = ("--only", "target", "--calibration", "/data/cnn", "--calibration-size", "32")
    _, out, _ = site.run(CONVERT, "--dry-run", *arguments)
    assert out.splitlines()[1] == (
        f"command  {PYTHON} /app/examples/quantization/quantize.py --model_dir={site.target} "
        f"--output_dir={site.engines}/checkpoints/target.partial --dtype=bfloat16 --tp_size=2 "
        "--qformat=fp8 --calib_dataset=/data/cnn --calib_size=32 --kv_cache_dtype=fp8"
    )


def common(site: Site, role: str, engine: str, *, gemm: str = "bfloat16", fp8: str = "disable"):
    return (
        f"--checkpoint_dir={site.engines}/checkpoints/{role} "
        f"--output_dir={site.engines}/{engine}.partial --gemm_plugin={gemm} "
        f"--use_paged_context_fmha=enable --use_fp8_context_fmha={fp8} --kv_cache_type=paged "
        "--max_batch_size=2 --max_input_len=512 --max_seq_len=512 --max_num_tokens=1024 "
        f"--logits_dtype=float32 --input_timing_cache={site.engines}/timing.cache "
        f"--output_timing_cache={site.engines}/timing.cache --workers=1"
    )


SPECULATIVE = (
    "--speculative_decoding_mode=draft_tokens_external --max_draft_len=6 --opt_num_tokens=14"
)
MPIRUN = "mpirun --allow-run-as-root --bind-to none --oversubscribe"
CLASS = f"--model_cls_file={MODEL_CLASS_FILE} --model_cls_name=JudgeLlamaForCausalLM"


def test_dry_run_of_a_build(site: Site) -> None:
    code, out, _ = site.run(BUILD, "--dry-run")
    assert code == 0
    root = site.engines
    lines = out.splitlines()
    assert lines[:7] == [
        "step     build draft",
        f"command  trtllm-build {common(site, 'draft', 'draft')}",
        f"makes    {root}/draft/config.json",
        f"makes    {root}/draft/rank0.engine",
        f"makes    {root}/draft/manifest.json",
        f"log      {root}/logs/build-draft.log",
        "step     build target",
    ]
    assert lines[7] == f"writes   {root}/target.judge.json"
    assert json.loads("\n".join(lines[8:-6])) == {
        "judge": str(site.judge),
        "plugin": str(site.plugin),
        "threshold": 0.6,
        "boost": 10000.0,
        "vocab_size": 256,
        "end_ids": [0],
        "protect_end_ids": True,
        "max_draft_len": 6,
    }
    assert lines[-6:] == [
        f"command  JUDGE_DECODING_BUILD={root}/target.judge.json {MPIRUN} -n 2 "
        f"-x JUDGE_DECODING_BUILD trtllm-build {common(site, 'target', 'target')} "
        f"{SPECULATIVE} {CLASS}",
        f"makes    {root}/target/config.json",
        f"makes    {root}/target/rank0.engine",
        f"makes    {root}/target/rank1.engine",
        f"makes    {root}/target/manifest.json",
        f"log      {root}/logs/build-target.log",
    ]
    assert not root.exists()


def test_a_build_without_a_judge_is_plain_speculative_decoding(site: Site) -> None:
    site.write(rest="acceptance: {rule: strict}")
    _, out, _ = site.run(BUILD, "--dry-run", "--only", "target")
    assert out.splitlines()[1] == (
        f"command  {MPIRUN} -n 2 trtllm-build {common(site, 'target', 'target')} {SPECULATIVE}"
    )


def test_an_fp8_build(site: Site) -> None:
    site.write(
        ranks="{draft: {devices: [0]}, target: {devices: [1]}}",
        trtllm=", target: {quantization: fp8, kv_cache_dtype: fp8}, logits_dtype: float16",
    )
    _, out, _ = site.run(BUILD, "--dry-run", "--only", "target")
    command = next(line for line in out.splitlines() if line.startswith("command"))
    wanted = common(site, "target", "target", gemm="auto", fp8="enable")
    wanted = wanted.replace("--logits_dtype=float32", "--logits_dtype=float16")
    assert command == (
        f"command  JUDGE_DECODING_BUILD={site.engines}/target.judge.json trtllm-build {wanted} "
        f"{SPECULATIVE} {CLASS}"
    )
    assert '"boost": 30000.0' in out


def test_the_engine_takes_max_draft_len_whatever_the_schedule(site: Site) -> None:
    """Requests may ask for max_draft_len if the schedule does not set less."""
    rest = f"judge: {{path: {site.judge}}}\nacceptance: {{rule: judge}}"
    site.write(rest=f"{rest}\ndraft_len_schedule: {{1: 4, 2: 3}}")
    _, out, _ = site.run(BUILD, "--dry-run", "--only", "target")
    # What is tuned for follows the schedule: one sequence has 5 rows, two have 2 x 4.
    assert SPECULATIVE.replace("=14", "=8") in out
    assert '"max_draft_len": 6' in out


def test_more_ranks_than_gpus_of_a_node(site: Site) -> None:
    """commands/build.py: process r builds ranks r and r + 8."""
    ranks = f"{{draft: {{devices: [16]}}, target: {{tp: 16, devices: {list(range(16))}}}}}"
    site.write(ranks=ranks, trtllm=", mode: leader")
    _, out, _ = site.run(BUILD, "--dry-run", "--only", "target")
    assert f"{MPIRUN} -n 8 -x" in out


def test_the_target_is_tuned_for_its_verify_passes() -> None:
    """Regression (line-by-line review, 5): it was tuned for as many rows as sequences."""
    rows = {}
    for name in ("llama-8b-70b-h100x2", "llama-1b-8b", "llama-8b-405b-h100x8"):
        rows[name] = verified_rows(load_deployment(ROOT / "configs" / f"{name}.yaml"))
    # 32 x (6 + 1), 32 x (4 + 1), 16 x (12 + 1): the longest draft times the most sequences never
    # happens.
    assert rows == {
        "llama-8b-70b-h100x2": 224,
        "llama-1b-8b": 160,
        "llama-8b-405b-h100x8": 208,
    }


def test_the_baseline_variant(site: Site) -> None:
    _, out, _ = site.run(BUILD, "--dry-run", "--baseline")
    parts = out.split("step     ")
    assert [part.split("\n")[0] for part in parts[1:]] == [
        "build draft",
        "build target",
        "build target-plain",
    ]
    assert "judge" not in parts[3].replace(str(site.engines), "")
    site.write(rest="acceptance: {rule: strict}")
    assert "--baseline compares with a judged target" in site.refused(BUILD, "--baseline")


def test_dry_run_of_a_verification(site: Site) -> None:
    code, out, _ = site.run(VERIFY, "--dry-run")
    assert code == 0
    root = site.engines
    strict = f"{MPIRUN} -n 1 -x JUDGE_ACCEPT_THRESHOLD"

    def generating(name: str, *prompts: str) -> str:
        return (
            f"{PYTHON} /app/examples/run.py --draft_engine_dir={root}/draft "
            "'--draft_target_model_config=[6,[0],[1,2],False]' --kv_cache_enable_block_reuse "
            f"--tokenizer_dir={site.target} --engine_dir={root}/target --max_output_len=64 "
            "--kv_cache_free_gpu_memory_fraction=0.9 "
            f"--output_csv={root}/verify/{name}.partial/tokens.csv --input_text "
            + shlex.join(prompts)
        )

    assert out.splitlines() == [
        f"checks   {root}/draft/manifest.json",
        f"checks   {root}/target/manifest.json",
        "step     generate target",
        f"command  {MPIRUN} -n 1 {generating('target', PROMPTS[0], PROMPTS[1])}",
        f"makes    {root}/verify/target/tokens.csv",
        f"log      {root}/logs/verify-target.log",
        "step     generate strict-1",
        f"command  JUDGE_ACCEPT_THRESHOLD=1 {strict} {generating('strict-1', PROMPTS[0])}",
        f"makes    {root}/verify/strict-1/tokens.csv",
        f"log      {root}/logs/verify-strict-1.log",
        "step     generate strict-2",
        f"command  JUDGE_ACCEPT_THRESHOLD=1 {strict} {generating('strict-2', PROMPTS[0])}",
        f"makes    {root}/verify/strict-2/tokens.csv",
        f"log      {root}/logs/verify-strict-2.log",
    ]


@pytest.mark.parametrize("config", sorted(path.name for path in ROOT.glob("configs/llama-*.yaml")))
def test_a_dry_run_needs_no_model(config: str) -> None:
    """Regression: "no folder /models/...", with a hint at the demo. A plan needs only shapes."""
    path = ROOT / "configs" / config
    deployment = load_deployment(path)
    assert deployment.draft is not None and deployment.trtllm is not None
    for script in (CONVERT, BUILD):
        done = run_command(script, "--config", str(path), "--dry-run")
        assert (done.code, done.stderr) == (0, "")
        assert done.stdout.splitlines()[:2] == [
            f"absent   {name} {model.model}, planned by its shape {model.shape}"
            for name, model in (("draft", deployment.draft), ("target", deployment.target))
        ]
        assert done.stdout.count("command  ") == 2
    assert f'"judge": "{deployment.judge.path}"' in done.stdout
    assert '"threshold": "the judge\'s own"' in done.stdout
    assert '"vocab_size": 128256' in done.stdout and '"end_ids": "the target\'s"' in done.stdout


def test_a_dry_run_without_a_shape_says_what_to_give(site: Site) -> None:
    site.target = site.folder / "none"
    site.write()
    for script in (CONVERT, BUILD):
        error = site.refused(script, "--dry-run")
        assert f"no {site.target}/config.json; give its `shape`: llama-3.2-1b" in error


def test_a_missing_folder_and_a_gguf_file_are_named(site: Site) -> None:
    site.target = site.folder / "none"
    site.write()
    assert site.refused(CONVERT) == f"model: no folder {site.target}"
    site.target = site.folder / "model.gguf"
    site.write()
    assert (
        f"engine trtllm needs Hugging Face folders, and {site.target} is a GGUF file"
        in site.refused(CONVERT)
    )


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("script", [CONVERT, BUILD])
def test_models_and_judge_are_checked_first(
    site: Site, script: str, tmp_path: Path, tiny_target: Path
) -> None:
    """Before TensorRT-LLM and the GPU are looked for, so that a laptop reports it too."""
    site.judge.unlink()
    assert "judge: no file" in site.refused(script)
    write_judge(site.judge, tiny_target, target_fingerprint="0" * 16)
    assert "trained on target 0000000000000000, but this one is" in site.refused(script)
    write_judge(site.judge, tiny_target, hidden_size=32)
    assert "trained for hidden size 32, but the target's is 64" in site.refused(script)
    write_judge(site.judge, tiny_target)
    site.draft = write_llama(tmp_path / "other", vocab_size=300)
    site.write()
    assert "vocabulary of 300 tokens, the target's is 256" in site.refused(script)
    site.draft = write_llama(tmp_path / "qwen2", model_type="qwen2")
    site.write()
    assert "qwen2 is a qwen2 with biases; engines are built of Llamas" in site.refused(script)
    site.draft = write_llama(tmp_path / "same-size")
    write_tokenizer(site.draft)
    raw = json.loads((site.draft / "tokenizer.json").read_text())
    raw["model"]["vocab"]["a"], raw["model"]["vocab"]["b"] = 1, 0
    (site.draft / "tokenizer.json").write_text(json.dumps(raw))
    site.write()
    assert "has another tokenizer than the target" in site.refused(script)
    site.draft = tmp_path / "none"
    site.write()
    assert f"no folder {tmp_path}/none" in site.refused(script)


def test_a_draft_without_its_own_embeddings(site: Site) -> None:
    site.draft = ROOT / "models" / "smollm2-135m-draft"
    site.target = site.draft  # the same vocabulary
    site.write(rest="acceptance: {rule: strict}")
    assert "borrows model.embed_tokens.weight from its target" in site.refused(CONVERT)


def test_a_deployment_of_another_engine(site: Site) -> None:
    site.config.write_text(f"name: t\ntarget: {{model: {site.target}}}\nacceptance: {{rule: none}}")
    for script in (CONVERT, BUILD, VERIFY):
        assert "has engine torch; engines are for engine trtllm" in site.refused(script)


@pytest.mark.parametrize("script", [CONVERT, BUILD, VERIFY])
def test_no_tensorrt_llm_or_another(site: Site, script: str, machine: Callable[..., None]) -> None:
    machine(version=None)
    assert site.refused(script) == (
        "TensorRT-LLM is not installed here; run inside the container "
        "nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3 (docs/h100.md)"
    )
    machine(version="1.3.0")
    assert "TensorRT-LLM 1.3.0 is installed, this needs 1.2.1" in site.refused(script)


def test_no_gpu(site: Site, machine: Callable[..., None]) -> None:
    machine(gpus=0)
    assert "no GPU is visible" in site.refused(CONVERT, "--examples", str(site.examples))
    for script in (BUILD, VERIFY):
        assert "no GPU is visible" in site.refused(script)


def convert(site: Site, *arguments: str) -> tuple[int, str, str]:
    return site.run(CONVERT, "--examples", str(site.examples), *arguments)


def test_the_wrong_machine(site: Site, machine: Callable[..., None]) -> None:
    machine(name="NVIDIA A100-SXM4-80GB", capability=(8, 0))
    assert convert(site)[0] == 0  # a checkpoint does not depend on the GPU kind
    assert site.refused(BUILD) == (
        "trtllm.gpu is h100 (SM 90), but this machine has NVIDIA A100-SXM4-80GB (SM 80); build on "
        "the GPU kind that serves"
    )
    machine(name="NVIDIA H200")
    assert "this machine has NVIDIA H200 (SM 90)" in site.refused(BUILD)
    machine(gpus=1)
    assert "1 GPUs are visible, 2 are needed" in site.refused(BUILD)
    machine(memory=2 * preflight.GIB)
    error = site.refused(BUILD)
    assert error == (
        "GPU 0 has 2.0 GiB, but needs draft 0.0 GiB of weights, 0.0 of buffers, 2.0 for the "
        "runtime and 0.0 of cache; use quantization fp8, more GPUs (ranks.*.tp), a smaller "
        "trtllm.max_num_tokens, max_draft_len, limits.max_sequences or limits.max_context"
    )
    machine(free=1000)
    assert "disk: the engines needs" in site.refused(BUILD)
    machine(tools=("mpirun",))
    assert "trtllm-build is not on PATH; run inside the container" in site.refused(BUILD)
    machine(tools=("trtllm-build",))
    assert "mpirun is not on PATH" in site.refused(BUILD)
    machine()
    site.plugin.unlink()
    assert f"plugin: no file {site.plugin}; build it" in site.refused(BUILD)
    assert not (site.engines / "draft").exists()


def test_the_wrong_container(site: Site, machine: Callable[..., None]) -> None:
    """The examples folder is missing, or the disk is full."""
    error = site.refused(CONVERT, "--examples", str(site.folder / "nowhere"))
    assert "convert_checkpoint.py; it is part of the container nvcr.io" in error
    machine(free=1000)
    error = site.refused(CONVERT, "--examples", str(site.examples))
    assert "disk: the checkpoints needs" in error
    assert not site.engines.exists()


def test_an_engine_without_its_checkpoint(site: Site, machine: Callable[..., None]) -> None:
    assert "checkpoints/draft; run build/convert_checkpoint.py" in site.refused(BUILD)
    assert "only: unknown 'judge'" in site.refused(BUILD, "--only", "judge")


# --- what is done --------------------------------------------------------------------------------


def test_convert_then_build_then_resume(site: Site, machine: Callable[..., None]) -> None:
    assert convert(site)[0] == 0
    source = json.loads((site.engines / "checkpoints/target/source.json").read_text())
    assert source == {
        "model_fingerprint": Checkpoint(site.target).fingerprint,
        "dtype": "bfloat16",
        "tp": 2,
        "quantization": "none",
        "kv_cache_dtype": "auto",
    }
    code, out, error = site.run(BUILD)
    assert code == 0, error
    deployment = load_deployment(site.config)
    for role in ("draft", "target"):
        check_engine(deployment, role, Checkpoints.of(deployment), RUNTIME)
    assert not list(site.engines.rglob("*.partial"))
    log = (site.engines / "logs/build-target.log").read_text()
    assert "building" in log and f"{MPIRUN} -n 2" in log.splitlines()[0]
    written = JudgeBuild.model_validate_json((site.engines / "target.judge.json").read_text())
    assert (written.judge, written.threshold) == (site.judge, 0.6)

    called = (site.folder / "called").read_text()
    code, out, _ = site.run(BUILD)
    assert (code, out.count("is ready")) == (0, 2)
    assert convert(site)[1].count("is ready") == 2
    assert (site.folder / "called").read_text() == called  # nothing ran again
    code, out, _ = site.run(BUILD, "--dry-run")
    assert out.splitlines() == [f"ready    {site.engines}/draft", f"ready    {site.engines}/target"]
    assert site.run(BUILD, "--only", "draft", "--again")[0] == 0
    assert (site.folder / "called").read_text().count("/draft.partial") == called.count(
        "/draft.partial"
    ) + 1


def test_what_is_there_for_something_else_is_not_reused(
    site: Site, machine: Callable[..., None]
) -> None:
    assert convert(site)[0] == 0
    assert site.run(BUILD)[0] == 0
    site.write(ranks="{draft: {devices: [0]}, target: {devices: [1]}}")
    error = site.refused(BUILD, "--only", "target")
    assert "has tp 2, but 1 is needed here; set ranks.target.tp to 2, or build it again" in error
    error = site.refused(CONVERT, "--examples", str(site.examples))
    assert "checkpoints/target has tp 2, but 1 is wanted" in error
    site.write()
    (site.engines / "checkpoints/target/rank1.safetensors").unlink()
    error = site.refused(CONVERT, "--examples", str(site.examples))
    assert "lacks rank1.safetensors; pass --only target --again" in error


def test_a_failed_step_says_why_and_leaves_nothing_half_made(
    site: Site, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convert(site)[0] == 0
    monkeypatch.setenv("BREAK", "/nowhere")
    error = site.refused(BUILD)
    log = site.engines / "logs/build-draft.log"
    assert error == (
        f"build draft failed with exit code 3; log {log}, its end: building | out of memory"
    )
    assert not (site.engines / "draft").exists()
    monkeypatch.setenv("BREAK", "/")
    assert site.run(BUILD)[0] == 0
    assert log.read_text().count("building") == 2  # the first attempt's log is kept


def test_a_step_that_ends_well_but_makes_too_little(
    site: Site, machine: Callable[..., None]
) -> None:
    site.write(ranks="{draft: {devices: [0]}, target: {tp: 3, devices: [1, 2, 3]}}")
    error = site.refused(CONVERT, "--examples", str(site.examples))
    half = site.engines / "checkpoints/target.partial"  # the fake makes two ranks' files
    assert error.startswith(f"convert target ended well but made no {half}/rank2.safetensors; log ")
    assert not (site.engines / "checkpoints/target").exists()


def test_the_baseline_engine_says_what_it_is(site: Site, machine: Callable[..., None]) -> None:
    assert convert(site)[0] == 0
    assert site.run(BUILD, "--baseline")[0] == 0
    found = {name: EngineManifest.load(site.engines / name) for name in ("target", "target-plain")}
    assert [(m.plugin, m.threshold) for m in found.values()] == [
        ("JudgeAccept/1", 0.6),
        (None, None),
    ]


# --- verification --------------------------------------------------------------------------------


def built(site: Site, *, plain: str = "1,2,3", strictly: tuple[str, ...] = ("1,2,3",)) -> None:
    """All engines, with the tokens that the fake run.py prints for each.

    strictly  what the target writes at threshold 1, in each run
    """
    assert convert(site)[0] == 0
    assert site.run(BUILD, "--baseline")[0] == 0
    (site.engines / "target" / "says").write_text("1,4,5")
    (site.engines / "target" / "strictly").write_text("\n".join(strictly))
    (site.engines / "target-plain" / "says").write_text(plain)


def verify(site: Site, *arguments: str) -> tuple[int, str, str]:
    return site.run(VERIFY, "--examples", str(site.examples), *arguments)


def test_verification_passes(site: Site, machine: Callable[..., None]) -> None:
    built(site)
    code, out, error = verify(site)
    assert code == 0, error
    assert out.splitlines()[-2:] == [
        "target: 3 tokens, prompts and padding included",
        "target at threshold 1: two runs are equal",
    ]
    code, out, _ = verify(site, "--baseline")
    assert code == 0
    assert out.splitlines()[-1] == "threshold 1 / plain engine: all tokens are equal"


def test_two_runs_of_one_engine_that_differ_fail(site: Site, machine: Callable[..., None]) -> None:
    built(site, strictly=("1,2,3", "1,2,5"))
    code, out, _ = verify(site)
    assert code == 1
    assert out.splitlines()[-1] == (
        "FAILED: the target at threshold 1 wrote other tokens in a second run, from token 2 on; a "
        "kernel is not deterministic, or the ranks do not agree"
    )


def test_another_engine_may_swap_logits_that_nearly_tie(
    site: Site, machine: Callable[..., None]
) -> None:
    """Regression (line-by-line review, 4): equality was demanded of two different engines."""
    built(site, plain="1,2,5", strictly=("1,2,4",))
    code, out, error = verify(site, "--baseline")
    assert code == 0, error
    assert out.splitlines()[-1] == (
        "threshold 1 / plain engine: equal up to token 2, where the plain engine's logits are "
        "24.750 for its own token 5 and 24.500 for 4: 0.250 apart. Two engines may part where "
        "logits nearly tie; a gap of whole logits would be a fault"
    )
    # Asked of the plain engine alone, on all of its ranks, behind the tokens that both wrote.
    assert (site.engines / "verify" / "prefix.csv").read_text() == "1,2\n"
    called = (site.folder / "called").read_text().splitlines()
    mpirun = next(line for line in called if "--input_file=" in line and line.startswith("--allow"))
    assert mpirun.startswith("--allow-run-as-root --bind-to none --oversubscribe -n 2 ")
    assert f"--engine_dir={site.engines}/target-plain " in mpirun
    assert "--draft" not in mpirun and "--max_output_len=1 " in mpirun


def test_one_of_two_engines_that_ends_early_is_named(
    site: Site, machine: Callable[..., None]
) -> None:
    built(site, plain="1,2,3,4")
    code, out, _ = verify(site, "--baseline")
    assert code == 0
    assert out.splitlines()[-1] == "threshold 1 / plain engine: one of them ends at token 3"


def test_a_deployment_without_a_judge_only_generates(
    site: Site, machine: Callable[..., None]
) -> None:
    site.write(rest="acceptance: {rule: strict}")
    assert convert(site)[0] == 0
    assert site.run(BUILD)[0] == 0
    (site.engines / "target" / "says").write_text("1,2")
    code, out, error = verify(site)
    assert code == 0, error
    assert out.splitlines()[-1] == "target: 2 tokens, prompts and padding included"


def test_verification_checks_manifests_first(site: Site, machine: Callable[..., None]) -> None:
    built(site)
    code, out, _ = verify(site, "--manifests-only")
    assert (code, out.count("fits this deployment and machine")) == (0, 2)
    manifest = EngineManifest.load(site.engines / "target")
    manifest.model_copy(update={"sm": 100}).save(site.engines / "target")
    code, _, error = verify(site)
    assert code == 2
    assert "has sm 100, but 90 is needed here" in error


def test_verification_of_two_nodes(site: Site) -> None:
    ranks = f"{{draft: {{devices: [16]}}, target: {{tp: 16, devices: {list(range(16))}}}}}"
    site.write(ranks=ranks, trtllm=", mode: leader")
    assert "runs on one node, but GPU 16 is on another" in site.refused(VERIFY)


def test_tokens_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"verify: cannot read .*tokens\.csv"):
        read_tokens(tmp_path)
    (tmp_path / "tokens.csv").write_text("")
    with pytest.raises(UserError, match="holds no tokens"):
        read_tokens(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "index"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [], None)],
)
def test_first_difference(one: list[int], other: list[int], index: int | None) -> None:
    assert first_difference(one, other) == index
