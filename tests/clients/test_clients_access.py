"""How clients reach a server (tokens, proxies), and what they report when it goes away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from judge_client.aio import AsyncJudgeClient
from judge_client.client import JudgeClient
from judge_client.commands import probe
from judge_client.connection import TOKEN, Access
from judge_client.errors import JudgeClientError, ServerBusy, ServerStopping, refusal
from judge_client.exchange import CONTROL_S, REACH_S, cancel_time
from judge_client.metrics import ALIVE, RUNNING, read_metrics
from tests.triton_world import Trap


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize(
    "token", ["abcd-0123", "abcd-0123\n", " abcd-0123 \r\n", "abcd-0123\nnote\n"]
)
def test_a_token_is_the_first_line_as_the_server_reads_it(
    monkeypatch: pytest.MonkeyPatch, token: str, how: str
) -> None:
    """Regression: Kubernetes' secrets keep a file's newline, so all probes failed."""
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    if how == "variable":
        monkeypatch.setenv("JUDGE_TOKEN", token)
    access = Access(None, token) if how == "argument" else Access.from_environment()
    assert access.metadata("é") == [(TOKEN, "abcd-0123")]


@pytest.mark.parametrize("token", [None, "", "\n", "  "])
def test_no_token_sends_none(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "of-the-environment")
    assert Access(None, token).metadata("é") == []  # the argument wins over the environment
    monkeypatch.setenv("JUDGE_TOKEN", token or "")
    assert Access.from_environment().metadata("é") == []


@pytest.mark.parametrize(("token", "place", "shown"), [("ab\tcd", 3, r"'\t'"), ("ü", 1, r"'\xfc'")])
def test_a_token_that_no_header_holds_is_one_line_without_it(
    token: str, place: int, shown: str
) -> None:
    with pytest.raises(JudgeClientError) as refused:
        Access(None, token)
    assert str(refused.value) == (
        f"token: character {place} of it ({shown}) cannot be sent; give JUDGE_TOKEN the first "
        "line of the server's token_file"
    )


@pytest.mark.parametrize(
    "message",
    [
        "server: it is shutting down",
        "[request id: x] Server is stopping, scheduler for model has stopped accepting new "
        "inference requests",
    ],
)
def test_a_server_that_shuts_down_is_like_one_that_has_gone(message: str) -> None:
    """replicas.md: clients try again on UNAVAILABLE. Regression: it was reported as a refusal."""
    stopping = refusal(message)
    assert isinstance(stopping, ServerStopping)
    assert (stopping.status, str(stopping)) == ("UNAVAILABLE", message)


class Failed:
    """A call's error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def code(self) -> Failed:
        return self


def test_what_may_run_still_is_cancelled_after_a_call_failed() -> None:
    for name in ("DEADLINE_EXCEEDED", "CANCELLED"):
        for started in (True, False):
            assert cancel_time(Failed(name), started=started) == CONTROL_S
    assert cancel_time(Failed("UNAVAILABLE"), started=True) == REACH_S
    assert cancel_time(Failed("UNAVAILABLE"), started=False) == 0  # nothing has come of it yet
    assert cancel_time(Failed("UNIMPLEMENTED"), started=True) == 0


class Inference(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each call with the next of `messages`, as an error; "" means no error."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def ModelStreamInfer(self, requests: Any, _: Any) -> Iterator[Any]:
        for _request in requests:
            message = self.messages.pop(0)
            yield service_pb2.ModelStreamInferResponse(error_message=message)


@pytest.fixture
def inference() -> Iterator[tuple[Inference, str]]:
    """A gRPC server in this process, and its HOST:PORT."""
    servicer, server = Inference(), grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


BUSY = (
    "in ensemble 'ensemble', server: RESOURCE_EXHAUSTED: 4 requests are waiting already "
    "(server.max_queue); try again in 0.1 s"
)


def test_a_cancellation_that_is_refused_for_now_is_sent_again(
    inference: tuple[Inference, str],
) -> None:
    """Regression: its answer was not read, so it counted as done whatever the server said."""
    server, url = inference
    with JudgeClient(url) as client:
        server.messages = [BUSY, BUSY, "", "never asked for"]
        client.cancel("mine")
        assert server.messages == ["never asked for"]
        server.messages = ["stop: give it the request id of the request to cancel"]
        with pytest.raises(JudgeClientError, match=r"^stop: give it the request id"):
            client.cancel("")
    with JudgeClient(url, control_s=0.5) as hasty:
        server.messages = [BUSY] * 9
        with pytest.raises(ServerBusy):
            hasty.cancel("mine")
        assert 5 < len(server.messages) < 9  # every 0.2 s, for half a second


def test_both_clients_cancel_alike(inference: tuple[Inference, str]) -> None:
    server, url = inference

    async def cancel() -> None:
        async with AsyncJudgeClient(url, control_s=0.5) as client:
            server.messages = [BUSY, "", "never asked for"]
            await client.cancel("mine")
            assert server.messages == ["never asked for"]
            server.messages = [BUSY] * 9
            with pytest.raises(ServerBusy):
                await client.cancel("mine")
            assert 5 < len(server.messages) < 9

    asyncio.run(cancel())


class Metrics(BaseHTTPRequestHandler):
    """A server's endpoint, one request in the loop."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for name, value in ((RUNNING, 1), (ALIVE, time.time())):
            self.wfile.write(f'{name}{{deployment="d"}} {value}\n'.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_metrics_are_read_past_the_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: with http_proxy a busy server seemed dead, and Kubernetes would restart it."""
    trap = Trap()
    for name, value in trap.variables.items():
        monkeypatch.setenv(name, value)
    with HTTPServer(("127.0.0.1", 0), Metrics) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{endpoint.server_port}"
        assert probe.is_busy(address)
        assert read_metrics(f"http://{address}/metrics")[RUNNING] == 1
        endpoint.shutdown()
    assert trap.heard == []
