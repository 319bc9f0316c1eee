"""Requests made to stop the server, beside a stream that must go on: issue 16.

The stream runs in a process of its own, so that making the requests does not delay it.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from judge_client.client import JudgeClient
from judge_client.connection import CHANNEL
from judge_client.errors import ServerBusy
from judge_client.wire import GenerateRequest
from tests.conftest import write_deployment
from tests.triton_world import Serving, Stream, ask, text, wait_for

pytestmark = pytest.mark.servers

STALL_S = 5.0
"""Far more than a busy machine needs. Each attack once stopped the streams for longer, at 13 s."""
LONG = GenerateRequest("Canary", max_tokens=600, ignore_eos=True, rule="none")


def canary(url: str, ready: Event, stop: Event, worst: Any, texts: Any) -> None:
    """Stream the same answer again and again; keep the longest gap and the different texts."""
    with JudgeClient(url) as client:
        while not stop.is_set():
            pieces, last = [], time.monotonic()
            for chunk in client.stream(LONG):
                now = time.monotonic()
                worst.value, last = max(worst.value, now - last), now
                pieces.append(chunk.text)
                ready.set()
            texts.append("".join(pieces))


@pytest.fixture(scope="module")
def server(
    tiny_target: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("hard")
    limits = {"max_sequences": 2, "max_context": 700, "max_tokens": 650}
    path = write_deployment(
        folder, tiny_target, tiny_draft, limits=limits, server={"max_queue": 6, "drain_s": 5}
    )
    with Serving(path, folder) as running:
        yield running
        assert running.stop() == 0, running.output


def send(server: Serving, model: str, request_id: str, **tensors: tuple[str, int, bytes]) -> str:
    """The error of a request, or "". tensors: name -> (type, number of values, raw contents)."""
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, (kind, count, raw) in tensors.items():
        message.inputs.add(name=name, datatype=kind, shape=[1, count])
        message.raw_input_contents.append(raw)
    with grpc.insecure_channel(server.url, options=CHANNEL) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter([message]), timeout=60))
    return answers[-1].error_message.removeprefix("in ensemble 'ensemble', ")


def string(value: bytes) -> tuple[str, int, bytes]:
    return "BYTES", 1, len(value).to_bytes(4, "little") + value


def ids(count: int) -> tuple[str, int, bytes]:
    return "INT32", count, np.full(count, 65, np.int32).tobytes()


SIZE = 4_000_000
"""Bytes: more than any limit, and less than what Triton's shared memory is bounded to."""


def attacks() -> Iterator[tuple[str, str, str, dict[str, tuple[str, int, bytes]]]]:
    """(error, model, request id, tensors)"""
    hi, order = string(b"Hi"), "it is not signed by this server; call the model `ensemble`"
    core = "judge_decoding"
    yield (
        "input_text: 4000000 bytes; give at most 1065536",
        core,
        "",
        {"input_ids": ids(5), "input_text": string(b"\1" * SIZE)},
    )
    yield (
        "prompt: 1000000 tokens do not fit the context of 700 with an answer; "
        "shorten it or raise limits.max_context",
        core,
        "",
        {"input_ids": ids(SIZE // 4)},
    )
    yield f"detokenize: {order}", "postprocessing", "", {"detokenize": string(b"x" * SIZE)}
    yield (
        "stop_words: 1000000 strings; give at most 32",
        "ensemble",
        "",
        {"text_input": hi, "stop_words": ("BYTES", SIZE // 4, bytes(SIZE))},
    )
    yield (
        "acceptance_rule: 6000000 bytes; give at most 64",
        "ensemble",
        "",
        {"text_input": hi, "acceptance_rule": string(b"x" * 6_000_000)},
    )
    yield (
        "request id: 3000000 bytes; give at most 256",
        "ensemble",
        "x" * 3_000_000,
        {"text_input": hi},
    )
    for tensors in ({"input_ids": ids(25_000_000)}, {"input_text": string(b"\1" * 100_000_000)}):
        yield "Failed to increase the shared memory pool size", core, "", tensors
    for messages, error in (
        (b"[" + b"1," * 400_000 + b"1]", "Expected `object`, got `int` - at `$[0]`"),
        (b"[" * 110_000, "Expected `object`, got `array` - at `$[0]`"),
        (b'"' + b"x" * 900_000 + b'"', "Expected `array`, got `str`"),
        (
            json.dumps([{"role": "user", "content": ""}] * 27_000).encode(),
            "27000 turns; give at most 2000",
        ),
    ):
        tensors = {"text_input": string(b""), "messages": string(messages)}
        yield f"messages: {error}", "ensemble", "", tensors


def test_no_request_stops_the_others(server: Serving) -> None:
    """Regression: 100 MB of `input_text` froze every stream for seconds, and 0.8 MB of `messages`
    everybody's admission (issue 16, items 3 and 4)."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        worst, texts = manager.Value("d", 0.0), manager.list()
        ready, stop = context.Event(), context.Event()
        process = context.Process(target=canary, args=(server.url, ready, stop, worst, texts))
        process.start()
        assert ready.wait(120)
        for error, model, request_id, tensors in attacks():
            assert send(server, model, request_id, **tensors).startswith(error)
            assert text(ask(server, text_input="Hi", max_tokens=2))
        stop.set()
        process.join(120)
        assert process.exitcode == 0
        assert len(set(texts)) == 1
        assert worst.value < STALL_S
    assert server.metric("num_requests_running") == server.metric("kv_slots_used") == 0


@pytest.mark.parametrize("given", [{}, {"max_tokens": ("INT32", 1, b"\4\0\0\0")}], ids=list)
def test_a_request_without_a_prompt_is_told(
    server: Serving, given: dict[str, tuple[str, int, bytes]]
) -> None:
    """Regression: Triton ended the stream with neither an answer nor an error, since no step of the
    ensemble ran without its required `text_input`."""
    said = "prompt: text_input is missing; give a text or messages"
    assert send(server, "ensemble", "", **given) == said


def test_messages_need_no_text(server: Serving) -> None:
    turn = {"role": "user", "content": "Hi"}
    with_text = ask(server, text_input="", messages=json.dumps([turn]), max_tokens=9)
    assert text(ask(server, messages=json.dumps([turn]), max_tokens=9)) == text(with_text)


def test_the_preprocessing_refuses_for_the_loop_and_each_refusal_counts(server: Serving) -> None:
    """Then the loop's process has no work with it. The door opens again as the queue shrinks."""
    before = server.metric("request_failure_total", reason="queue_full")
    many = {"max_tokens": 650, "stream": True, "ignore_eos": True, "acceptance_rule": "none"}
    with Stream(server) as stream, JudgeClient(server.url) as client:
        for _ in range(2 + 6):
            stream.send(model="judge_decoding", input_ids=[65], request_id="many", **many)
        wait_for(lambda: server.metric("num_requests_waiting") == 6, "a full queue")
        for _ in range(3):
            with pytest.raises(ServerBusy, match=r"6 requests are waiting already \(server\.max_q"):
                client.generate(GenerateRequest("Hi", max_tokens=2))
        client.cancel("many")  # which the door lets in
        wait_for(lambda: server.metric("num_requests_running") == 0, "the loop to empty")
        assert client.generate(GenerateRequest("Hi", max_tokens=2)).num_output_tokens == 2
    assert server.metric("request_failure_total", reason="queue_full") == before + 3
