#!/bin/sh
# AIPerf 0.13.0 against a running server; docs/operations/load.md says how to read it.
#
#   clients/load/perf/recipes/aiperf.sh [HOST:PORT of HTTP] [RULE] [STREAMS] [REQUESTS]
#
# From the environment: TOKENIZER (a folder), VENV (made where it is not there), OUT (results).
set -eu
url=${1:-127.0.0.1:8000} rule=${2:-judge} streams=${3:-4} requests=${4:-16}
venv=${VENV:-/tmp/judge-aiperf}
out=${OUT:-/tmp/judge-aiperf-results}
cd "$(dirname "$0")/../../../.."

if [ ! -x "$venv/bin/aiperf" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet aiperf==0.13.0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m clients.load.perf.recipes.prepare "$work" > /dev/null
sed "s/RULE/$rule/" clients/load/perf/recipes/payload.json.jinja > "$work/payload.json.jinja"

# It speaks no gRPC: Triton's HTTP generate_stream, through the template endpoint. In offline mode
# it takes a tokenizer's folder for a name on the hub, so that HF_HUB_OFFLINE must not be set.
unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
COLUMNS=140 "$venv/bin/aiperf" profile -m ensemble -u "http://$url" \
    --endpoint-type template --streaming --custom-endpoint /v2/models/ensemble/generate_stream \
    --extra-inputs "payload_template:$work/payload.json.jinja" \
    --extra-inputs response_field:text_output \
    --tokenizer "${TOKENIZER:-$work}" --input-file "$work/prompts.jsonl" --custom-dataset-type single_turn \
    --concurrency "$streams" --request-count "$requests" \
    --ui none --no-gpu-telemetry --no-server-metrics --artifact-dir "$out"
