"""Rank 0 of a world that srun or mpirun has started: the server, watched as under `serve`.

    python -m judge_decoding.serving.rank --config CONFIG       (deploy/rank.sh)

The other ranks run `judge_decoding.ranks.launch`. Whatever started the world ends it when this
process ends.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from judge_decoding.config import load_deployment
from judge_decoding.errors import UserError
from judge_decoding.serving.launcher import serve


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the deployment YAML")
    config = parser.parse_args().config
    try:
        return serve(load_deployment(config), config, in_world=True)
    except UserError as error:
        print(f"judge-decoding: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
