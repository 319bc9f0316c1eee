"""The mpiexec line of a deployment with ranks: rank 0 is Triton, then the draft's, the target's."""

from __future__ import annotations

import os
import re
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
    line = [mpiexec, *_flags(mpiexec), "-n", "1", *server]
    if deployment.draft is not None:
        line += [":", "-n", str(deployment.ranks.draft.tp), *worker]
    return [*line, ":", "-n", str(deployment.ranks.target.tp), *worker]


def _flags(mpiexec: str) -> list[str]:
    done = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    if "Open MPI" not in done.stdout + done.stderr:
        # Hydra (MPICH). It would kill all ranks as soon as one is dead, and then nobody could
        # tell which was the first: the launcher does that itself.
        return ["-disable-auto-cleanup"]
    names = ("PATH", "LD_LIBRARY_PATH", environment.CONFIG, environment.RUN_DIR)
    exports = [part for name in names for part in ("-x", name)]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [*root, "--oversubscribe", *exports]


_ABORT = re.compile(r"^judge-decoding: ending the job: (.*)")  # ranks.leader
_DEATH = re.compile(r"with (PID \d+) on node \S+ exited on (.*?)\.?$")  # Open MPI's mpiexec


def cause(line: str) -> str | None:
    """Why the job ends, where a line of its output says so."""
    if found := _ABORT.search(line):
        return found[1]
    if found := _DEATH.search(line):
        return f"{found[1]} exited on {found[2]}"
    return None
