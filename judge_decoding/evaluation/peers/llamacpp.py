"""The peers `llamacpp` and `llamacpp-draft`: llama.cpp's server, without HTTP, by `xllamacpp`.

Greedy, one slot, as many threads as PyTorch has, no cache of prompts. Prompts are token ids.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from judge_decoding.evaluation.bench_system import BenchAnswer, NotMeasured, ReadBytes
from judge_decoding.evaluation.read_bytes import gguf_bytes


class LlamaCpp:
    """One server; `draft` and `draft_len` (tokens per round) add draft-model speculation."""

    def __init__(
        self,
        name: str,
        target: Path,
        *,
        context: int,
        threads: int,
        draft: Path | None = None,
        draft_len: int | None = None,
    ) -> None:
        self.name = name
        self.draft_len = draft_len
        self.reads: ReadBytes | None = ReadBytes(
            gguf_bytes(target), gguf_bytes(draft) if draft else 0
        )
        library = xllamacpp()
        params = library.CommonParams()
        params.model.path = str(target)
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.verbosity = 0
        params.cache_ram_mib = 0
        params.fit_params = False
        for pool in (params.cpuparams, params.cpuparams_batch):
            pool.n_threads = threads
        if draft is not None:
            speculative = params.speculative
            speculative.types = [
                library.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
            ]
            speculative.draft.mparams.path = str(draft)
            speculative.draft.n_max = draft_len
            speculative.draft.n_min = 0
            speculative.draft.p_min = 0.0
            speculative.draft.n_gpu_layers = 0
            for pool in (speculative.draft.cpuparams, speculative.draft.cpuparams_batch):
                pool.n_threads = threads
        try:
            self._server = library.Server(params)
        except RuntimeError as error:
            raise NotMeasured(f"llama.cpp cannot load {target.name}: {error}") from None

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer:
        asked = {
            "prompt": list(prompt_ids),
            "max_tokens": max_tokens,
            "temperature": 0,
            "cache_prompt": False,
        }
        began = time.perf_counter()
        reply = self._server.handle_completions(asked)
        seconds = time.perf_counter() - began
        if "choices" not in reply:
            raise NotMeasured(f"llama.cpp refused a prompt: {str(reply)[:200]}")
        (choice,), timings = reply["choices"], reply["timings"]
        return BenchAnswer(
            seconds,
            rounds_of(timings),
            cut=choice["finish_reason"] == "length",
            drafted=timings.get("draft_n", 0),
            each=False,
            text=choice["text"],
        )


def rounds_of(timings: dict[str, Any]) -> list[tuple[float, int]]:
    """(seconds, tokens) by round. The server times the prompt, which gives the first token, and all
    later rounds together: each of those has their mean, and the last has the tokens that are left.
    """
    tokens, accepted = timings["predicted_n"], timings.get("draft_n_accepted", 0)
    later = tokens - accepted - 1
    first = (timings["prompt_ms"] / 1e3, 1)
    if later < 1:
        return [(first[0], tokens)]
    seconds = timings["predicted_ms"] / 1e3 / later
    mean = (tokens - 1) // later
    left = tokens - 1 - mean * (later - 1)
    return [first, *[(seconds, mean)] * (later - 1), (seconds, left)]


def xllamacpp() -> Any:
    """The module; NotMeasured if it is not installed."""
    try:
        return import_module("xllamacpp")
    except ImportError:
        raise NotMeasured(
            "xllamacpp is not installed; pip install 'judge-decoding[peers]'"
        ) from None
