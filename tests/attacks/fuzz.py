"""Sends the grammar's requests: each must end with an answer or an error."""

from __future__ import annotations

import asyncio
import http.client
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from judge_client.connection import CHANNEL
from tests.attacks.grammar import Grammar
from tests.attacks.wire import orders
from tests.triton_world import Serving

AT_ONCE = 24
ANSWER_S = 120.0
LOST = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "nothing"}
"""How no request may end."""
STATUSES = {200, 400, 404, 413, 500, 501, 503}
"""Triton itself says 500 for types other than the model's."""
PATHS = {
    "ensemble/generate": 6,
    "ensemble/generate_stream": 4,
    "ensemble/infer": 1,
    "judge_decoding/generate": 1,
}
Kinds = Counter[tuple[str, str]]
"""(model or path, how it ended) -> number of cases."""


def over_grpc(server: Serving, cases: int, seed: int) -> Kinds:
    """Cases for all models, the internal ones included, AT_ONCE at the same time in one channel."""
    signed = [one for i in range(5) for one in orders(server, f"orders-{i}")]
    grammar, kinds = Grammar(seed, signed), Kinds()

    async def run() -> None:
        async with grpc.aio.insecure_channel(server.url, options=CHANNEL) as channel:
            calls = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            messages = (grammar.request() for _ in range(cases))
            await asyncio.gather(*(_worker(calls, messages, kinds) for _ in range(AT_ONCE)))

    asyncio.run(run())
    assert kinds.total() == cases
    return kinds


async def _worker(calls: Any, messages: Iterator[Any], kinds: Kinds) -> None:
    for message in messages:
        said = "nothing"
        try:
            async for response in calls.ModelStreamInfer(iter([message]), timeout=ANSWER_S):
                said = "error" if response.error_message else "answer"
        except grpc.RpcError as error:
            said = error.code().name
        assert said not in LOST, f"{said}: {str(message)[:2000]}"
        kinds[message.model_name or "no name", said] += 1


def over_http(server: Serving, cases: int, seed: int) -> Kinds:
    """Bodies of `generate` and its relatives, eight at the same time."""
    grammar = Grammar(seed)

    def post(case: tuple[str, bytes]) -> tuple[str, str]:
        path, body = case
        connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=ANSWER_S)
        try:
            connection.request("POST", f"/v2/models/{path}", body)
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        assert answer.status in STATUSES, (answer.status, path, body[:2000])
        return f"HTTP {path}", str(answer.status)

    made = [
        (grammar.chance.choices(list(PATHS), list(PATHS.values()))[0], grammar.body())
        for _ in range(cases)
    ]
    with ThreadPoolExecutor(8) as pool:
        return Kinds(pool.map(post, made))
