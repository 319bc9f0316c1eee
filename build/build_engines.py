"""TensorRT-LLM checkpoints -> TensorRT engines of draft and target, the judge inside the target's.

    python build/build_engines.py --config configs/llama-8b-70b-h100x2.yaml [--dry-run]

Runs `trtllm-build` with the options of TensorRT-LLM 1.2.1 (tensorrt_llm/commands/build.py), one
process per rank. With `acceptance.rule: judge` the target is built through
judge_decoding/trtllm/build/judge_llama.py, which loads the plugin before it makes the network.
Engines go to `draft` and `target` under `trtllm.engines`, each with its manifest. What is ready is
left alone; `--again` builds it anew.
`--baseline` also builds `target-plain` (no plugin) and `target-threshold-1` (the plugin, never
accepting), which verify_engines.py compares.
"""

import typer

from judge_decoding.trtllm.build.engines import main

if __name__ == "__main__":
    typer.run(main)
