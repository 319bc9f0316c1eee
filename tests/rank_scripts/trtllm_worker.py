"""A worker whose TensorRT-LLM is the RECORDING FAKE: one process stands for each executor's ranks.

A tiny Llama answers for both models, so that a test can compare with the PyTorch engine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import load_deployment
from judge_decoding.ranks import worker
from judge_decoding.torch_engine.engine import load_target
from judge_decoding.trtllm import executor
from judge_decoding.trtllm import open_engines as loading
from judge_decoding.trtllm.stack import Runtime
from tests.fakes import executor_fake as fake
from tests.fakes.tiny_llama import TinyLlama

RUNTIME = Runtime("10.14.1", "1.2.1", 90)


def install(config: Path) -> None:
    deployment = load_deployment(config)
    assert deployment.draft is not None
    for role, model in (("draft", deployment.draft), ("target", deployment.target)):
        bounds = {"max_sequences": 1, "max_context": 160, "prefill_chunk": 16}
        engine = load_target(Checkpoint(model.model), dtype="float32", **bounds)
        fake.Executor.models[role] = TinyLlama(engine)
    for name in ("tensorrt_llm", "tensorrt_llm.bindings"):
        sys.modules[name] = SimpleNamespace(__file__="/site/tensorrt_llm/__init__.py")  # type: ignore[assignment]
    sys.modules["tensorrt_llm.bindings.executor"] = fake
    executor.check_tensorrt_llm = lambda: RUNTIME.tensorrt_llm  # type: ignore[attr-defined]
    loading.this_runtime = lambda: RUNTIME  # type: ignore[attr-defined]


if __name__ == "__main__":
    torch.set_num_threads(1)
    install(Path(sys.argv[sys.argv.index("--config") + 1]))
    sys.exit(worker.main())
