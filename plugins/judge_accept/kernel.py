"""Build the plugin's library and call its kernel through the C ABI, for tests and bench_gpu.py.

A deployment builds with CMake (README.md); this needs neither CMake nor TensorRT.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from plugins.judge_accept.reference import PluginSettings

HERE = Path(__file__).resolve().parent
ABI_VERSION = 1
MAX_END_IDS = 16
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}

_POINTERS = ("logits", "hidden", "input_ids", "last_token_ids", "context_lengths", "weight")


class Arguments(ctypes.Structure):
    """struct JudgeAcceptArguments of judge_accept.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_POINTERS, "edited", "scores", "workspace")),
        ("workspace_size", ctypes.c_size_t),
        *(
            (name, ctypes.c_int32)
            for name in (
                "tokens",
                "rows",
                "requests",
                "columns",
                "hidden_size",
                "logits_type",
                "hidden_type",
                "vocab_size",
                "max_draft_len",
                "protect_end_ids",
                "end_count",
            )
        ),
        ("end_ids", ctypes.c_int32 * MAX_END_IDS),
        ("bias", ctypes.c_float),
        ("threshold", ctypes.c_float),
        ("boost", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


class BuildError(RuntimeError):
    """A compiler is missing or refused the sources; holds its output."""


def build_host(folder: Path, *flags: str) -> Path:
    """Compile the kernel's own source as a CPU library with g++."""
    library = folder / "libjudge_accept_host.so"
    options = "-std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off -fPIC -shared"
    define = "-DJUDGE_ACCEPT_HOST_BUILD"
    source = str(HERE / "judge_accept.cu")
    _compile(["g++", *options.split(), define, *flags, "-x", "c++", source, "-o", str(library)])
    return library


def build_cuda(folder: Path, arch: str = "90", tensorrt_include: Path | None = None) -> Path:
    """Compile the kernel for one GPU architecture with nvcc, and the TensorRT shell if its headers
    are given."""
    library = folder / "libjudge_accept_plugin.so"
    options = (
        "-std=c++17 -O2 -shared -cudart static -Xlinker -z,nodelete "
        "-Xcompiler -fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-Wall,-Wextra "
        f"-gencode arch=compute_{arch},code=sm_{arch} "
        f"-gencode arch=compute_{arch},code=compute_{arch}"
    )
    sources = [str(HERE / "judge_accept.cu")]
    if tensorrt_include is not None:
        sources += [str(HERE / "judge_accept_plugin.cpp"), "-isystem", str(tensorrt_include)]
    _compile(["nvcc", *options.split(), *sources, "-o", str(library)])
    return library


def load(library: Path) -> ctypes.CDLL:
    """Load the library with the C ABI's signatures; BuildError for another ABI version."""
    kernel = ctypes.CDLL(str(library))
    kernel.judge_accept_workspace_size.restype = ctypes.c_size_t
    kernel.judge_accept_workspace_size.argtypes = [ctypes.c_int32] * 4
    kernel.launch_judge_accept.restype = ctypes.c_int
    kernel.launch_judge_accept.argtypes = [ctypes.POINTER(Arguments), ctypes.c_void_p]
    found = kernel.judge_accept_abi_version()
    if found != ABI_VERSION:
        raise BuildError(f"{library} has ABI version {found}, this code speaks {ABI_VERSION}")
    return kernel


def arguments(
    settings: PluginSettings,
    shape: tuple[int, int, int, int, int],
    types: tuple[str, str],
    threads: int = 0,
) -> Arguments:
    """All fields but the pointers. shape is (T, R, B, V, H), types are of logits and hidden."""
    a = Arguments()
    a.tokens, a.rows, a.requests, a.columns, a.hidden_size = shape
    a.logits_type, a.hidden_type = TYPES[types[0]], TYPES[types[1]]
    a.vocab_size = settings.vocab_size
    a.max_draft_len = settings.max_draft_len
    a.protect_end_ids = int(settings.protect_end_ids)
    a.end_count = len(settings.end_ids)
    a.end_ids[: len(settings.end_ids)] = settings.end_ids
    a.bias, a.threshold, a.boost = settings.bias, settings.threshold, settings.boost
    a.threads = threads
    return a


def run_host(
    kernel: ctypes.CDLL,
    logits: np.ndarray,
    hidden: np.ndarray,
    input_ids: np.ndarray,
    last_token_ids: np.ndarray,
    context_lengths: np.ndarray,
    settings: PluginSettings,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Run the host build on C-contiguous NumPy arrays; a uint16 `hidden` holds bfloat16 bits.
    Outputs start as garbage, so that an element that is not written shows.
    -> edited logits, scores (as `reference.judge_accept`)."""
    rows, columns = logits.shape
    hidden_type = "bfloat16" if hidden.dtype == np.uint16 else str(hidden.dtype)
    shape = (len(input_ids), rows, len(context_lengths), columns, hidden.shape[1])
    a = arguments(settings, shape, (str(logits.dtype), hidden_type), threads)
    # An output has its input's offset within 16 bytes, because on a GPU both are aligned.
    edited = unaligned_like(logits, logits.ctypes.data % 16)
    edited.view(np.uint8)[:] = 0xA5
    scores = np.full((len(context_lengths), settings.max_draft_len), 7.0, dtype=np.float32)
    a.workspace_size = kernel.judge_accept_workspace_size(rows, columns, a.logits_type, threads)
    workspace = np.full(a.workspace_size // 8, 0xA5A5A5A5A5A5A5A5, dtype=np.uint64)
    weight = unaligned_like(settings.weight.astype(np.float32), 0)
    weight[:] = settings.weight
    inputs = (logits, hidden, input_ids, last_token_ids, context_lengths, weight)
    for name, array in zip(_POINTERS, inputs, strict=True):
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous")
        setattr(a, name, array.ctypes.data)
    a.edited, a.workspace = edited.ctypes.data, workspace.ctypes.data
    a.scores = scores.ctypes.data if settings.max_draft_len else None
    error = kernel.launch_judge_accept(ctypes.byref(a), None)
    if error:
        raise ValueError(f"launch_judge_accept: error {error}")
    return edited, scores


def unaligned_like(array: np.ndarray, offset: int) -> np.ndarray:
    """Uninitialised memory of array's shape and type that starts `offset` bytes after a multiple
    of 16."""
    raw = np.empty(array.nbytes + 32, dtype=np.uint8)
    start = (offset - raw.ctypes.data) % 16
    return raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)


def _compile(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise BuildError(f"{command[0]} is not installed (or not on PATH)")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
