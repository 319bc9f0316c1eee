"""Finds the Triton server and makes its command line."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from judge_decoding.config import Deployment, ServerConfig, shipped
from judge_decoding.errors import UserError
from judge_decoding.ranks.shared_memory import FOLDER
from judge_decoding.serving import access

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""NVIDIA's driver has one of them; under WSL it is the second."""
NO_GPU = (
    "CUDA driver version is insufficient for CUDA runtime version",
    "CudaDriverHelper has not been initialized.",
    "no pinned memory pool, falling back to non-pinned system memory",
)
"""What the server logs about a missing GPU; no option prevents it."""
NO_DELAY = "NODELAY NOT SUPPORTED"
"""What its HTTP server logs about every connection of a Unix socket."""

STUB = "triton_python_backend_stub"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Triton:
    """A server to start. `environment` is added to the present one."""

    binary: Path
    backends: Path | None
    environment: dict[str, str]

    def command(
        self, server: ServerConfig, *, name: str, engine_gpus: Sequence[int] = ()
    ) -> list[str]:
        """The server's command line.

        engine_gpus  the node's GPUs that TensorRT-LLM's engines take. The server itself then takes
              no memory there: the runtime gives the caches what is free, whoever comes first
        name  what the server calls itself. Its files in /dev/shm are named `name`-*: the memory of
              the models, and the sockets of HTTP and metrics, which `serving.http_front` serves
        """
        backends = [f"--backend-directory={self.backends}"] if self.backends else []
        socket = f"unix:{FOLDER}/{name}-{{}}.sock"
        return [
            str(self.binary),
            f"--model-repository={shipped('triton_repo')}",
            f"--id={name}",
            *backends,
            *(
                ["--allow-http=false"]
                if server.http_port is None
                else [f"--http-address={socket.format('http')}", "--http-port=1"]
            ),
            f"--grpc-address={server.host}",
            f"--grpc-port={server.grpc_port}",
            f"--metrics-address={socket.format('metrics')}",
            "--metrics-port=2",  # of a Unix socket too, and not HTTP's
            *access.arguments(server),
            # Our configurations are complete; completing them would start every model twice.
            "--disable-auto-complete-config",
            # After SIGTERM Triton refuses the ensemble's own steps, so the launcher drains requests
            # before. A request that a vanished client left behind must not delay the end.
            "--exit-timeout-secs=5",
            f"--backend-config=python,shm-region-prefix-name={name}-",
            "--log-info=false",
            *(() if has_gpu() else ("--allow-gpu-metrics=false",)),  # else NVML's errors are logged
            *(_no_gpu_memory(engine_gpus) if engine_gpus else ()),
        ]


def _no_gpu_memory(gpus: Sequence[int]) -> list[str]:
    """As TensorRT-LLM's own launcher has it (triton_backend/scripts/launch_triton_server.py
    `add_multi_model_config`): neither pools nor contexts for access between GPUs."""
    pools = [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in gpus]
    return ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", *pools]


def engine_gpus(deployment: Deployment) -> list[int]:
    """The GPUs of each node that TensorRT-LLM's engines take; none for another engine."""
    if deployment.engine != "trtllm" or deployment.trtllm is None or deployment.ranks is None:
        return []
    groups = (deployment.ranks.draft, deployment.ranks.target)
    numbers = {gpu for group in groups for gpu in group.devices if gpu != "cpu"}
    return sorted({number % deployment.trtllm.gpus_per_node for number in numbers})


def has_gpu() -> bool:
    """Whether this machine has NVIDIA's driver."""
    return any(Path(device).exists() for device in GPU_DEVICES)


def is_noise(line: str) -> bool:
    """Whether a line of the server's log says only what we know."""
    return NO_DELAY in line or (any(text in line for text in NO_GPU) and not has_gpu())


def find_triton(folder: Path) -> Triton:
    """The server on PATH (NVIDIA's containers), else the one inside the nvidia-pytriton wheel.

    folder  private to this run: the wheel's backends and the stub of this Python are linked there,
            so that nothing is written into site-packages
    """
    # Models run in the first python3 on PATH, which must be this one.
    scripts = Path(sys.prefix) / "bin"
    environment = {"PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    if binary := shutil.which("tritonserver"):
        return Triton(Path(binary), None, environment)
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise UserError(
            "serve: no tritonserver on PATH and no nvidia-pytriton in this environment; "
            "pip install -e '.[serve]' in the project's folder, or run in NVIDIA's Triton container"
        )
    wheel = Path(spec.origin).parent / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        known = ", ".join(sorted(p.name for p in stub.parents[1].glob("*")))
        raise UserError(f"serve: nvidia-pytriton has no stub for Python {version}; it has {known}")
    if library_path := find_libpython():
        old = os.environ.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = library_path + (f"{os.pathsep}{old}" if old else "")
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in [*(wheel / "backends" / "python").glob("*.*"), stub]:
        (backend / file.name).symlink_to(file)
    return Triton(wheel / "bin" / "tritonserver", backend.parent, environment)


def find_libpython() -> str:
    """The folder of this Python's own shared library, "" if the system finds it by itself.

    The stub of Python models links against it, and must not load the library of another build.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        if folder and (Path(folder) / name).is_file():
            return str(folder)
    if sys.base_prefix != "/usr":
        raise UserError(
            f"serve: {sys.base_prefix} holds a Python without its shared library {name}, which "
            "Triton's Python models need; use a Python built with --enable-shared, or Debian's "
            f"python{version} with libpython{version}"
        )
    try:
        ctypes.CDLL(name)
    except OSError:
        raise UserError(
            f"serve: {name} is missing, which Triton's Python models need; "
            f"apt-get install libpython{version}"
        ) from None
    return ""
