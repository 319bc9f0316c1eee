"""The HTTP front alone, as a process, with a recording server at its Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import pytest
from aiohttp import web

from judge_decoding.config import Deployment, ServerConfig
from judge_decoding.errors import UserError
from judge_decoding.serving.front import Front, body_limit
from judge_decoding.serving.kept_process import STARTS
from judge_decoding.serving.ports import bind
from tests.triton_world import free_ports, wait_for

MAX_BODY = 10_000
MAX_CONNECTIONS = 20
GENERATE = "/v2/models/ensemble/generate"


@dataclass
class Upstream:
    """Answers every request with what it was, and remembers it."""

    path: Path
    heard: list[tuple[str, str, bytes]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.heard.append((request.method, request.path_qs, body))
        if request.path.endswith("generate_stream"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            try:
                for i in range(1000):
                    await response.write(f"data: {i}\n\n".encode())
                    await asyncio.sleep(0.02)
            except (ConnectionError, asyncio.CancelledError):
                self.left.set()
                raise
            return response
        headers = {"judge-seen": request.headers.get("judge-token", "")}
        return web.Response(status=418, body=body[::-1], headers=headers)

    def run(self, ready: threading.Event) -> None:
        async def forever() -> None:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self.answer)
            runner = web.AppRunner(app, handler_cancellation=True)
            await runner.setup()
            await web.UnixSite(runner, str(self.path)).start()
            ready.set()
            await asyncio.Event().wait()

        asyncio.run(forever())


@dataclass
class Served:
    upstream: Upstream
    port: int
    process: subprocess.Popen[bytes]

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """All that comes back until the front closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as client:
            client.sendall(data)
            return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("front")
    upstream, ready = Upstream(folder / "x-http.sock"), threading.Event()
    threading.Thread(target=upstream.run, args=(ready,), daemon=True).start()
    assert ready.wait(30)
    bound = bind("127.0.0.1", free_ports(1)[0], "http")
    line = [sys.executable, "-m", "judge_decoding.serving.http_front", "--sockets", f"{folder}/x-"]
    line += ["--http-fd", str(bound.fileno()), "--max-body", str(MAX_BODY)]
    line += ["--inputs", "text_input,temperature,a"]
    line += ["--max-connections", str(MAX_CONNECTIONS), "--launcher", str(os.getpid())]
    process = subprocess.Popen(line, pass_fds=[bound.fileno()], stderr=subprocess.PIPE)
    yield Served(upstream, bound.getsockname()[1], process)
    process.kill()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    bound.close()


def test_a_request_goes_through_as_it_came(front: Served) -> None:
    body = json.dumps({"text_input": "é" * 100}).encode()
    assert front.ask("POST", GENERATE, body, judge_token="secret") == (418, body[::-1])
    assert front.upstream.heard[-1] == ("POST", GENERATE, body)
    for path in ("/v2", "/v2/health/live", "/v2/models/ensemble/versions/1/ready"):
        assert front.ask("GET", path)[0] == 418
        assert front.upstream.heard[-1] == ("GET", path, b"")
    # A chunked body arrives as one with a length.
    connection = HTTPConnection("127.0.0.1", front.port, timeout=30)
    connection.request("POST", GENERATE, iter([b'{"a"', b": 1}"]), encode_chunked=True)
    assert connection.getresponse().read() == b'{"a": 1}'[::-1]
    connection.close()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"text_input": "a", "temprature": 1}, "'temprature'"),
        ({"text_input": "a", "n": 2}, "'n'"),
        ({"text_input": "a", "parameters": {"temperature": 1, "best_of": 2}}, "'best_of'"),
    ],
)
@pytest.mark.parametrize(
    "path", [GENERATE, f"{GENERATE}_stream", GENERATE.replace("/gen", "/versions/1/gen")]
)
def test_unknown_names_are_refused(
    front: Served, path: str, body: dict[str, object], name: str
) -> None:
    """Regression (tensorrtllm_backend#93, #237): Triton ignores names without an input."""
    before = len(front.upstream.heard)
    connection = HTTPConnection("127.0.0.1", front.port, timeout=30)
    connection.request("POST", path, json.dumps(body))
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())) == (
        400,
        {"error": f"{name}: unknown; docs/serving.md has the model's inputs"},
    )
    assert len(front.upstream.heard) == before


def test_names_that_triton_reads_pass(front: Served) -> None:
    body = {"text_input": "a", "id": "x", "timeout": 9, "parameters": {"temperature": 1}}
    connection = HTTPConnection("127.0.0.1", front.port, timeout=30)
    connection.request("POST", GENERATE, json.dumps(body))
    assert connection.getresponse().status == 418


NESTED = b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}"
REFUSED = [
    ("GET", "/v2/models/judge_decoding", None, {}, 404, "only health, and the model `ensemble`"),
    ("POST", "/v2/models/postprocessing/infer", b"{}", {}, 404, "only health, and the model"),
    ("POST", "/v2/repository/index", b"{}", {}, 404, "only health, and the model `ensemble`"),
    ("POST", "/v2/models/ensemble/../x/generate", b"{}", {}, 404, "only health, and the model"),
    ("DELETE", GENERATE, None, {}, 404, "only health, and the model `ensemble`"),
    ("GET", "/v2/health/live", b"x", {}, 400, "a GET request has no body"),
    ("POST", GENERATE, b" " * (MAX_BODY + 1), {}, 413, f"the body may have {MAX_BODY} bytes"),
    ("POST", GENERATE, NESTED, {}, 400, "the body's JSON is nested too deep"),
    (
        "POST",
        GENERATE,
        json.dumps({f"n{i}": i for i in range(65)}).encode(),
        {},
        400,
        "the body has 65 names; give at most 64",
    ),
    ("POST", GENERATE, b"[1]", {}, 400, "the body is not JSON (Expected `object`, got `array`)"),
    ("POST", GENERATE, b"\0" * 50, {}, 400, "the body is not JSON (JSON is malformed: invalid"),
    ("POST", GENERATE, b"{}", {"content_encoding": "gzip"}, 415, "a compressed body is not"),
    (
        "POST",
        "/v2/models/ensemble/infer",
        b"{}",
        {"inference_header_content_length": "3"},
        400,
        "Inference-Header-Content-Length: not a length within the body",
    ),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "says"), REFUSED)
def test_what_triton_never_sees(
    front: Served,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    says: str,
) -> None:
    """Regression: a body of 4.2 MB to any endpoint, and JSON nested 110,000 deep, ended Triton with
    SIGSEGV; compressed bodies would hide both. 100,000 names kept a thread of Triton for more than
    30 s (tests.attacks)."""
    before = len(front.upstream.heard)
    code, answer = front.ask(method, path, body, **headers)
    assert code == status
    assert says in json.loads(answer)["error"]
    assert len(front.upstream.heard) == before


def test_a_body_without_a_length_is_bounded_too(front: Served) -> None:
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert front.raw(head.encode() + chunk * 3).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Content-Length: 2, 2",
        "Content-Length: -2",
        "Content-Length: +2",
        "Transfer-Encoding: gzip, chunked\r\nContent-Length: 2",
        "X: " + "a" * 9000,
        "\r\n".join(f"X{i}: a" for i in range(1000)),
        "X : a\r\nContent-Length: 2",
        "X: a\0b",
    ],
    ids=lambda head: head[:40],
)
def test_two_lengths_or_a_head_without_bounds_is_400_and_the_end(front: Served, head: str) -> None:
    """Regression: a request with two lengths was taken by one of them, so that a proxy in front and
    Triton could disagree about where the next request begins."""
    before = len(front.upstream.heard)
    smuggled = "GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = front.raw(
        f"POST {GENERATE} HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{{}}{smuggled}".encode()
    )
    assert answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert answer.count(b"HTTP/1.") == 1
    assert len(front.upstream.heard) == before


def test_who_leaves_is_left(front: Served) -> None:
    """A client that goes in the middle of a stream ends the request to Triton too."""
    connection = HTTPConnection("127.0.0.1", front.port, timeout=30)
    connection.request("POST", f"{GENERATE}_stream", b"{}")
    assert connection.getresponse().read1(20).startswith(b"data: 0\n\n")
    connection.close()
    assert front.upstream.left.wait(30)


def test_connections_have_a_number(front: Served) -> None:
    """The last one is closed at once; when one goes, another one is served."""
    with socket.socket() as first:
        crowd = [first]
        first.connect(("127.0.0.1", front.port))
        for _ in range(MAX_CONNECTIONS - 1):
            crowd.append(socket.create_connection(("127.0.0.1", front.port), 30))

        def refused() -> bool:
            with socket.create_connection(("127.0.0.1", front.port), 30) as late:
                late.settimeout(0.5)
                try:
                    return late.recv(1) == b""
                except TimeoutError:
                    return False

        wait_for(refused, "the crowd", 30)
        for one in crowd:
            one.close()
    wait_for(lambda: not refused(), "room", 30)
    assert front.ask("GET", "/v2")[0] == 418


def deployment(**server: object) -> Deployment:
    values = {
        "name": "x",
        "target": {"model": "/t"},
        "acceptance": {"rule": "none"},
        "server": server,
    }
    return Deployment.read(values, Path(), "test")


def test_a_front_that_dies_is_started_again_but_not_for_ever() -> None:
    http, metrics = free_ports(2)
    with Front(deployment(http_port=http, metrics_port=metrics), "none") as front:
        for _ in range(STARTS):
            assert front.look() is None
            process = front._process
            assert process is not None
            connection = HTTPConnection("127.0.0.1", http, timeout=30)
            connection.request("GET", "/v2/health/live")  # waits until the front is there
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (
                503,
                {"error": "the server is starting, or has ended"},
            )
            connection.close()
            os.kill(process.pid, 9)
            process.wait()
        assert front.look() == "the HTTP front ended 5 times within 60 s, with -9"
    bind("127.0.0.1", http, "http").close()


def test_a_port_is_owned_from_the_start() -> None:
    http, metrics = free_ports(2)
    with Front(deployment(http_port=http, metrics_port=metrics), "none"):
        for name, port in (("http", http), ("metrics", metrics)):
            with pytest.raises(UserError, match=rf"choose another --{name}-port") as taken:
                bind("127.0.0.1", port, name)
            assert f"127.0.0.1:{port} (Address already in use)" in str(taken.value)


def test_off_means_no_port() -> None:
    for value in (False, "off", None):
        assert deployment(http_port=value).server.http_port is None
    with Front(deployment(http_port="off", metrics_port=free_ports(1)[0]), "none") as front:
        assert list(front._bound) == ["metrics"]
    with pytest.raises(UserError, match=r"config: test: server\.http_port: .* \(got 0\)$"):
        deployment(http_port=0)
    assert body_limit(ServerConfig()) == 3_262_144
