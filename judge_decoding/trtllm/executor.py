"""TensorRT-LLM executors: opening one, and running a batch of requests on it. There are two modes:

    orchestrator  this process spawns the ranks of both models (MPI_Comm_spawn, one node)
    leader        mpirun has started every rank of `config.layout`; each opens its group's executor,
                  only the first rank of a group may enqueue, the others follow it

Sources, NVIDIA/TensorRT-LLM as read near v1.2.1: cpp/tensorrt_llm/nanobind/executor/executor.cpp
@1dd50d0 and executorConfig.cpp @008b2b8 (names), tensorrt_llm/runtime/model_runner_cpp.py @0383291
(spawning).
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from judge_decoding.config import Deployment
from judge_decoding.config.layout import Layout, Model
from judge_decoding.errors import UserError
from judge_decoding.trtllm.manifest import engine_folder
from judge_decoding.trtllm.stack import check_tensorrt_llm

CUDA_GRAPHS = 128
"""Graphs of the draft's steps that are kept. Each is for one number of sequences and one length of
cached text, rounded up to 256 tokens. The runtime's default keeps none, so that every step would be
recorded anew (utils/inflightBatchingUtils.cpp `CudaGraphExecutorCache`)."""
SCORES = "judge_scores"
"""The plugin's second output, float32 [B, max_draft_len]: |cell| is the judge's score of a drafted
token, its sign bit is set if the plugin edited that row's logits, and NaN means no draft token."""


class ExecutorError(RuntimeError):
    """An executor failed or did not answer in time. The message names it; the job must end."""


class Executor:
    """An open executor that this process may enqueue on.

    handle     tensorrt_llm.bindings.executor.Executor
    api        the module tensorrt_llm.bindings.executor
    name       the executor's name in errors: "draft executor (GPU 0)"
    timeout_s  limit for one batch of requests
    """

    def __init__(self, handle: Any, api: Any, *, name: str, timeout_s: float) -> None:
        self.api, self.name = api, name
        self.in_flight: set[int] = set()
        self._handle, self._timeout_s = handle, timeout_s

    def run(self, requests: Sequence[Any]) -> list[Any]:
        """Enqueue all requests and await them; returns one Result per request, in order.

        ExecutorError if a request failed, once the others have ended, or after a time-out, once
        what is still in flight has been cancelled.
        """
        if not requests:
            return []
        deadline = time.monotonic() + self._timeout_s
        ids = self._handle.enqueue_requests(list(requests))
        self.in_flight.update(ids)
        results, failures = [], []
        try:
            for number in ids:
                response = self._await(number, deadline)
                self.in_flight.discard(number)
                if response.has_error():
                    failures.append(f"request {number}: {response.error_msg}")
                else:
                    results.append(response.result)
        finally:
            for number in self.in_flight:  # only after a time-out or an interrupt
                self._handle.cancel_request(number)
            self.in_flight.clear()
        if failures:
            raise ExecutorError(f"{self.name}: {failures[0]} ({len(failures)} of {len(ids)})")
        return results

    def _await(self, number: int, deadline: float) -> Any:
        while (left := deadline - time.monotonic()) > 0:
            for response in self._handle.await_responses(number, timedelta(seconds=left)):
                if response.has_error() or response.result.is_final:
                    return response
        raise ExecutorError(
            f"{self.name}: {len(self.in_flight)} requests without an answer after "
            f"{self._timeout_s:g} s (ranks.timeout_s); one of its ranks is dead or stuck"
        )

    def close(self) -> None:
        self._handle.shutdown()


def open_executor(deployment: Deployment, model: Model, *, rank: int = 0) -> Executor:
    """The executor of one model, opened by MPI rank `rank` (0: the process that drives both).

    UserError if the library or the plugin does not load, or the engine in mode `leader`. In mode
    `orchestrator` an engine that does not load ends its spawned rank, MPI ends the job, and only
    the log says why: no exception comes back to this process. A spawned rank does not inherit what
    is loaded here: the plugin must also be in its environment (LD_PRELOAD) or image.
    """
    assert deployment.trtllm is not None and deployment.ranks is not None
    check_tensorrt_llm()
    _check_threads()
    api = importlib.import_module("tensorrt_llm.bindings.executor")
    folder, plugin = engine_folder(deployment, model), deployment.trtllm.plugin
    if model == "target" and deployment.acceptance.rule == "judge":
        try:
            ctypes.CDLL(str(plugin), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise UserError(f"trtllm.plugin: {plugin} does not load ({error})") from None
    config = executor_config(api, deployment, model)
    try:
        handle = api.Executor(folder, api.ModelType.DECODER_ONLY, config)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"engine: {folder} does not load ({reason})") from None
    gpus = ", ".join(map(str, getattr(deployment.ranks, model).devices))
    # A rank must report which executor is silent before rank 0 times out.
    timeout_s = deployment.ranks.timeout_s * (0.8 if rank else 1.0)
    return Executor(handle, api, name=f"{model} executor (GPU {gpus})", timeout_s=timeout_s)


def _check_threads() -> None:
    """UserError if MPI runs already without MPI_THREAD_MULTIPLE: the runtime would then use it as
    it is (mpiUtils.cpp `initialize`)."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        raise UserError(
            "engine trtllm: this MPI library serves one thread at a time, and the runtime's use it "
            "beside ours; take one with MPI_THREAD_MULTIPLE (the container's has it)"
        )


def executor_config(api: Any, deployment: Deployment, model: Model) -> Any:
    """A model's ExecutorConfig. Block reuse is on: external drafts and `keep` need it.

    Chunked context is off. A round's request is a context request with its whole prefix, and the
    scheduler counts all its tokens, cached or not. If a pass exceeded max_num_tokens, the scheduler
    would chunk its requests and cut their draft tokens to the end of the last chunk
    (microBatchScheduler.cpp `fitDraftTokens`). Without chunks, requests that do not fit wait for
    the next pass.

    The draft's steps are recorded as CUDA graphs: they are of one row per sequence, and starting
    their kernels takes longer than a small draft's kernels run. The target's passes have drafts,
    which makes them context requests, and the runtime records only passes without any.
    """
    assert deployment.trtllm is not None
    build, drafts = deployment.trtllm, model == "draft"
    fraction = getattr(build, model).kv_cache_free_gpu_memory_fraction
    scores = None
    if not drafts and deployment.acceptance.rule == "judge":
        scores = [api.AdditionalModelOutput(SCORES, False)]
    knobs = api.ExtendedRuntimePerfKnobConfig()
    knobs.cuda_graph_mode = drafts
    knobs.cuda_graph_cache_size = CUDA_GRAPHS if drafts else 0
    return api.ExecutorConfig(
        max_beam_width=1,
        max_batch_size=deployment.limits.max_sequences,
        max_num_tokens=build.max_num_tokens,
        enable_chunked_context=False,
        kv_cache_config=api.KvCacheConfig(
            enable_block_reuse=True, free_gpu_memory_fraction=fraction
        ),
        parallel_config=_parallel_config(api, deployment, model),
        extended_runtime_perf_knob_config=knobs,
        gather_generation_logits=drafts,
        additional_model_outputs=scores,
    )


def _parallel_config(api: Any, deployment: Deployment, model: Model) -> Any:
    assert deployment.trtllm is not None and deployment.ranks is not None
    build = deployment.trtllm
    devices = [gpu for gpu in getattr(deployment.ranks, model).devices if gpu != "cpu"]
    nodes = len({gpu // build.gpus_per_node for gpu in devices})
    local = [gpu % build.gpus_per_node for gpu in devices]
    if nodes > 1:  # the runtime wants those of one node and takes rank % gpus_per_node
        local = sorted(set(local))
    mpi, modes = api.CommunicationType.MPI, api.CommunicationMode
    if build.mode == "leader":
        participants = list(getattr(Layout.of(deployment), model))
        return api.ParallelConfig(
            mpi, modes.LEADER, device_ids=local, participant_ids=participants, num_nodes=nodes
        )
    package = Path(str(importlib.import_module("tensorrt_llm").__file__)).parent
    worker = package / "bin" / "executorWorker"
    orchestrator = api.OrchestratorConfig(True, str(worker))
    return api.ParallelConfig(
        mpi, modes.ORCHESTRATOR, device_ids=local, orchestrator_config=orchestrator
    )
