"""The mpiexec command line of a deployment with ranks, and which of them died first.

Rank 0 is Triton, then come the draft's ranks, then the target's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from judge_decoding.config import Deployment
from judge_decoding.errors import UserError
from judge_decoding.ranks import run_folder
from judge_decoding.trtllm.stack import THRESHOLD_VARIABLE

LOOPBACK = {"UCX_TLS": "posix,sysv,cma,self", "UCX_NET_DEVICES": "lo", "HYDRA_IFACE": "lo"}
"""Keep the ranks' data off the network. Variables that are set already keep their values."""


def command(deployment: Deployment, config: Path, server: list[str], path: str) -> list[str]:
    """The whole command line.

    server  rank 0's command line
    path    the PATH on which mpiexec is looked up
    """
    assert deployment.ranks is not None
    mpiexec = shutil.which("mpiexec", path=path)
    if mpiexec is None:
        raise UserError("serve: the deployment has ranks, and there is no mpiexec on PATH")
    worker = [sys.executable, "-m", "judge_decoding.ranks.launch", "--config", str(config)]
    line = [mpiexec, *_flags(mpiexec), "-n", "1", *_WATCHED, *server]
    build = deployment.trtllm if deployment.engine == "trtllm" else None
    if build is not None and build.mode == "orchestrator":
        return line  # TensorRT-LLM spawns the ranks from there
    if deployment.draft is not None and not deployment.ranks.colocate_draft:
        line += [":", "-n", str(deployment.ranks.draft.tp), *_WATCHED, *worker]
    return [*line, ":", "-n", str(deployment.ranks.target.tp), *_WATCHED, *worker]


_PLUGIN_VARIABLES = ("LD_PRELOAD", THRESHOLD_VARIABLE)
"""What the judge's plugin needs in every rank (plugins/judge_accept/README.md)."""

# mpiexec kills all ranks within a millisecond of the first death and does not say which rank died.
# This shell outlives its rank just long enough to write down its exit code.
_WATCHED = (
    "sh",
    "-c",
    f'"$@"; code=$?; echo $code > "${run_folder.FOLDER_VARIABLE}/'
    '${PMI_RANK:-$OMPI_COMM_WORLD_RANK}.ended"; exit $code',
    "rank",
)


def _flags(mpiexec: str) -> list[str]:
    """MPICH's mpiexec needs none. Open MPI's passes on only the named variables to other nodes, and
    runs as root only if told to. By default it binds each of one or two ranks to one core, which
    Triton would share with its models and the runtime's threads."""
    done = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    # Version 4 calls itself so under this name, and "Open MPI" only as mpirun.
    if not any(name in done.stdout + done.stderr for name in ("Open MPI", "OpenRTE")):
        return []
    names = ["PATH", "LD_LIBRARY_PATH", run_folder.CONFIG_VARIABLE, run_folder.FOLDER_VARIABLE]
    names += [name for name in _PLUGIN_VARIABLES if name in os.environ]
    exports = [part for name in names for part in ("-x", name)]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [*root, "--bind-to", "none", "--oversubscribe", *exports]


def first_death(folder: Path) -> tuple[int, int] | None:
    """The first rank that ended with an error, and its exit code as a shell reports it."""
    notes = sorted(folder.glob("*.ended"), key=lambda path: path.stat().st_mtime_ns)
    codes = [(int(path.stem), path.read_text().strip()) for path in notes]
    return next(((rank, int(code)) for rank, code in codes if code not in ("", "0")), None)
