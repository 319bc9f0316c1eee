"""What a Triton model's process does under Open MPI: its parent, not itself, was started by mpirun.

    python -m tests.rank_scripts.open_mpi_spawn            starts MPI, spawns two workers
    python -m tests.rank_scripts.open_mpi_spawn worker     one of them

Prints one JSON document: what this process and the workers found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mpi4py import MPI


def found() -> dict[str, Any]:
    maps = Path("/proc/self/maps").read_text()
    return {
        "size": MPI.COMM_WORLD.size,
        "threads": MPI.Query_thread() == MPI.THREAD_MULTIPLE,
        "threshold": os.environ.get("JUDGE_ACCEPT_THRESHOLD"),
        "preloaded": "libanl" in maps,
        "cores": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    if sys.argv[1:] == ["worker"]:
        parent = MPI.Comm.Get_parent()
        parent.gather(found(), root=0)
        parent.Disconnect()
        return
    arguments = ["-m", "tests.rank_scripts.open_mpi_spawn", "worker"]
    workers = MPI.COMM_SELF.Spawn(sys.executable, args=arguments, maxprocs=2)
    answers = workers.gather(None, root=MPI.ROOT)
    workers.Disconnect()
    print(json.dumps({"own": found(), "workers": answers}), flush=True)


if __name__ == "__main__":
    main()
