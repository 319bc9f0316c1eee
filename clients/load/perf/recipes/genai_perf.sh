#!/bin/sh
# genai-perf 0.0.16 against a running server; docs/operations/load.md says how to read it.
#
#   clients/load/perf/recipes/genai_perf.sh [HOST:PORT of gRPC] [RULE] [STREAMS] [REQUESTS]
#
# From the environment: TOKENIZER (a folder), VENV (made where it is not there), OUT (results).
set -eu
url=${1:-127.0.0.1:8001} rule=${2:-judge} streams=${3:-4} requests=${4:-16}
venv=${VENV:-/tmp/judge-genai-perf}
out=${OUT:-/tmp/judge-genai-perf-results}
cd "$(dirname "$0")/../../../.."

if [ ! -x "$venv/bin/genai-perf" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet genai-perf==0.0.16
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
libraries=$(.venv/bin/python -m clients.load.perf.recipes.prepare "$work")

# It starts the perf_analyzer on PATH: its own dependency of that name is an empty package.
PATH="$PWD/.venv/bin:$PATH" LD_LIBRARY_PATH="$libraries" HF_HUB_OFFLINE=1 COLUMNS=140 \
    "$venv/bin/genai-perf" profile -m ensemble -u "$url" \
    --endpoint-type kserve --backend tensorrtllm --streaming \
    --tokenizer "${TOKENIZER:-$work}" --input-file "$work/prompts.jsonl" --num-prompts 48 \
    --extra-inputs max_tokens:64 --extra-inputs chat:true --extra-inputs "acceptance_rule:$rule" \
    --concurrency "$streams" --request-count "$requests" --artifact-dir "$out"
