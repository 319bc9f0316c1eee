"""A RECORDING FAKE of `tensorrt_llm.bindings.executor`. It is not TensorRT-LLM and proves nothing
about it.

Built from signatures in NVIDIA/TensorRT-LLM near v1.2.1 (cpp/tensorrt_llm/nanobind/executor/*.cpp):
a keyword that does not exist there is a TypeError here. A `Model` stands for an engine, and
`Executor` emulates what the stock runtime does with a request (greedy and draft-logits acceptance
of external drafts) and what the judge's plugin does to the target's logits.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

CommunicationType = enum.Enum("CommunicationType", "MPI")
CommunicationMode = enum.Enum("CommunicationMode", "LEADER ORCHESTRATOR")
ModelType = enum.Enum("ModelType", "DECODER_ONLY ENCODER_ONLY ENCODER_DECODER")


@dataclass
class SamplingConfig:
    beam_width: int = 1
    top_k: int | None = field(default=None, kw_only=True)
    top_p: float | None = field(default=None, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    min_tokens: int | None = field(default=None, kw_only=True)


@dataclass
class AdditionalModelOutput:
    name: str
    gather_context: bool = False


@dataclass
class OutputConfig:
    return_log_probs: bool = False
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = False
    return_encoder_output: bool = False
    return_perf_metrics: bool = False
    additional_model_outputs: list[AdditionalModelOutput] | None = None


@dataclass
class ExternalDraftTokensConfig:
    tokens: list[int]
    logits: torch.Tensor | None = None
    acceptance_threshold: float | None = None
    fast_logits: bool | None = None

    def __post_init__(self) -> None:  # requestUtils: TLLM_CHECKs of the constructor
        assert self.tokens
        if self.logits is not None:
            assert self.logits.dim() == 2
            assert self.logits.shape[0] == len(self.tokens)


@dataclass
class Request:
    input_token_ids: list[int]
    max_tokens: int
    streaming: bool = field(default=False, kw_only=True)
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig, kw_only=True)
    output_config: OutputConfig = field(default_factory=OutputConfig, kw_only=True)
    end_id: int | None = field(default=None, kw_only=True)
    pad_id: int | None = field(default=None, kw_only=True)
    external_draft_tokens_config: ExternalDraftTokensConfig | None = field(
        default=None, kw_only=True
    )


@dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    max_attention_window: list[int] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: float | None = None
    host_cache_size: int | None = None


@dataclass
class OrchestratorConfig:
    is_orchestrator: bool = True
    worker_executable_path: str = ""
    orch_leader_comm: Any = None
    spawn_processes: bool = True


@dataclass
class ParallelConfig:
    communication_type: CommunicationType = CommunicationType.MPI
    communication_mode: CommunicationMode = CommunicationMode.LEADER
    device_ids: list[int] | None = None
    participant_ids: list[int] | None = None
    orchestrator_config: OrchestratorConfig | None = None
    num_nodes: int | None = None


@dataclass
class ExtendedRuntimePerfKnobConfig:
    multi_block_mode: bool = True
    enable_context_fmha_fp32_acc: bool = False
    cuda_graph_mode: bool = field(default=False, init=False)
    cuda_graph_cache_size: int = field(default=0, init=False)


@dataclass
class ExecutorConfig:
    max_beam_width: int = 1
    scheduler_config: Any = None
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)
    enable_chunked_context: bool = False
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    parallel_config: ParallelConfig | None = None
    extended_runtime_perf_knob_config: ExtendedRuntimePerfKnobConfig | None = None
    additional_model_outputs: list[AdditionalModelOutput] | None = None
    gather_generation_logits: bool = False


@dataclass
class Result:
    output_token_ids: list[list[int]]
    is_final: bool = True
    generation_logits: torch.Tensor | None = None
    additional_outputs: list[Any] = field(default_factory=list)


class Response:
    def __init__(self, request_id: int, result: Result | None, error_msg: str = "") -> None:
        self.request_id, self._result, self._error_msg = request_id, result, error_msg

    def has_error(self) -> bool:
        return self._result is None

    @property
    def error_msg(self) -> str:
        assert self._result is None
        return self._error_msg

    @property
    def result(self) -> Result:
        assert self._result is not None
        return self._result


class Model:
    """Stands for an engine. `logits(text)` -> [V] after `text`; `score(text)` -> the judge's score
    of its last token. A subclass may instead define `rows`, which returns both."""

    vocab_size = 64
    padded_vocab_size = 64

    def __init__(
        self,
        logits: Callable[[list[int]], torch.Tensor],
        score: Callable[[list[int]], float] | None = None,
    ) -> None:
        self._logits, self._score = logits, score

    def rows(self, text: list[int], drafted: list[int]) -> tuple[torch.Tensor, list[float]]:
        """-> logits [k + 1, V], scores [k] ([] without a judge)."""
        texts = [text + drafted[:i] for i in range(len(drafted) + 1)]
        scores = [self._score(t) for t in texts[1:]] if self._score else []
        return torch.stack([self._logits(t) for t in texts]), scores


class Executor:
    """Answers at once; tests change that with `hang`, `fail` and `plugin`.

    plugin  threshold, end_ids and max_draft_len of the judge in the engine; None: no judge
    hang    request numbers that are never answered; fail: number -> error message
    """

    models: ClassVar[dict[str, Model]] = {}
    plugin: SimpleNamespace | None = None
    opened: ClassVar[list[Executor]] = []

    def __init__(self, model_path: Path, model_type: ModelType, executor_config: Any) -> None:
        if not isinstance(model_path, Path) or model_path.name not in self.models:
            raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: no engine\nat model.cpp:1")
        assert model_type is ModelType.DECODER_ONLY
        self.config = executor_config
        self.model = self.models[model_path.name]
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.cancelled: list[int] = []
        self.hang: set[int] = set()
        self.fail: dict[int, str] = {}
        self.waiting: dict[int, Response] = {}
        self.closed = False
        Executor.opened.append(self)

    def enqueue_requests(self, requests: list[Request]) -> list[int]:
        assert not self.closed
        numbers = []
        self.batches.append(len(requests))
        for request in requests:
            self.requests.append(request)
            number = len(self.requests)  # numbers start at 1, as the runtime's do
            numbers.append(number)
            if number in self.fail:
                self.waiting[number] = Response(number, None, self.fail[number])
            elif number not in self.hang:
                self.waiting[number] = Response(number, self._answer(request))
        return numbers

    def await_responses(self, id: int, timeout: timedelta | None = None) -> list[Response]:
        assert isinstance(id, int)
        assert timeout is None or isinstance(timeout, timedelta)
        if id in self.waiting:
            return [self.waiting.pop(id)]
        assert id in self.hang, f"request {id} is unknown or was answered already"
        assert timeout is not None, "would wait for ever"
        time.sleep(timeout.total_seconds())
        return []

    def cancel_request(self, id: int) -> None:
        self.cancelled.append(id)

    def can_enqueue_requests(self) -> bool:
        return True

    def shutdown(self) -> None:
        self.closed = True

    def _answer(self, request: Request) -> Result:
        assert request.end_id is None, "with an end id the runtime drops it from its answer"
        assert request.output_config.exclude_input_from_output
        assert self.config.kv_cache_config.enable_block_reuse
        assert all(0 <= t < self.model.vocab_size for t in request.input_token_ids)
        if request.external_draft_tokens_config is None:
            return self._generate(request)
        return self._verify(request, request.external_draft_tokens_config)

    def _generate(self, request: Request) -> Result:
        text, rows = list(request.input_token_ids), []
        generator = _generator(request.sampling_config)
        for _ in range(request.max_tokens):
            logits = self.model.rows(text, [])[0][0]
            rows.append(logits)
            text.append(_draw(_probabilities(logits, request.sampling_config), generator))
        result = Result([text[len(request.input_token_ids) :]])
        if request.output_config.return_generation_logits:
            assert self.config.gather_generation_logits
            padding = self.model.padded_vocab_size - self.model.vocab_size
            padded = torch.nn.functional.pad(torch.stack(rows), (0, padding))
            result.generation_logits = padded.unsqueeze(0)
        return result

    def _verify(self, request: Request, draft: ExternalDraftTokensConfig) -> Result:
        drafted, sampling = list(draft.tokens), request.sampling_config
        assert request.max_tokens == len(drafted) + 1
        # microBatchScheduler.cpp: chunks cut drafts short; without chunks a text must fit in a
        # pass.
        assert not self.config.enable_chunked_context
        assert len(request.input_token_ids) + len(drafted) <= self.config.max_num_tokens
        logits, scores = self.model.rows(list(request.input_token_ids), drafted)
        # 1. The plugin edits one element of every drafted row that the judge accepts.
        edited = [False] * len(drafted)
        if self.plugin is not None:
            logits, edited = self._edit(logits, drafted, scores)
        # 2. The stock decoder: the row's choice equals the draft, or p > u q with draft logits.
        generator, tokens = _generator(sampling), []
        q = None if draft.logits is None else draft.logits.softmax(-1)
        for i, token in enumerate(drafted):
            p = _probabilities(logits[i], sampling)
            if q is None:
                own = _draw(p, generator)
                accepted = own == token
            else:
                uniform = float(torch.rand((), generator=generator))
                accepted = bool(p[token] > uniform * q[i, token])
                own = -1 if accepted else _draw((p - q[i]).clamp_min(0), generator)
            if not accepted:
                tokens.append(own)
                break
            tokens.append(token)
        else:
            tokens.append(_draw(_probabilities(logits[-1], sampling), generator))
        # 3. The additional output, for requests that ask for it.
        result = Result([tokens])
        for output in request.output_config.additional_model_outputs or []:
            assert output in (self.config.additional_model_outputs or [])
            assert self.plugin is not None
            cells = torch.full((1, request.max_tokens, self.plugin.max_draft_len), torch.nan)
            for i, (score, edit) in enumerate(zip(scores, edited, strict=True)):
                cells[0, 0, i] = -score if edit else score
            name = f"generation_{output.name}"
            result.additional_outputs.append(SimpleNamespace(name=name, output=cells))
        return result

    def _edit(
        self, logits: torch.Tensor, drafted: Sequence[int], scores: Sequence[float]
    ) -> tuple[torch.Tensor, list[bool]]:
        assert self.plugin is not None
        logits, edited = logits.clone(), []
        for i, (token, score) in enumerate(zip(drafted, scores, strict=True)):
            own = int(logits[i].argmax())
            protected = own in self.plugin.end_ids or token in self.plugin.end_ids
            edit = score > self.plugin.threshold and token != own and not protected
            edited.append(edit)
            if edit:
                logits[i, token] = max(float(logits[i].max()), 0.0) + 1e4
        return logits, edited


def _generator(sampling: SamplingConfig) -> torch.Generator:
    return torch.Generator().manual_seed(sampling.seed or 0)


def _probabilities(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Without top_k and top_p the runtime is greedy, as with top_k 1."""
    if sampling.top_k == 1 or (not sampling.top_k and not sampling.top_p):
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    assert not sampling.top_k, "the emulation has no top-k filter"
    assert sampling.top_p == 1.0, "the emulation has no top-p filter"
    return (logits / (sampling.temperature or 1.0)).softmax(-1)


def _draw(p: torch.Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(p, 1, generator=generator))
