"""Every module imports, and the library does so without its heavy optional packages."""

from __future__ import annotations

import pkgutil
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import judge_decoding
from judge_decoding import cpu
from judge_decoding.torch_engine.linear import can_pack

ROOT = Path(__file__).resolve().parents[1]

NEEDS_TENSORRT_LLM = {
    "judge_decoding.trtllm.compat",
    "judge_decoding.trtllm.build.judge_llama",
    "judge_decoding.trtllm.pytorch.model",
}
MODULES = [
    m.name
    for m in pkgutil.walk_packages(judge_decoding.__path__, "judge_decoding.")
    if m.name not in NEEDS_TENSORRT_LLM
]
HEAVY = ["transformers", "sklearn", "matplotlib", "rich", "jinja2", "tokenizers", "yaml", "scipy"]


def test_every_module_imports_without_the_heavy_packages() -> None:
    """Imports all modules in one process that cannot import them; the failing module is named."""
    assert "judge_decoding.decoding.loop" in MODULES
    code = f"""
import importlib, sys
for name in {HEAVY!r}:
    sys.modules[name] = None
for name in {MODULES!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_core_needs_no_command_line_package() -> None:
    core = [m for m in MODULES if not m.startswith("judge_decoding.commands.")]
    load = f"[importlib.import_module(m) for m in {core!r}]"
    code = f"import sys, importlib; sys.modules['typer'] = None; {load}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere PyTorch is asked")
def test_a_deployment_is_read_without_pytorch() -> None:
    """Regression: `dtype: auto` loaded PyTorch in launcher and postprocessing (200 MB, seconds)."""
    code = """
import sys
sys.modules["torch"] = None
from judge_decoding.config import load_deployment
from judge_decoding.ranks import run_folder
from judge_decoding.serving import launcher
print(load_deployment("configs/demo.yaml").dtype)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == cpu.fast_dtype()


def test_a_rank_sets_its_environment_before_pytorch_is_loaded() -> None:
    code = """
import contextlib, os, sys
os.environ.pop("GOMP_SPINCOUNT", None)
sys.argv = ["launch", "--help"]
from judge_decoding.ranks import launch
assert "torch" not in sys.modules
with contextlib.suppress(SystemExit):
    launch.main()
assert "torch" in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "10000"


def test_the_ranks_do_not_import_the_server() -> None:
    for path in (ROOT / "judge_decoding" / "ranks").glob("*.py"):
        assert "judge_decoding.serving" not in path.read_text(), path


def test_what_the_cpu_is_fast_with_is_what_pytorch_says() -> None:
    assert cpu.has_bfloat16() == can_pack(torch.bfloat16)
