"""How clients reach a server: tokens, proxies; what they make of one that goes away."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from clients import probe, server
from clients.access import TOKEN, Access
from clients.client import CONTROL_S, REACH_S, JudgeClient, cancel_time
from clients.wire import JudgeClientError, ServerBusy, ServerStopping, refusal
from tests.triton_world import Trap


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize(
    "token", ["abcd-0123", "abcd-0123\n", " abcd-0123 \r\n", "abcd-0123\nnote\n"]
)
def test_a_token_is_the_first_line_as_the_server_reads_it(
    monkeypatch: pytest.MonkeyPatch, token: str, how: str
) -> None:
    """Kubernetes' secrets keep a file's newline, which gRPC refuses to send: every probe failed."""
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    if how == "variable":
        monkeypatch.setenv("JUDGE_TOKEN", token)
    access = Access(None, token if how == "argument" else None)
    assert access.metadata("é") == [(TOKEN, "abcd-0123")]


@pytest.mark.parametrize("token", [None, "", "\n", "  "])
def test_no_token_sends_none(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    assert Access(None, token).metadata("é") == []


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
    """replicas.md: clients try again on UNAVAILABLE. It was an error like any refusal."""
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
    assert cancel_time(Failed("UNAVAILABLE"), started=False) == 0  # nothing came of it
    assert cancel_time(Failed("UNIMPLEMENTED"), started=True) == 0


class Stub:
    """A server's answers to cancellations, one error message ("": none) after the other."""

    def __init__(self, *messages: str) -> None:
        self.messages = list(messages)

    def ModelStreamInfer(self, requests: Any, **_: Any) -> list[Any]:
        return [service_pb2.ModelStreamInferResponse(error_message=self.messages.pop(0))]


BUSY = (
    "in ensemble 'ensemble', server: RESOURCE_EXHAUSTED: 4 requests are waiting already "
    "(server.max_queue); try again in 0.1 s"
)


def test_a_cancellation_that_is_refused_for_now_is_sent_again() -> None:
    """Its answer was not read: whatever the server said, it counted as done."""
    with JudgeClient("127.0.0.1:1") as client:
        client._stub = stub = Stub(BUSY, BUSY, "", "never asked for")
        client.cancel("mine")
        assert stub.messages == ["never asked for"]
        client._stub = Stub("stop: give it the request id of the request to cancel")
        with pytest.raises(JudgeClientError, match=r"^stop: give it the request id"):
            client.cancel("")
        client._stub = stub = Stub(*[BUSY] * 9)
        with pytest.raises(ServerBusy):
            client._cancel("mine", 0.5)
        assert 5 < len(stub.messages) < 9  # every 0.2 s, for half a second


class Metrics(BaseHTTPRequestHandler):
    """A server's endpoint, one request in the loop."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for name, value in ((probe.RUNNING, 1), (probe.ALIVE, time.time())):
            self.wfile.write(f'{name}{{deployment="d"}} {value}\n'.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_metrics_are_read_past_the_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With http_proxy set a busy server was not alive: Kubernetes would have restarted it."""
    trap = Trap()
    for name, value in trap.variables.items():
        monkeypatch.setenv(name, value)
    with HTTPServer(("127.0.0.1", 0), Metrics) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{endpoint.server_port}"
        assert probe.is_busy(address)
        assert server.read_metrics(f"http://{address}/metrics")[probe.RUNNING] == 1
        endpoint.shutdown()
    assert trap.heard == []
