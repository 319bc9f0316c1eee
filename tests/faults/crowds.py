"""Many requests at once, requests with somebody else's id, and what gRPC itself allows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from judge_client.client import JudgeClient
from judge_client.connection import CHANNEL
from judge_client.wire import GenerateRequest
from tests.attacks.wire import (
    ANSWER_S,
    HI,
    channel,
    good,
    message,
    numbers,
    orders,
    send,
    status,
    string,
    stub,
)
from tests.faults.attack import attack
from tests.faults.bench import PATIENCE_S, slots
from tests.triton_world import Serving, wait_for

GROUP = "crowds"
BUSY = "RESOURCE_EXHAUSTED"


def crowd(server: Serving, count: int, one: Any) -> list[str]:
    """`count` calls of the coroutine `one(stub, number)` at once, in one channel."""

    async def run() -> list[str]:
        async with grpc.aio.insecure_channel(server.url, options=CHANNEL) as made:
            calls = service_pb2_grpc.GRPCInferenceServiceStub(made)
            return list(await asyncio.gather(*(one(calls, i) for i in range(count))))

    return asyncio.run(run())


async def read(responses: Any) -> str:
    """`an answer`, RESOURCE_EXHAUSTED, another error, or a status."""
    said = "nothing"
    try:
        async for response in responses:
            error = response.error_message
            said = (BUSY if BUSY in error else error) or "an answer"
    except grpc.RpcError as error:
        said = error.code().name
    return said


def thousand_streams(server: Serving) -> str:
    """More than may wait: the others are refused at once."""

    async def one(calls: Any, _: int) -> str:
        return await read(calls.ModelStreamInfer(iter([good()]), timeout=ANSWER_S))

    found = Counter(crowd(server, 1000, one))
    assert found["an answer"] > 30 and found.total() == 1000, found
    return f"each {' or '.join(sorted(found))}"


def thousand_requests_in_a_stream(server: Serving) -> str:
    """In one stream, whose responses come in any order."""
    with channel(server) as made:
        messages = [
            message(request_id=f"{i}", text_input=HI, max_tokens=numbers("INT32", 1))
            for i in range(1000)
        ]
        found = Counter[str]()
        for response in stub(made).ModelStreamInfer(iter(messages), timeout=ANSWER_S):
            if response.error_message:
                found[BUSY if BUSY in response.error_message else response.error_message] += 1
            elif response.infer_response.outputs:
                found["an answer"] += 1
    assert found["an answer"] > 30 and found.total() == 1000, found
    return f"each {' or '.join(sorted(found))}"


def short_deadlines(server: Serving) -> str:
    """500 calls whose client waits for 1 ms."""

    async def one(calls: Any, _: int) -> str:
        return await read(calls.ModelStreamInfer(iter([good()]), timeout=0.001))

    found = Counter(crowd(server, 500, one))
    assert found["DEADLINE_EXCEEDED"] > 400, found
    wait_for(lambda: slots(server) <= 1, "the slots")
    return "DEADLINE_EXCEEDED"


def random_cancels(server: Serving) -> str:
    """200 streams, each cut at a random moment."""
    chance = random.Random(5)
    moments = [chance.uniform(0, 0.5) for _ in range(200)]
    long = good(max_tokens=numbers("INT32", 12), stream=numbers("BOOL", True))

    async def one(calls: Any, i: int) -> str:
        responses = calls.ModelStreamInfer(iter([long]), timeout=ANSWER_S)
        asyncio.get_running_loop().call_later(moments[i], responses.cancel)
        try:
            return await read(responses)
        except asyncio.CancelledError:
            return "CANCELLED"

    found = Counter(crowd(server, 200, one))
    assert found["CANCELLED"] > 30, found
    wait_for(lambda: slots(server) <= 1, "the slots")
    return "it has gone"


def same_id(server: Serving) -> str:
    """Two requests with one id at the same time: each gets its own answer."""
    with JudgeClient(server.url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(2) as pool:
        wanted = [GenerateRequest(text, max_tokens=40, ignore_eos=True) for text in ("One", "Two")]
        alone = [client.generate(one).text for one in wanted]
        both = list(pool.map(lambda one: client.generate(one, request_id="same").text, wanted))
    assert both == alone and both[0] != both[1]
    return "both answers"


def foreign_cancel(server: Serving) -> str:
    """Who knows an id may cancel it (security.md); the stream's owner is told so."""
    with JudgeClient(server.url, timeout=PATIENCE_S) as client:
        stream = client.stream(
            GenerateRequest("Mine", max_tokens=900, ignore_eos=True), request_id="known"
        )
        next(stream)
        with JudgeClient(server.url, timeout=PATIENCE_S) as other:
            other.cancel("known")
        *_, last = stream
    return f"the owner: {last.finish_reason}"


def large_metadata(server: Serving) -> str:
    """gRPC refuses the call, and on some machines closes the connection first."""
    said = send(server, good(), metadata=[(f"m{i}", "x" * 8000) for i in range(128)])
    refused = said.partition(":")[0] in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    return "refused" if refused else said


def bomb(server: Serving) -> str:
    """A gzip message of 100 KB that is 100 MB large."""
    with channel(server) as made:
        large = good(text_input=string(b"a" * 100_000_000))
        try:
            answers = list(
                stub(made).ModelStreamInfer(
                    iter([large]), timeout=ANSWER_S, compression=grpc.Compression.Gzip
                )
            )
        except grpc.RpcError as error:
            return status(error)
    error = answers[0].error_message.removeprefix("in ensemble 'ensemble', ")
    too_long = "prompt: 100000000 bytes are more than server.max_prompt_bytes 1000000"
    # Where the models' shared memory is bounded, it has no room for as much.
    assert error == too_long or "shared memory" in error or "no room" in error, error
    return "an error"


def unary(server: Serving) -> str:
    with channel(server) as made:
        try:
            stub(made).ModelInfer(good(), timeout=ANSWER_S)
        except grpc.RpcError as error:
            return status(error)
    return "an answer"


def administration(call: str, request: Any, server: Serving) -> str:
    with channel(server) as made:
        try:
            getattr(stub(made), call)(request, timeout=ANSWER_S)
        except grpc.RpcError as error:
            return status(error).partition(",")[0]
    return "an answer"


def replay(server: Serving) -> str:
    """A signed order is good for once."""
    (first, *_) = orders(server, "replayed")
    once = send(server, message("postprocessing", detokenize=string(first)))
    assert once == "an answer"
    return send(server, message("postprocessing", detokenize=string(first)))


def backwards(server: Serving) -> str:
    """The orders of a stream, the last one first."""
    return send(server, message("postprocessing", detokenize=string(orders(server)[-1])))


def flipped(server: Serving) -> str:
    """Each byte of a signed order is changed in turn."""
    (first, *_) = orders(server)
    found = set()
    for at in range(len(first)):
        bad = first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :]
        found.add(send(server, message("postprocessing", detokenize=string(bad))))
    (only,) = found
    return only


def watched_by_others(server: Serving) -> str:
    """Fifty readers of the metrics and statistics at once."""
    with ThreadPoolExecutor(50) as pool:
        paths = [("/metrics", 2), ("/v2/models/stats", 0)] * 75
        sizes = list(pool.map(lambda p: len(server.http(p[0], port=p[1])), paths))
    assert min(sizes) > 100
    return "all pages"


SHUT = "UNAVAILABLE: This protocol is restricted"
CONTROL = {
    "a model loaded with a configuration of its own": (
        "RepositoryModelLoad",
        service_pb2.RepositoryModelLoadRequest(
            model_name="mine",
            parameters={"config": service_pb2.ModelRepositoryParameter(string_param="{}")},
        ),
    ),
    "CUDA memory registered": (
        "CudaSharedMemoryRegister",
        service_pb2.CudaSharedMemoryRegisterRequest(name="a", raw_handle=bytes(64), byte_size=8),
    ),
    "a trace to a file of the client's choice": (
        "TraceSetting",
        service_pb2.TraceSettingRequest(
            settings={"trace_file": service_pb2.TraceSettingRequest.SettingValue(value=["/tmp/x"])}
        ),
    ),
}

FAULTS = [
    attack(
        GROUP,
        "1,000 streams in one channel",
        "each RESOURCE_EXHAUSTED or an answer",
        thousand_streams,
    ),
    attack(
        GROUP,
        "1,000 requests in one stream",
        "each RESOURCE_EXHAUSTED or an answer",
        thousand_requests_in_a_stream,
    ),
    attack(GROUP, "500 clients that wait for 1 ms", "DEADLINE_EXCEEDED", short_deadlines),
    attack(GROUP, "200 streams cut at random", "it has gone", random_cancels),
    attack(GROUP, "one id twice at once", "both answers", same_id),
    attack(GROUP, "a cancel of another client's id", "the owner: cancelled", foreign_cancel),
    attack(GROUP, "metadata of 1 MB", "refused", large_metadata),
    attack(GROUP, "a gzip message of 100 MB", "an error", bomb),
    attack(
        GROUP,
        "a call without a stream",
        "UNIMPLEMENTED: ModelInfer RPC doesn't support models with decoupled transact...",
        unary,
    ),
    *(attack(GROUP, n, SHUT, partial(administration, call, m)) for n, (call, m) in CONTROL.items()),
    attack(
        GROUP,
        "a signed order again",
        "detokenize: tokens from 0 on of a sequence that was read up to 1; it came tw...",
        replay,
        quick=True,
    ),
    attack(
        GROUP,
        "a stream's last signed order alone",
        "detokenize: tokens from 5 on of a sequence that was read up to 0; it came tw...",
        backwards,
    ),
    attack(
        GROUP,
        "a signed order with each byte changed",
        "detokenize: it is not signed by this server; call the model `ensemble`",
        flipped,
    ),
    attack(GROUP, "150 readings of metrics and statistics", "all pages", watched_by_others),
]
