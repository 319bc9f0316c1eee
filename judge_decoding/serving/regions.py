"""Triton's shared memory: one region in /dev/shm for each Python model, bounded.

A request's inputs pass to a model through its region, and so do the model's answers. Triton makes a
region longer when a request needs it, never shorter, and has no option to bound it. So we limit the
size of the files that tritonserver may make (RLIMIT_FSIZE). A request beyond the bound gets an
error ("Failed to increase the shared memory pool size ..."), and everything else goes on. A model's
own process is not limited: its answers are bounded by what it was given, and it writes logs.
"""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from judge_decoding.config import Deployment
from judge_decoding.config.layout import Layout
from judge_decoding.errors import UserError
from judge_decoding.ranks.shared_memory import FOLDER
from judge_decoding.serving.processes import ignores

REGIONS = 3
"""preprocessing, judge_decoding and postprocessing"""
MIB = 2**20
_BASE = 2 * MIB
"""A region's first size, and as much again for messages and answers."""
_TEXT_FACTOR = 8
"""A text of bytes that JSON escapes (six each) goes to the postprocessing and comes back."""
_TOKEN_BYTES = 8
"""An id, and the usual length of its text."""
_REQUEST = 64 * 1024
"""A request's other inputs, of which the stop strings are the longest, and its answers."""
_RANK = 5 * MIB // 4
"""MPICH's own files: measured, 1.01 MiB for each rank of a world of three or four."""


def region_bytes(deployment: Deployment) -> int:
    """Upper bound of one region, in bytes: a whole number of MiB.

    It has room for the longest text that a request may have, and for all requests that may run or
    wait, each with a prompt that fills its context.
    """
    limits, server = deployment.limits, deployment.server
    requests = limits.max_sequences + server.max_queue
    size = (
        _BASE
        + _TEXT_FACTOR * server.max_prompt_bytes
        + (_TOKEN_BYTES * limits.max_context + _REQUEST) * requests
    )
    return -(-size // MIB) * MIB


def check_room(deployment: Deployment, folder: Path = FOLDER) -> None:
    """UserError if /dev/shm could not hold all regions at their bounds and the ranks' files."""
    ranks = 0 if deployment.ranks is None else Layout.of(deployment).size
    region = region_bytes(deployment)
    needed = REGIONS * region + ranks * _RANK
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        raise UserError(f"serve: there is no {folder} ({error.strerror})") from None
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks == 0 or free >= needed:  # a tmpfs without a limit has no blocks
        return
    parts = f"{REGIONS} x {region // MIB} MB for Triton's models"
    parts += f", {-(-ranks * _RANK // MIB)} MB for {ranks} ranks" if ranks else ""
    raise UserError(
        f"serve: {folder} has {free // MIB} MB free, and this deployment may need "
        f"{-(-needed // MIB)} MB ({parts}); enlarge it (docker run --shm-size=1g; Kubernetes: "
        f"an emptyDir with medium Memory at {folder}) or lower server.max_prompt_bytes"
    )


def bound(server_pid: int, size: int) -> bool:
    """Limit the regions of this tritonserver to `size` bytes; whether that was possible.

    Its models must be running: a process that it starts later inherits the limit.
    """
    # Without this the limit would end the process: an MPI runtime may have reset the signal.
    if not ignores(server_pid, signal.SIGXFSZ):
        return False
    try:
        _, hard = resource.prlimit(server_pid, resource.RLIMIT_FSIZE)
        soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.prlimit(server_pid, resource.RLIMIT_FSIZE, (soft, hard))
    except OSError:  # it is gone, or another user's
        return False
    return True


def hide(prefix: str) -> None:
    """Close the regions to other users: Triton lets everybody read prompts and answers."""
    for region in FOLDER.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):
            region.chmod(0o600)


def remove(prefix: str) -> None:
    """Remove the regions of a server that has ended."""
    for region in FOLDER.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
