"""The program of every rank but the leader. It prepares the environment, then runs `worker`.

mpiexec -n 1 LEADER : -n 3 python -m judge_decoding.ranks.launch --config FILE
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    # By default an idle OpenMP thread spins for 14 ms after each parallel region, on the core that
    # another rank now computes on. With this value it sleeps after 0.5 ms. With less it would fall
    # asleep between the regions of one forward (docs/ranks.md). OpenMP reads it once, when PyTorch
    # is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from judge_decoding.ranks import worker

    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
