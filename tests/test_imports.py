"""Every module imports, and the library without its heavy optional packages."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import judge_decoding

MODULES = [m.name for m in pkgutil.walk_packages(judge_decoding.__path__, "judge_decoding.")]
HEAVY = ["transformers", "sklearn", "matplotlib", "rich", "jinja2", "tokenizers", "yaml", "scipy"]


def test_every_module_imports_without_the_heavy_packages() -> None:
    """One process that cannot import them; a module that needs one fails by name."""
    assert "judge_decoding.decoding" in MODULES
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
    core = [m for m in MODULES if not m.endswith((".cli", ".console"))]
    load = f"[importlib.import_module(m) for m in {core!r}]"
    code = f"import sys, importlib; sys.modules['typer'] = None; {load}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
