"""HTTP that lies about its length, never ends, or asks for what is not served: the front's part."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import ExitStack, suppress
from functools import partial

from tests.faults.attack import attack
from tests.faults.bench import slots
from tests.triton_world import Serving, wait_for

GROUP = "http"
GENERATE = b"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost: a\r\n"
STREAM = GENERATE.replace(b"generate", b"generate_stream")
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = LIVE[:-2] + b"Connection: close\r\n\r\n"
LONG = json.dumps({"text_input": "x", "max_tokens": 200, "stream": True, "ignore_eos": True})


def connect(server: Serving, port: int = 0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.ports[port]), 60)


def heard(raw: socket.socket) -> str:
    """Status of every answer and the last one's error, until the server closes, or waits."""
    data, end = b"", ""
    raw.settimeout(30)
    try:
        while chunk := raw.recv(65536):
            data += chunk
    except TimeoutError:
        end = "left open"
    except ConnectionError:
        pass
    lines = [x for x in data.split(b"\r\n") if x.startswith(b"HTTP/1.")]
    found = [line.split(b" ", 1)[1].decode() for line in lines]
    said = data.rpartition(b"\r\n\r\n")[2].decode(errors="replace")
    error = json.loads(said)["error"] if said.startswith('{"error"') else ""
    counted = f"{len(found)} x {found[0]}" if len(found) > 5 else ", ".join(found)
    return ": ".join(x for x in (counted, error, end) if x) or "closed"


def exchange(data: bytes, server: Serving, *, port: int = 0, half: bool = False) -> str:
    """What comes back for these bytes. half: the client then closes its half of the connection."""
    with connect(server, port) as raw:
        with suppress(ConnectionError):  # it may close before it has read everything
            raw.sendall(data)
            if half:
                raw.shutdown(socket.SHUT_WR)
        return heard(raw)


def post(body: bytes, head: bytes = GENERATE) -> bytes:
    return head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body


def chunked(chunks: bytes, head: bytes = b"") -> bytes:
    return GENERATE + head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def prompt(**values: object) -> bytes:
    return post(json.dumps({"text_input": "Hi", "max_tokens": 3} | values).encode())


SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
FRAMES: dict[str, tuple[str, bytes]] = {
    "HTTP/0.9": ("closed", b"GET /v2/health/live\r\n\r\n"),
    "HTTP/2's preface at the HTTP port": (
        "400 Bad Request",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    ),
    "an upgrade to h2c": (
        "200 OK",
        LIVE.replace(
            b"\r\n\r\n",
            b"\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
        ),
    ),
    "a length and chunks": (
        "400 Bad Request",
        chunked(b"0\r\n\r\n" + SMUGGLED, b"Content-Length: 4\r\n"),
    ),
    "a coding `xchunked`": (
        "400 Bad Request",
        GENERATE + b"Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED,
    ),
    "a folded header": (
        "400 Bad Request",
        GENERATE + b"Content-Length:\r\n 2\r\n\r\n{}" + SMUGGLED,
    ),
    "lines that end without CR": (
        "400 Bad Request",
        GENERATE.replace(b"\r", b"") + b"Content-Length: 2\n\n{}",
    ),
    "a chunk of 2^64 bytes": ("400 Bad Request", chunked(b"10000000000000000\r\n{}\r\n0\r\n\r\n")),
    "a chunk of -1 bytes": ("400 Bad Request", chunked(b"-1\r\n{}\r\n0\r\n\r\n")),
    "a chunk with an extension of 1 MB": (
        "400 Bad Request",
        chunked(b"2;" + b"x" * 10**6 + b"\r\n{}\r\n0\r\n\r\n"),
    ),
    "a body in 500,000 chunks": (
        "400 Bad Request: the body is not JSON (Input data was truncated)",
        chunked(b"1\r\n \r\n" * 500_000 + b"0\r\n\r\n"),
    ),
    "a header of 1 MB": ("400 Bad Request", GENERATE + b"X: " + b"a" * 10**6 + b"\r\n\r\n"),
    "10,000 headers": ("400 Bad Request", GENERATE + b"X: a\r\n" * 10_000 + b"\r\n"),
    "a path of 100 KB": (
        "400 Bad Request",
        b"GET /v2/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    "a body of 3.3 MB": (
        "413 Request Entity Too Large: the body may have 3262144 bytes (server.max_pr...",
        post(b" " * 3_300_000),
    ),
    "a gzip body": (
        "415 Unsupported Media Type: a compressed body is not accepted",
        post(b"\x1f\x8b" + bytes(30), GENERATE + b"Content-Encoding: gzip\r\n"),
    ),
    "100 requests sent at once": ("100 x 200 OK", LIVE * 99 + LAST),
}
PATHS: dict[str, tuple[str, bytes]] = {
    "an internal model, percent-encoded": (
        "404 Not Found: not served over HTTP: only health, and the model `ensemble`",
        post(b"{}", GENERATE.replace(b"ensemble", b"%6Audge_decoding")),
    ),
    "an internal model behind `..`": (
        "404 Not Found: not served over HTTP: only health, and the model `ensemble`",
        post(b"{}", GENERATE.replace(b"ensemble", b"ensemble/../judge_decoding")),
    ),
    "an absolute URI": ("200 OK", LAST.replace(b"/v2", b"http://b/v2", 1)),
    "CONNECT": (
        "404 Not Found",
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ),
    "TRACE": (
        "404 Not Found: not served over HTTP: only health, and the model `ensemble`",
        b"TRACE /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ),
}
BODIES: dict[str, tuple[str, bytes]] = {
    "JSON in UTF-16": (
        "400 Bad Request: the body is not JSON (JSON is malformed: invalid character...",
        post('{"text_input": "Hi"}'.encode("utf-16")),
    ),
    "JSON with NaN": (
        "400 Bad Request: the body is not JSON (JSON is malformed: invalid character...",
        post(b'{"text_input": "Hi", "temperature": NaN}'),
    ),
    "JSON with an integer of 10,000 digits": (
        "500 Internal Server Error: failed to parse the request JSON buffer: Number t...",
        post(b'{"text_input": "Hi", "seed": %b}' % (b"9" * 10_000)),
    ),
    "JSON with a name twice": (
        "400 Bad Request: [request id: <id_unknown>] input 'text_input' already exist...",
        post(b'{"text_input": "Hi", "text_input": "Ho"}'),
    ),
    "JSON with 100,000 names": (
        "400 Bad Request: the body has 100000 names; give at most 64",
        post(json.dumps({f"n{i}": i for i in range(100_000)}).encode()),
    ),
    "JSON with a list for a text": (
        "400 Bad Request: [request id: <id_unknown>] input 'text_input' batch size do...",
        prompt(text_input=["a"] * 1000),
    ),
    "JSON with an object for a number": (
        "500 Internal Server Error: Unable to parse 'data': attempt to access JSON no...",
        prompt(max_tokens={"a": 1}),
    ),
    "a binary part longer than its body": (
        "400 Bad Request: Inference-Header-Content-Length: not a length within the body",
        post(
            b'{"inputs": []}',
            GENERATE.replace(b"generate", b"infer") + b"Inference-Header-Content-Length: 99\r\n",
        ),
    ),
}


def never_reads(server: Serving) -> str:
    """A client of server-sent events with a small window that never reads one."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.settimeout(60)
        raw.connect(("127.0.0.1", server.ports[0]))
        raw.sendall(post(LONG.encode(), STREAM))
        wait_for(lambda: slots(server) == 2, "the stream")
        wait_for(lambda: slots(server) <= 1, "the slot, although nobody reads")
    return "nothing"


def reset_streams(server: Serving) -> str:
    """Sixty streams of events are reset at once."""
    with ExitStack() as stack:
        for _ in range(60):
            raw = stack.enter_context(connect(server))
            raw.sendall(post(LONG.replace("200", "8").encode(), STREAM))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.2)
    wait_for(lambda: slots(server) <= 1, "the slots")
    return "it has gone"


def crowd(port: int, server: Serving) -> str:
    """More connections than the front's limit; when they have gone, it serves again."""
    with ExitStack() as stack:
        made = [stack.enter_context(connect(server, port)) for _ in range(600)]
        last = made[-1]
        closed = last.recv(1) == b""
    wait_for(lambda: is_served(port, server), "room", 30)
    return "closed" if closed else "accepted"


def is_served(port: int, server: Serving) -> bool:
    path = b"/metrics" if port == 2 else b"/v2/health/live"
    with connect(server, port) as raw, suppress(ConnectionError):
        raw.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
        return raw.recv(100).startswith(b"HTTP/1.1 200")
    return False


def slow(first: bytes, then: bytes, server: Serving) -> str:
    """Sends a byte per half second until the server has had enough."""
    with connect(server) as raw:
        raw.sendall(first)
        raw.settimeout(0.5)
        data = b""
        for _ in range(200):
            try:
                chunk = raw.recv(65536)
                if not chunk:
                    break
                data += chunk
            except TimeoutError:
                with suppress(ConnectionError):
                    raw.sendall(then)
            except ConnectionError:
                break
        else:
            return "left open"
    return data.partition(b"\r\n")[0].partition(b" ")[2].decode() or "closed"


QUICK = {"a length and chunks", "a chunk of 2^64 bytes", "100 requests sent at once"}
FAULTS = [
    *(
        attack(GROUP, name, sees, partial(exchange, data), quick=name in QUICK)
        for rows in (FRAMES, PATHS, BODIES)
        for name, (sees, data) in rows.items()
    ),
    attack(
        GROUP,
        "a body that ends too early",
        "closed",
        partial(exchange, GENERATE + b"Content-Length: 100\r\n\r\n{", half=True),
    ),
    attack(
        GROUP,
        "a body for the metrics",
        "404 Not Found: only GET /metrics is served here",
        partial(exchange, post(b"{}", b"POST /metrics HTTP/1.1\r\nHost: a\r\n"), port=2),
    ),
    attack(
        GROUP,
        "a client of events that never reads",
        "nothing",
        never_reads,
        server="goes on; its answer runs to its end",
    ),
    attack(
        GROUP,
        "60 streams of events reset at once",
        "it has gone",
        reset_streams,
        server="goes on; their answers run to their ends",
    ),
    attack(GROUP, "600 connections at the HTTP port", "closed", partial(crowd, 0)),
    attack(GROUP, "600 connections at the metrics port", "closed", partial(crowd, 2)),
    attack(
        GROUP,
        "a head that comes a byte at a time",
        "closed",
        partial(slow, GENERATE + b"X: ", b"a"),
    ),
    attack(
        GROUP,
        "a body that comes a byte at a time",
        "408 Request Timeout",
        partial(slow, GENERATE + b"Content-Length: 1000\r\n\r\n", b" "),
    ),
]
