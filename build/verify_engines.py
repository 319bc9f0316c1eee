"""Are the engines what the deployment needs, and do they decode? Run on the machine that serves.

    python build/verify_engines.py --config configs/llama-8b-70b-h100x2.yaml [--baseline]

1. Every manifest is checked.
2. A smoke generation through TensorRT-LLM's own draft-target example (examples/run.py), that is,
   through its unmodified runtime and none of our serving code: it must produce tokens.
3. With `--baseline` (engines of `build_engines.py --baseline`): the target with the judge at
   threshold 1 must produce exactly the tokens of plain speculative decoding; the deployment's own
   threshold is reported beside it.

The options are those of TensorRT-LLM 1.2.1's own draft-target test. Exit code 1: a check failed.
"""

import typer

from judge_decoding.trtllm.build.verify import main

if __name__ == "__main__":
    typer.run(main)
