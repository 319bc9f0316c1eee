"""The mpiexec line of a deployment with ranks: rank 0 is Triton, then the draft's, the target's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from judge_decoding.config import Deployment
from judge_decoding.errors import UserError
from judge_decoding.serving import environment

LOOPBACK = {"UCX_TLS": "posix,sysv,cma,self", "UCX_NET_DEVICES": "lo", "HYDRA_IFACE": "lo"}
"""Keeps the ranks' data off the network. A set variable is left as it is."""


def command(deployment: Deployment, config: Path, server: list[str], path: str) -> list[str]:
    """server  rank 0's command line
    path    where mpiexec is looked for
    """
    assert deployment.ranks is not None
    mpiexec = shutil.which("mpiexec", path=path)
    if mpiexec is None:
        raise UserError("serve: the deployment has ranks, and there is no mpiexec on PATH")
    worker = [sys.executable, "-m", "judge_decoding.ranks.worker", "--config", str(config)]
    line = [mpiexec, *_flags(mpiexec), "-n", "1", *_WATCHED, *server]
    build = deployment.trtllm if deployment.engine == "trtllm" else None
    if build is not None and build.mode == "orchestrator":
        return line  # TensorRT-LLM spawns the ranks from there
    if deployment.draft is not None and not deployment.ranks.colocate_draft:
        line += [":", "-n", str(deployment.ranks.draft.tp), *_WATCHED, *worker]
    return [*line, ":", "-n", str(deployment.ranks.target.tp), *_WATCHED, *worker]


# mpiexec kills all ranks within a millisecond of the first death, and does not say whose that was.
# This shell outlives its rank by the moment it takes to write that down.
_WATCHED = (
    "sh",
    "-c",
    f'"$@"; code=$?; echo $code > "${environment.RUN_DIR}/'
    '${PMI_RANK:-$OMPI_COMM_WORLD_RANK}.ended"; exit $code',
    "rank",
)


def _flags(mpiexec: str) -> list[str]:
    """Hydra (MPICH) needs none; Open MPI must be told what is passed on, and about root."""
    done = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    if "Open MPI" not in done.stdout + done.stderr:
        return []
    names = ("PATH", "LD_LIBRARY_PATH", environment.CONFIG, environment.RUN_DIR)
    exports = [part for name in names for part in ("-x", name)]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [*root, "--oversubscribe", *exports]


def first_death(folder: Path) -> tuple[int, int] | None:
    """The rank that ended first, other than in good order, and its exit code as a shell has it."""
    notes = sorted(folder.glob("*.ended"), key=lambda path: path.stat().st_mtime_ns)
    codes = [(int(path.stem), path.read_text().strip()) for path in notes]
    return next(((rank, int(code)) for rank, code in codes if code not in ("", "0")), None)
