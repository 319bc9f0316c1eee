"""The plugin builds that test_plugin_*.py use as fixtures; each is compiled once per session."""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from plugins.judge_accept import kernel

SHARE = Path(sys.prefix) / "share"  # where `make plugin-deps` puts TensorRT's parts
LEAN_VERSIONS = ("10.15.1.29", "11.4.0.106")

needs_gxx = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed: no host build of the kernel"
)
needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None,
    reason="nvcc (CUDA 13) is not installed: no plugin",
)


@cache
def _folder() -> Path:
    import atexit

    folder = Path(mkdtemp(prefix="judge-accept-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def host_library() -> Path:
    """The kernel's source as a CPU library."""
    return kernel.build_host(_folder())


@cache
def plugin_library() -> Path:
    """The plugin for sm_90, with the TensorRT shell, not linked with libnvinfer."""
    return kernel.build_cuda(_folder(), tensorrt_include=tensorrt_headers())


def tensorrt_headers() -> Path:
    return _installed(SHARE / "tensorrt-headers" / "kernel_lens" / "include" / "tensorrt")


def lean_runtime(version: str) -> Path:
    """A folder to import tensorrt_lean_bindings from."""
    return _installed(SHARE / f"tensorrt-lean-{version}")


def patchelf() -> Path:
    return _installed(SHARE / "patchelf") / "bin" / "patchelf"


def _installed(path: Path) -> Path:
    assert path.is_dir(), f"{path} is missing: run `make plugin-deps`"
    return path
