#!/usr/bin/env bash
# One rank of a world that something else has started (srun, mpirun): $CONFIG is the deployment.
# Rank 0 is Triton, whose model leads; all others are workers. Address, ports, TLS and token are the
# deployment's (`server`), as with `judge-decoding serve`.
set -euo pipefail
: "${CONFIG:?the deployment file}"
rank="${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:?not started by srun or mpirun}}"

if [ "$rank" != 0 ]; then
    exec python3 -m judge_decoding.ranks.launch --config "$CONFIG"
fi
exec python3 -m judge_decoding.serving.rank --config "$CONFIG"
