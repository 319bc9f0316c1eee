"""Clients that die, stop, vanish or send garbage; no other client may notice."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from clients.server import descendants
from judge_client.client import JudgeClient
from judge_client.wire import GenerateRequest
from tests.faults.bench import LONG, PATIENCE_S, Bench, Fault, Outcome, Watched, answer, slots
from tests.triton_world import Serving, wait_for

ROOT = Path(__file__).resolve().parents[2]


class Proxy:
    """A TCP proxy between a client and the server, until a test makes it misbehave."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.stalled = False
        self.pause_s = 0.0  # before each piece that goes to the client
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._pairs.append((client, server))
                for way in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, to_client: bool) -> None:
        with suppress(OSError, ValueError):  # when cut, a closed socket has no descriptor
            while True:
                while self.stalled or not select.select([source], [], [], 0.05)[0]:
                    time.sleep(0.01 if self.stalled else 0)
                data = source.recv(256 if self.pause_s else 65536)
                if not data:
                    break
                if to_client:
                    time.sleep(self.pause_s)
                to.sendall(data)
        with suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Reset all present connections in both directions. A connection that the client opens when
        it sees the first of them go is not reset."""
        pairs = list(self._pairs)
        del self._pairs[: len(pairs)]
        for pair in pairs:
            for one in pair:
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


def client_process(server: Serving, out: Path) -> subprocess.Popen[bytes]:
    """Starts `python -m clients.generate`; returns in the middle of its stream."""
    with out.open("wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "clients.generate", "-u", server.url, "--stream"),
                *("--prompt", LONG.prompt, "--no-chat", "--max-tokens", str(LONG.max_tokens)),
                *("--min-tokens", str(LONG.max_tokens)),
            ],
            stdout=file,
            stderr=file,
            cwd=ROOT,
        )
    wait_for(lambda: out.stat().st_size > 100, "the client's first text")
    return process


def client_killed(bench: Bench) -> Outcome:
    server = bench.shared
    process = client_process(server, bench.place() / "out")
    process.kill()
    began = time.monotonic()
    process.wait()
    wait_for(lambda: slots(server) == 0, "the slot")
    seconds = time.monotonic() - began
    return Outcome("it is dead", seconds, "goes on; its answer runs to its end", bench.unharmed())


def client_paused(bench: Bench) -> Outcome:
    """Another client is served meanwhile; the paused one gets its whole answer later."""
    server, out = bench.shared, bench.place() / "out"
    process = client_process(server, out)
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        answer(server)
        wait_for(lambda: slots(server) == 0, "the slot, although nobody reads")
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(PATIENCE_S) == 0, out.read_text()
    seconds = time.monotonic() - began
    return Outcome("the whole answer, late", seconds, "goes on", bench.unharmed())


def connection_cut(bench: Bench) -> Outcome:
    server = bench.shared
    cancelled = server.metric("request_success_total", finished_reason="cancelled")
    with Proxy(server.ports[1]) as proxy:
        stream = Watched(proxy.url).running()
        proxy.cut()
        began = time.monotonic()
        seen = stream.seen()
        assert stream.error is not None
        wait_for(
            lambda: (
                server.metric("request_success_total", finished_reason="cancelled") == cancelled + 1
            ),
            "the cancel's count",
        )
    after = "goes on; the client's cancel is sent once more where it can reconnect"
    return Outcome(seen, stream.ended - began, after, bench.unharmed())


def connection_silent(bench: Bench) -> Outcome:
    """No byte passes any more and no error is reported: only the client's own limit helps."""
    server = bench.shared
    with Proxy(server.ports[1]) as proxy:
        stream = Watched(proxy.url, timeout=3).running()
        proxy.stalled = True
        began = time.monotonic()
        seen = stream.seen()
        assert stream.error is not None and stream.error.status == "DEADLINE_EXCEEDED"
        wait_for(lambda: slots(server) == 0, "the slot, although nobody reads")
    after = "goes on; the answer runs to its end"
    return Outcome(seen, stream.ended - began, after, bench.unharmed())


def slow_reader(bench: Bench) -> Outcome:
    server = bench.shared
    with Proxy(server.ports[1]) as proxy:
        proxy.pause_s = 0.02
        began = time.monotonic()
        stream = Watched(proxy.url, GenerateRequest(LONG.prompt, max_tokens=200, ignore_eos=True))
        stream.running()
        answer(server)  # at full speed, at the same time
        assert stream.is_alive()
        seen = stream.seen()
        assert stream.error is None
    return Outcome(f"{seen}, at its own pace", stream.ended - began, "goes on", bench.unharmed())


def http_dropped(bench: Bench) -> Outcome:
    """HTTP server-sent events are reset in the middle."""
    server = bench.shared
    body = json.dumps({"text_input": LONG.prompt, "max_tokens": 900, "stream": True}).encode()
    head = "POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nHost: a\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.ports[0]), 60) as raw:
        raw.sendall(head.encode() + body)
        assert raw.recv(4096)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    began = time.monotonic()
    wait_for(lambda: slots(server) == 0, "the slot")
    seconds = time.monotonic() - began
    return Outcome("it has gone", seconds, "goes on; its answer runs to its end", bench.unharmed())


def garbage(bench: Bench) -> Outcome:
    """Every port gets random bytes, a TLS greeting and HTTP/1."""
    server, chance = bench.shared, random.Random(1)
    tls = bytes.fromhex("16030100a5010000a10303") + chance.randbytes(160)
    pieces = [chance.randbytes(4096), tls, b"GET / HTTP/1.1\r\n\r\n", b"\0" * 70000]
    pieces += [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.randbytes(500) for _ in range(20)]
    began = time.monotonic()
    with ExitStack() as stack:
        for port in server.ports:
            for piece in pieces:
                raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                with suppress(OSError):
                    raw.sendall(piece)
                    raw.settimeout(0.1)
                    raw.recv(100)
    seconds = time.monotonic() - began
    return Outcome("refused or closed", seconds, "goes on", bench.unharmed())


def half_requests(bench: Bench) -> Outcome:
    """300 connections send nothing or half a request and stay open; other clients are served."""
    server = bench.shared
    began = time.monotonic()
    with ExitStack() as stack:
        for i in range(300):
            port = server.ports[i % 3]
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            if i % 2:
                raw.sendall(b"POST /v2/models/ensemble/generate HTTP/1.1\r\nContent-Le")
        answer(server)
        seconds = time.monotonic() - began
    return Outcome("others are served", seconds, "goes on", bench.unharmed())


def http(server: Serving, data: bytes) -> str:
    """All that the HTTP port sends back, first line only."""
    with socket.create_connection(("127.0.0.1", server.ports[0]), 30) as raw:
        with suppress(ConnectionError):  # it may close before it has read everything
            raw.sendall(data)
        answer = b""
        with suppress(ConnectionError):
            while chunk := raw.recv(65536):
                answer += chunk
    return answer.decode(errors="replace").partition("\r\n")[0].partition(" ")[2]


def http_attack(head: str, body: bytes, status: str, bench: Bench) -> Outcome:
    """Regression: the first two ended tritonserver with SIGSEGV, without a token."""
    server = bench.shared
    began = time.monotonic()
    seen = http(server, f"POST {head}\r\n\r\n".encode() + body)
    seconds = time.monotonic() - began
    assert seen == status
    return Outcome(f"HTTP {seen}", seconds, "goes on", bench.unharmed())


def front_killed(bench: Bench) -> Outcome:
    """The launcher starts it again; gRPC streams do not go through it."""
    server = bench.shared
    stream = Watched(server.url).running()
    (pid,) = (
        pid
        for pid in descendants(server.process.pid)
        if b"judge_decoding.serving.http_front" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    assert server.http("/v2/health/ready") == ""
    seconds = time.monotonic() - began
    assert stream.seen() == "the whole answer (`length`)"
    return Outcome("HTTP waits, gRPC goes on", seconds, "starts it again", bench.unharmed())


LIVE = "/v2/health/live HTTP/1.1\r\nHost: a"
GENERATE = "/v2/models/ensemble/generate HTTP/1.1\r\nHost: a"


def reconnecting(bench: Bench) -> Outcome:
    """A hundred clients connect, ask and leave in the first round."""
    server = bench.shared
    began = time.monotonic()
    for _ in range(100):
        with JudgeClient(server.url, timeout=PATIENCE_S) as client:
            stream = client.stream(GenerateRequest("Hi", max_tokens=50, ignore_eos=True))
            next(stream)
            stream.close()
    seconds = time.monotonic() - began
    return Outcome("each its first chunk", seconds, "goes on; all are cancelled", bench.unharmed())


def thousand_cancels(bench: Bench) -> Outcome:
    """Many cancels arrive, for requests that never existed and for one that runs."""
    server = bench.shared
    began = time.monotonic()
    stream = Watched(server.url).running()
    with JudgeClient(server.url) as client:
        for i in range(300):
            client.cancel(f"nobody-{i}" if i % 2 else os.urandom(8).hex())
    seen = stream.seen()
    assert stream.error is None
    return Outcome(f"{seen}, for another client", stream.ended - began, "goes on", bench.unharmed())


GROUP = "network"
FAULTS = [
    Fault(GROUP, "client: kill -9 in its stream", client_killed, quick=True),
    Fault(GROUP, "client: paused in its stream", client_paused, quick=True),
    Fault(GROUP, "connection reset in a stream", connection_cut, quick=True),
    Fault(GROUP, "connection goes silent in a stream", connection_silent, quick=True),
    Fault(GROUP, "client reads 12 kB/s", slow_reader),
    Fault(GROUP, "HTTP stream reset", http_dropped, quick=True),
    Fault(GROUP, "garbage on every port", garbage, quick=True),
    Fault(GROUP, "300 connections with half a request", half_requests, quick=True),
    Fault(
        GROUP,
        "HTTP body of 4.2 MB",
        partial(
            http_attack,
            f"{LIVE}\r\nContent-Length: 4200000",
            bytes(4_200_000),
            "404 Not Found",
        ),
        quick=True,
    ),
    Fault(
        GROUP,
        "JSON nested 110,000 deep",
        partial(
            http_attack,
            f"{GENERATE}\r\nContent-Length: 110000",
            b"[" * 110_000,
            "400 Bad Request",
        ),
        quick=True,
    ),
    Fault(
        GROUP,
        "HTTP with two lengths",
        partial(
            http_attack,
            f"{GENERATE}\r\nContent-Length: 2\r\nContent-Length: 3",
            b"{}",
            "400 Bad Request",
        ),
        quick=True,
    ),
    Fault(GROUP, "HTTP front: kill -9", front_killed, quick=True),
    Fault(GROUP, "100 clients leave after a chunk", reconnecting, quick=True),
    Fault(GROUP, "300 cancels of unknown requests", thousand_cancels),
]
