"""A request as messages to `ensemble`, and its responses as they come."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from judge_client.aio import AsyncJudgeClient
from judge_client.wire import Chunk, infer_message, read_chunk
from judge_decoding.serving.openai.errors import ApiError
from judge_decoding.serving.openai.schema import ChatRequest, Common, CompletionRequest

OUTPUTS = ["text_output", "finish_reason", "num_input_tokens", "num_output_tokens"]
RECORD = ["speculative_decoding"]
TOKENS = ["provenance", "output_ids", "token_texts", "judge_scores"]
LOGPROBS = ["token_logprobs", "top_logprobs"]
_HELD = 16
"""Responses of the several answers to one request that wait for a slow reader."""

Tensors = dict[str, tuple[str, Sequence[Any]]]

_PLAIN = {
    "min_tokens": ("min_tokens", "INT32"),
    "temperature": ("temperature", "FP32"),
    "top_p": ("top_p", "FP32"),
    "min_p": ("min_p", "FP32"),
    "end_id": ("end_id", "INT32"),
    "deadline_ms": ("deadline_ms", "INT32"),
    "acceptance_rule": ("acceptance_rule", "BYTES"),
    "judge_threshold": ("judge_threshold", "FP32"),
    "max_draft_len": ("max_draft_len", "INT32"),
    "repetition_penalty": ("repetition_penalty", "FP32"),
    "presence_penalty": ("presence_penalty", "FP32"),
    "frequency_penalty": ("frequency_penalty", "FP32"),
}
"""Field -> (input, Triton's type)."""
_NEUTRAL = {
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""Not sent, so that a server without these inputs accepts what changes nothing."""


class Piece(NamedTuple):
    """One response to one of a request's answers.

    choice  the answer's index
    """

    choice: int
    chunk: Chunk


def inputs(request: Common, known: frozenset[str]) -> Tensors:
    """The inputs that all of a request's answers share; ApiError for one that is not declared."""
    found: Tensors = {"stream": ("BOOL", [request.stream])}
    for field, (name, kind) in _PLAIN.items():
        value = getattr(request, field)
        if value is not None and value != _NEUTRAL.get(field):
            found[name] = (kind, [value])
    if request.top_k is not None:
        found["top_k"] = ("INT32", [max(request.top_k, 0)])  # -1 is vLLM's word for `off`
    if request.stop:
        stops = [request.stop] if isinstance(request.stop, str) else request.stop
        found["stop_words"] = ("BYTES", stops)
    for field, kind in (("stop_token_ids", "INT32"), ("bad_words", "BYTES")):
        if values := getattr(request, field):
            found[field] = (kind, values)
    if request.logit_bias:
        found["logit_bias"] = ("BYTES", [json.dumps(request.logit_bias)])
    for field in ("ignore_eos", "return_provenance"):
        if getattr(request, field):
            found[field] = ("BOOL", [True])
    if request.return_provenance:
        found["return_judge_scores"] = ("BOOL", [True])
    if isinstance(request, (ChatRequest, CompletionRequest)):
        if request.limit is not None:
            found["max_tokens"] = ("INT32", [request.limit])
        if request.alternatives is not None:
            found["logprobs"] = ("INT32", [request.alternatives])
            found["return_provenance"] = ("BOOL", [True])  # the tokens' texts come with it
    if isinstance(request, ChatRequest) and request.continue_final_message:
        found["continue_final_message"] = ("BOOL", [True])
    for name in found:
        if name not in known:
            message = f"{name}: this deployment's server does not offer it; leave it out"
            raise ApiError(400, message, param=name, code="unsupported_parameter")
    return found


def messages(
    request: ChatRequest | CompletionRequest, known: frozenset[str], name: str
) -> list[Any]:
    """One ModelInferRequest per answer, with the ids NAME-0, NAME-1, ...

    Further answers to a prompt get the seeds after the first one's. Sampling without a seed draws
    one, since the server's default is always the same.
    """
    shared = inputs(request, known)
    seed = request.seed
    if seed is None and request.temperature:
        seed = secrets.randbits(48)
    # The answer's tokens are asked for only where something is made of them: each costs time.
    wanted = OUTPUTS + RECORD
    shared["return_acceptance_record"] = ("BOOL", [True])
    if "return_provenance" in shared:
        wanted = wanted + TOKENS
    if "logprobs" in shared:
        wanted = wanted + LOGPROBS
    prompts: list[Tensors]
    if isinstance(request, ChatRequest):
        turns = json.dumps([message.turn() for message in request.messages])
        prompts = [{"text_input": ("BYTES", [""]), "messages": ("BYTES", [turns])}]
    else:
        prompts = [{"text_input": ("BYTES", [prompt])} for prompt in request.prompts]
        if request.echo:
            shared["exclude_input_in_output"] = ("BOOL", [False])
    made = list[Any]()
    for prompt in prompts:
        for i in range(request.n):
            tensors = shared | prompt
            if seed is not None:
                tensors["seed"] = ("UINT64", [(seed + i) % 2**63])
            made.append(infer_message("ensemble", f"{name}-{len(made)}", tensors, wanted))
    return made


async def answers(
    client: AsyncJudgeClient, requests: Sequence[Any], *, streamed: bool
) -> AsyncGenerator[Piece, None]:
    """All answers' responses as they come. Closing the iterator cancels every answer that still
    runs, in the server too. JudgeClientError where one fails."""
    if len(requests) == 1:
        async with aclosing(client.infer(requests[0], read_chunk, streamed=streamed)) as one:
            async for chunk in one:
                yield Piece(0, chunk)
        return
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(_HELD)

    async def pump(choice: int, message: Any) -> None:
        try:
            async with aclosing(client.infer(message, read_chunk, streamed=streamed)) as one:
                async for chunk in one:
                    await queue.put(Piece(choice, chunk))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(i, message)) for i, message in enumerate(requests)]
    try:
        async for piece in _drained(queue, len(tasks)):
            yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drained(
    queue: asyncio.Queue[Piece | Exception | None], running: int
) -> AsyncIterator[Piece]:
    while running:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            running -= 1
        else:
            yield item
