#!/usr/bin/env bash
# One rank of a world that something else has started (srun, mpirun): $CONFIG is the deployment.
# Rank 0 is Triton, whose model leads; all others are workers. Ports are the deployment's defaults.
set -euo pipefail
: "${CONFIG:?the deployment file}"
# TensorRT-LLM's own threads use MPI beside ours.
export MPI4PY_RC_THREAD_LEVEL=multiple
rank="${SLURM_PROCID:-${OMPI_COMM_WORLD_RANK:?not started by srun or mpirun}}"

if [ "$rank" != 0 ]; then
    exec python3 -m judge_decoding.ranks.worker --config "$CONFIG"
fi
export JUDGE_DECODING_CONFIG="$CONFIG"
exec tritonserver \
    --model-repository=/opt/judge-decoding/triton_repo \
    --disable-auto-complete-config \
    --exit-timeout-secs=35 \
    --http-port=8000 --grpc-port=8001 --metrics-port=8002
