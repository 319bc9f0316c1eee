"""The plugin as a deployment builds and loads it: nvcc for sm_90, CMake, TensorRT's own registry,
the C++ harness. No kernel runs on a GPU here."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_builds import (
    LEAN_VERSIONS,
    host_library,
    lean_runtime,
    needs_gxx,
    needs_nvcc,
    patchelf,
    plugin_library,
    tensorrt_headers,
)

from plugins.judge_accept import kernel
from plugins.judge_accept.kernel import HERE

pytestmark = [needs_nvcc, pytest.mark.slow]

EXPORTS = {
    "getCreators",
    "setLoggerFinder",
    "judge_accept_abi_version",
    "judge_accept_workspace_size",
    "launch_judge_accept",
}

# Runs with a lean runtime on its path: argv = plugin library, how to load it, fields as JSON.
# Prints what the registry and the creator answer, as JSON.
REGISTRY_SCRIPT = """
import ctypes, json, sys
import numpy as np
import tensorrt_lean_bindings as trt

library, how, collections = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
registry = trt.get_plugin_registry()
if how == "load_library":
    registry.load_library(library)
if how == "open":
    ctypes.CDLL(library)
names = [c.name for c in registry.all_creators]
creator = registry.get_creator("JudgeAccept", "1", "judge")
answer = {"tensorrt": trt.__version__, "count": names.count("JudgeAccept")}
if creator is not None:
    answer["fields"] = {f.name: str(f.type).split(".")[1] for f in creator.field_names}
    kinds = {"f": (np.float32, trt.PluginFieldType.FLOAT32),
             "i": (np.int32, trt.PluginFieldType.INT32),
             "d": (np.float64, trt.PluginFieldType.FLOAT64)}
    made = []
    for collection in collections:
        fields = [trt.PluginField(name, np.array(values, kinds[kind][0]), kinds[kind][1])
                  for name, kind, values in collection]
        plugin = creator.create_plugin(
            "judge", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
        made.append(plugin is not None)
    answer["made"] = made
print(json.dumps(answer))
"""

GOOD = [
    ["weight", "f", [0.5, -0.5, 1.0]],
    ["bias", "f", [0.1]],
    ["threshold", "f", [0.9]],
    ["vocab_size", "i", [128256]],
    ["end_ids", "i", [128001, 128008, 128009]],
    ["max_draft_len", "i", [8]],
]
REFUSED = {
    "unknown field 'weights'": [["weights", "f", [0.5]], *GOOD[1:]],
    "field threshold is missing": [f for f in GOOD if f[0] != "threshold"],
    "bias must be float32, not float64": [GOOD[0], ["bias", "d", [0.1]], *GOOD[2:]],
    "vocab_size must hold 1 value(s), not 2": [*GOOD[:3], ["vocab_size", "i", [1, 2]]],
    "threshold must be at least 0, not -0.5": [*GOOD[:2], ["threshold", "f", [-0.5]], GOOD[3]],
}


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ask_registry(
    runtime: Path, library: Path, how: str, collections: list[list[object]], **environment: str
) -> tuple[dict[str, object], str]:
    """-> the script's answer and its stderr."""
    command = [sys.executable, "-c", REGISTRY_SCRIPT, str(library), how, json.dumps(collections)]
    done = run(command, PYTHONPATH=str(runtime), **environment)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def defined_symbols(library: Path) -> set[str]:
    """Plain C names that the library exports."""
    table = run(["nm", "-D", "--defined-only", str(library)]).stdout
    return set(re.findall(r"^\w+ T (\w+)$", table, re.M)) - {"_init", "_fini"}


# ---- compile and link ----


def test_sm_90_library_exports_the_c_abi_and_nothing_of_its_own_else() -> None:
    library = plugin_library()
    assert {name for name in defined_symbols(library) if not name.startswith("_Z")} == EXPORTS
    dynamic = run(["readelf", "-d", str(library)]).stdout
    assert "libnvinfer" not in dynamic and "libcudart" not in dynamic
    assert "NODELETE" in dynamic


def test_the_library_speaks_this_abi_and_refuses_bad_arguments_without_a_gpu() -> None:
    library = kernel.load(plugin_library())
    assert library.judge_accept_workspace_size(9, 128256, 0, 0) == 9 * 32 * 8
    assert library.launch_judge_accept(None, None) == 1


def test_ptx_has_one_parameter_a_kernel_and_no_spills(tmp_path: Path) -> None:
    """Two logits types, times three hidden types for the judge. Each kernel takes only the struct
    of arguments, so that the PTX can be launched by other programs."""
    ptx = tmp_path / "judge.ptx"
    source = str(HERE / "judge_accept.cu")
    run(["nvcc", "-std=c++17", "-O2", "-arch=compute_90", "-ptx", source, "-o", str(ptx)])
    text = ptx.read_text()
    assert ".target sm_90" in text
    entries = re.findall(r"\.entry (\w+)\((.*?)\)", text, re.S)
    names = sorted(re.sub(r".*(copy_rows|judge_rows).*", r"\1", name) for name, _ in entries)
    assert names == ["copy_rows"] * 2 + ["judge_rows"] * 6
    size = ctypes.sizeof(kernel.Arguments)
    for _, parameters in entries:
        assert parameters.count(".param") == 1
        assert f"[{size}]" in parameters
    # Rounded separately: ptxas must not fuse what the dot product keeps apart.
    assert "mul.rn.f32" in text and "add.rn.f32" in text
    cubin = str(tmp_path / "judge.cubin")
    done = run(["nvcc", "-arch=sm_90", "-Xptxas", "-v", "-cubin", str(ptx), "-o", cubin])
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills == [("0", "0")] * 8


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_builds_what_ld_preload_and_patchelf_register(tmp_path: Path) -> None:
    """Linked with a real TensorRT runtime (the lean one instead of libnvinfer) and preloaded into a
    process that has not loaded it: the creator is in the registry."""
    lean = lean_runtime(LEAN_VERSIONS[0])
    nvinfer = lean / "tensorrt_lean_libs" / "libnvinfer_lean.so.10"
    build = tmp_path / "build"
    headers = f"-DTENSORRT_INCLUDE_DIR={tensorrt_headers()}"
    configure = ["cmake", "-S", str(HERE), "-B", str(build), headers]
    run([*configure, f"-DTENSORRT_LIBRARY={nvinfer}"])
    run(["cmake", "--build", str(build), "--target", "judge_accept_plugin"])
    library = build / "libjudge_accept_plugin.so"
    assert defined_symbols(library) >= EXPORTS
    answer, _ = ask_registry(lean, library, "preloaded", [GOOD], LD_PRELOAD=str(library))
    assert answer["count"] == 1 and answer["made"] == [True]
    # Loading it again neither fails nor registers it twice.
    answer, _ = ask_registry(lean, library, "load_library", [GOOD], LD_PRELOAD=str(library))
    assert answer["count"] == 1 and answer["made"] == [True]
    # The image's way (deploy/Dockerfile): it becomes a need of a library that every process with an
    # engine loads, and is found by its name.
    other = tmp_path / "libnvinfer_plugin_tensorrt_llm.so"
    (tmp_path / "other.c").write_text("int nothing(void) { return 0; }\n")
    run(["gcc", "-shared", "-fPIC", str(tmp_path / "other.c"), "-o", str(other)])
    found = {"LD_LIBRARY_PATH": str(library.parent)}
    answer, _ = ask_registry(lean, other, "open", [], **found)
    assert answer["count"] == 0
    run([str(patchelf()), "--add-needed", library.name, str(other)])
    assert run([str(patchelf()), "--print-needed", str(other)]).stdout.split()[0] == library.name
    answer, _ = ask_registry(lean, other, "open", [GOOD], **found)
    assert answer["count"] == 1 and answer["made"] == [True]


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_without_headers_says_where_to_get_them(tmp_path: Path) -> None:
    nowhere = f"-DTENSORRT_INCLUDE_DIR={tmp_path / 'nowhere'}"
    done = subprocess.run(
        ["cmake", "-S", str(HERE), "-B", str(tmp_path / "build"), nowhere],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    for part in ("nowhere", "/usr/local/tensorrt/include", "libnvinfer-headers-dev"):
        assert part in message


# ---- TensorRT's own registry ----


@pytest.mark.parametrize("version", LEAN_VERSIONS)
def test_the_registry_loads_it_and_the_creator_parses_fields(version: str) -> None:
    collections = [GOOD, *REFUSED.values()]
    answer, messages = ask_registry(
        lean_runtime(version), plugin_library(), "load_library", collections
    )
    assert answer["tensorrt"] == version
    assert answer["count"] == 1
    assert answer["fields"] == {
        "weight": "FLOAT32",
        "bias": "FLOAT32",
        "threshold": "FLOAT32",
        "vocab_size": "INT32",
        "boost": "FLOAT32",
        "end_ids": "INT32",
        "protect_end_ids": "INT32",
        "max_draft_len": "INT32",
    }
    assert answer["made"] == [True] + [False] * len(REFUSED)
    for message in REFUSED:
        assert f"JudgeAccept: {message}" in messages


def test_another_major_version_is_told_not_crashed() -> None:
    """TensorRT 11's registry has another interface. A plugin compiled for 10 that is preloaded
    there reports this and does not register."""
    lean = lean_runtime(LEAN_VERSIONS[1])
    nvinfer = lean / "tensorrt_lean_libs" / "libnvinfer_lean.so.11"
    preload = f"{nvinfer}:{plugin_library()}"
    answer, messages = ask_registry(lean, plugin_library(), "preloaded", [], LD_PRELOAD=preload)
    assert answer["count"] == 0
    assert "compiled for TensorRT 10, but this process runs TensorRT 11" in messages


# ---- the shell, method by method ----


@needs_gxx
def test_harness(tmp_path: Path) -> None:
    """Shapes, types, formats, serialise, deserialise, clone, contexts and enqueue, in C++."""
    program = tmp_path / "harness"
    sources = ["host/harness.cpp", "host/host_cudart.cpp", "judge_accept_plugin.cpp"]
    headers = ["-isystem", str(tensorrt_headers())]
    kernels = [str(host_library()), "-Xlinker", f"-rpath,{host_library().parent}"]
    flags = ["-std=c++17", "-O1", "-cudart", "none", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    paths = [str(HERE / source) for source in sources]
    run(["nvcc", *flags, *headers, *paths, *kernels, "-o", str(program)])
    done = run([str(program)])
    assert re.fullmatch(r"\d{3} checks passed\n", done.stdout), done.stdout
