"""The peers `openvino` and `openvino-draft`: OpenVINO GenAI's pipeline on the same GGUF file.

Its own reader converts the file, not exactly: the text often differs from the target's own. It uses
its defaults for the CPU (8-bit activations and keys). Only a target may be a GGUF file for it, so
it converts the draft first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from judge_decoding.evaluation.bench_system import BenchAnswer, NotMeasured, ReadBytes
from judge_decoding.evaluation.read_bytes import gguf_bytes
from judge_decoding.text import Tokenizer


class OpenVino:
    """One pipeline; `draft` and `draft_len` (tokens per round) add draft-model speculation.

    `draft_len` goes along with each prompt, so it may be changed.
    """

    def __init__(
        self,
        name: str,
        target: Path,
        *,
        end_ids: Sequence[int],
        threads: int,
        tokenizer: Path,
        draft: Path | None = None,
        draft_len: int | None = None,
    ) -> None:
        self.name = name
        self.draft_len = draft_len
        self.reads: ReadBytes | None = ReadBytes(
            gguf_bytes(target), gguf_bytes(draft) if draft else 0
        )
        self._end_ids = list(end_ids)
        self._decode = Tokenizer(tokenizer).decode
        self._library = openvino_genai()
        self._tensor: Any = import_module("openvino").Tensor
        schedule = self._library.SchedulerConfig()
        schedule.enable_prefix_caching = False
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "scheduler_config": schedule}
        try:
            if draft is not None:
                options["draft_model"] = self._library.draft_model(
                    str(_converted(self._library, draft)), "CPU", INFERENCE_NUM_THREADS=threads
                )
            self._pipeline = self._library.LLMPipeline(str(target), "CPU", **options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise NotMeasured(f"OpenVINO cannot load {target.name}: {reason}") from None

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer:
        config = self._library.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.do_sample = False
        config.apply_chat_template = False
        config.stop_token_ids = set(self._end_ids)
        if self._end_ids:
            config.eos_token_id = self._end_ids[0]
        if self.draft_len is not None:
            config.num_assistant_tokens = self.draft_len
        prompt = self._tensor(np.array([list(prompt_ids)], dtype=np.int64))
        began = time.perf_counter()
        reply = self._pipeline.generate(prompt, config)
        seconds = time.perf_counter() - began
        tokens, raw = list(reply.tokens[0]), reply.perf_metrics.raw_metrics
        ended = bool(tokens) and tokens[-1] in self._end_ids
        first = raw.m_times_to_first_token[0] / 1e6  # microseconds
        counts, drafted = [1] * len(tokens), 0
        if (both := reply.extended_perf_metrics) is not None:
            counts = list(both.main_model_metrics.raw_metrics.m_batch_sizes)
            drafted = len(both.draft_model_metrics.raw_metrics.m_batch_sizes)
        mean = (seconds - first) / max(len(counts) - 1, 1)
        return BenchAnswer(
            seconds,
            [(first, counts[0]), *[(mean, count) for count in counts[1:]]],
            cut=not ended,
            drafted=drafted,
            each=False,
            text=self._decode(tokens[:-1] if ended else tokens),
        )


def _converted(library: Any, draft: Path) -> Path:
    """The folder of a GGUF file, with OpenVINO's own form of its model beside it."""
    if not (draft.parent / "openvino_model.xml").is_file():
        library.LLMPipeline(str(draft), "CPU", enable_save_ov_model=True)
    return draft.parent


def openvino_genai() -> Any:
    """The module; NotMeasured if it is not installed."""
    try:
        return import_module("openvino_genai")
    except ImportError:
        raise NotMeasured(
            "openvino-genai is not installed; pip install 'judge-decoding[peers]'"
        ) from None
