"""The peers `hf` and `hf-assisted`: transformers' `generate`, greedy, and with an assistant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from judge_decoding.checkpoint import EMBEDDING, HEAD, Checkpoint
from judge_decoding.evaluation.bench_system import BenchAnswer, NotMeasured, ReadBytes
from judge_decoding.evaluation.read_bytes import module_bytes

if TYPE_CHECKING:
    from judge_decoding.pipeline import Pipeline


class HuggingFace:
    """transformers' greedy `generate`, with an assistant model or without."""

    def __init__(
        self,
        name: str,
        model: Any,
        end_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        assistant: Any = None,
        draft_len: int | None = None,
    ) -> None:
        self.name = name
        self.draft_len = draft_len
        self._decode = decode
        self.reads: ReadBytes | None = ReadBytes(module_bytes(model))
        self._model = model
        self._end_ids = list(end_ids)
        self._drafted = 0
        self._assistant = {}
        if assistant is not None:
            self._assistant = {"assistant_model": assistant}
            assistant.register_forward_pre_hook(self._count)
            self.reads = ReadBytes(self.reads.target, module_bytes(assistant))
        self._config = _transformers().GenerationConfig(
            do_sample=False,
            eos_token_id=self._end_ids or None,
            pad_token_id=end_ids[0] if end_ids else 0,
        )

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer:
        watch = _RoundWatch()
        ids = torch.tensor([list(prompt_ids)], device=self._model.device)
        self._config.max_new_tokens = max_tokens
        self._drafted = 0
        began = time.perf_counter()
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self._config,
            streamer=watch,
            **self._assistant,
        )
        seconds = time.perf_counter() - began
        tokens = made[0, ids.shape[1] :].tolist()
        cut = tokens[-1] not in self._end_ids
        text = self._decode(tokens if cut else tokens[:-1])
        return BenchAnswer(seconds, watch.rounds, cut, drafted=self._drafted, text=text)

    def _count(self, *_: Any) -> None:
        self._drafted += 1


class _RoundWatch:
    """A transformers streamer that notes (seconds, tokens) of every round."""

    def __init__(self) -> None:
        self.rounds: list[tuple[float, int]] = []
        self._last: float | None = None

    def put(self, tokens: torch.Tensor) -> None:
        now = time.perf_counter()
        if self._last is not None:  # the first call only hands over the prompt
            self.rounds.append((now - self._last, tokens.numel()))
        self._last = now

    def end(self) -> None:
        """Nothing is held back."""


def _transformers() -> Any:
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise NotMeasured("transformers is not installed; pip install transformers") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_target(pipeline: Pipeline) -> Any:
    """The deployment's target, in its dtype; shared by both peers."""
    deployment = pipeline.deployment
    return transformers_model(deployment.target.model, getattr(torch, deployment.dtype), {})


def open_hugging_face(name: str, model: Any, pipeline: Pipeline) -> HuggingFace:
    """The peer `name` around the target that `load_target` gave."""
    deployment, decode = pipeline.deployment, pipeline.tokenizer.decode
    end_ids = list(pipeline.engines.target.end_ids)
    if name == "hf":
        return HuggingFace(name, model, end_ids, decode)
    if deployment.draft is None:
        raise NotMeasured("it needs a draft, the deployment has none")
    dtype = getattr(torch, deployment.dtype)
    assistant = transformers_model(deployment.draft.model, dtype, model.state_dict())
    # The default of 20 tokens per round suits no small draft, so we set our own length. As by
    # default, transformers still stops early where the draft is unsure.
    assistant.generation_config.num_assistant_tokens = deployment.max_draft_len
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    return HuggingFace(name, model, end_ids, decode, assistant, deployment.max_draft_len)


def transformers_model(path: Path, dtype: torch.dtype, theirs: Mapping[str, torch.Tensor]) -> Any:
    """A checkpoint as a whole LlamaForCausalLM or Qwen2ForCausalLM.

    theirs  the target's tensors, of which a draft may share some. transformers has no short-list
            for the LM head, so a draft has the full head
    """
    checkpoint = Checkpoint(path)
    shared, tensors = checkpoint.config.shared_with_target, checkpoint.tensors
    family = {"llama": "Llama", "qwen2": "Qwen2"}[checkpoint.config.model_type]
    config = getattr(_transformers(), f"{family}Config").from_dict(checkpoint.config_json)
    model = getattr(_transformers(), f"{family}ForCausalLM")(config)
    state: dict[str, torch.Tensor] = {}
    for name in model.state_dict():
        if name in shared:
            state[name] = theirs[name]
        elif name == HEAD and HEAD not in tensors:
            state[name] = state[EMBEDDING]  # tied
        else:
            state[name] = tensors.get(name).to(dtype)
    # `assign` shares the target's memory and leaves the rotary tables in float32, unlike `.to`.
    model.load_state_dict(state, assign=True)
    return model.eval()
