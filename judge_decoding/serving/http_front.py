"""The HTTP front: bounds a request before Triton sees it, and passes it on.

Triton's HTTP server (release 24.10) keeps a request on its thread's stack: a body of 4.2 MB, or
JSON that is nested 110,000 deep, ends it with SIGSEGV, token or not. So Triton listens on Unix
sockets that only the server's user may open, and this process owns the ports:

1. the path    one of `_PATHS`; of the models only `ensemble`
2. the head    parsed by aiohttp (llhttp): 8 KiB a line, one length, within IDLE_S
3. the body    at most `--max-body` bytes, within BODY_S, not compressed
4. its JSON    an object of MAX_NAMES names at most, nested as deep as msgspec reads it, which is
               far less than Triton's stack holds; for `generate`, names that the model has:
               Triton would ignore others
5. forward     as it came; the answer comes back chunk by chunk

It holds no state: the launcher starts it again if it dies (`serving.front`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import NoReturn

import msgspec
from aiohttp import ClientConnectionError, ClientSession, ClientTimeout, UnixConnector, web
from aiohttp.http_exceptions import HttpProcessingError

from judge_client.echo import shown
from judge_decoding.serving.processes import become_child

IDLE_S = 15
"""Seconds until a connection without a whole request head is closed."""
BODY_S = 30.0
"""Seconds for a request's body to arrive."""
MAX_BUFFERED = 256 * 2**20
"""Bytes of all bodies together."""
_PATHS = {
    "GET": re.compile(
        r"/v2(/health/(live|ready)|/models/(stats|ensemble(/versions/\d{1,9})?(/(ready|config|stats))?))?"
    ),
    "POST": re.compile(r"/v2/models/ensemble(/versions/\d{1,9})?/(generate|generate_stream|infer)"),
}
_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
        "proxy-connection",
        "proxy-authorization",
    ]
)
"""Headers that concern one connection only."""
MAX_NAMES = 64
"""Names in a body's JSON. Triton takes 2.5 s for 10,000, more than 30 s for 100,000, and has few
threads."""
_TRITON_NAMES = frozenset(
    ["id", "parameters", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end"]
)
"""Names in the body of a `generate` that Triton itself reads; of these, `timeout` has an effect."""
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """Passes requests on to the server at a Unix socket.

    max_body  bytes
    inputs    names of the model's inputs
    """

    def __init__(self, upstream: str, max_body: int, inputs: frozenset[str] = frozenset()) -> None:
        self._names = inputs | _TRITON_NAMES
        self._upstream = upstream
        self._max_body = max_body
        self._buffered = 0
        self._session: ClientSession | None = None

    async def http(self, request: web.Request) -> web.StreamResponse:
        pattern = _PATHS.get(request.method)
        if pattern is None or not pattern.fullmatch(request.path):
            refuse(404, "not served over HTTP: only health, and the model `ensemble`")
        return await self._pass_on(request)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        if (request.method, request.path) != ("GET", "/metrics"):
            refuse(404, "only GET /metrics is served here")
        return await self._pass_on(request)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        self._check_length(request)
        size = request.content_length or self._max_body if request.can_read_body else 0
        if self._buffered + size > MAX_BUFFERED:
            refuse(503, "too many large requests at once; try again later")
        self._buffered += size
        try:
            body = await read_body(request, self._max_body)
            document = check_json(request, body)
            if "/generate" in request.path:
                check_names(document, self._names)
            return await self._forward(request, body)
        finally:
            self._buffered -= size

    def _check_length(self, request: web.Request) -> None:
        if request.method == "GET" and request.can_read_body:
            refuse(400, "a GET request has no body")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            refuse(415, "a compressed body is not accepted")
        if (request.content_length or 0) > self._max_body:
            too_large(self._max_body)

    async def _forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if self._session is None:
            self._session = ClientSession(
                connector=UnixConnector(
                    self._upstream, limit=0, force_close=True
                ),  # or its end waits
                timeout=ClientTimeout(total=None, sock_connect=5),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Content-Type", "Accept-Encoding"),
            )
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP]
        url = f"http://triton{request.path}"
        try:
            async with self._session.request(
                request.method, url, data=body or None, headers=headers
            ) as answer:
                kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in _HOP]
                response = web.StreamResponse(status=answer.status)
                response.headers.extend(kept)
                response.content_length = answer.content_length
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except ClientConnectionError:
            # Once the answer has begun, the connection is closed in the middle of it.
            refuse(503, "the server is starting, or has ended")


def too_large(most: int) -> NoReturn:
    refuse(413, f"the body may have {most} bytes (server.max_prompt_bytes)")


async def read_body(request: web.Request, most: int) -> bytes:
    """A body of at most `most` bytes that arrives within BODY_S; refused otherwise."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > most:
                    too_large(most)
    except TimeoutError:
        refuse(408, f"the body did not arrive within {BODY_S:g} s")
    return bytes(body)


def check_json(request: web.Request, body: bytes) -> dict[str, msgspec.Raw]:
    """The values by name. Refuses what is not a JSON object, is nested too deep or has too many
    names.

    In `infer` binary data may follow it.
    """
    length = request.headers.get("Inference-Header-Content-Length")
    if length is not None:
        if not length.isdecimal() or int(length) > len(body):
            refuse(400, "Inference-Header-Content-Length: not a length within the body")
        body = body[: int(length)]
    if not body:
        return {}
    try:
        document = _OBJECT.decode(body)
    except RecursionError:
        refuse(400, "the body's JSON is nested too deep")
    except msgspec.DecodeError as error:
        refuse(400, f"the body is not JSON ({error})")
    if len(document) > MAX_NAMES:
        refuse(400, f"the body has {len(document)} names; give at most {MAX_NAMES}")
    return document


def check_names(document: dict[str, msgspec.Raw], known: frozenset[str]) -> None:
    """Refuses a name that the model has no input for, beside the inputs or in `parameters`."""
    names = list(document)
    if "parameters" in document:
        try:
            names += _OBJECT.decode(document["parameters"])
        except (RecursionError, msgspec.DecodeError):
            refuse(400, "parameters: not a JSON object")
    for name in names:
        if name not in known:
            refuse(400, f"{shown(name)}: unknown; docs/serving.md has the model's inputs")


class Refusal(Exception):
    """An answer of the front itself, in Triton's form. It ends the connection too: what follows may
    be the rest of a body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refuse(status: int, message: str) -> NoReturn:
    raise Refusal(status, message)


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        response = web.json_response({"error": str(refusal)}, status=refusal.status)
        response.force_close()
        return response


def application(handler: Handler) -> web.Application:
    app = web.Application(middlewares=[refusals])
    app.router.add_route("*", "/{path:.*}", handler)
    return app


class Crowd(asyncio.Protocol):
    """A connection too many: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def listen(
    sock: socket.socket,
    app: web.Application,
    max_connections: int,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve on a bound socket, from now on."""
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=IDLE_S,
        lingering_time=1,  # for the rest of a body that was refused
        handler_cancellation=True,
        auto_decompress=False,
    )
    await runner.setup()
    server = runner.server
    assert server is not None

    def protocol() -> asyncio.BaseProtocol:
        return Crowd() if len(server.connections) >= max_connections else server()

    await asyncio.get_running_loop().create_server(protocol, sock=sock, backlog=1024, ssl=tls)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of aiohttp's log says more than that a client sent no HTTP."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def run(arguments: argparse.Namespace) -> None:
    inputs = frozenset(arguments.inputs.split(","))
    triton = Front(arguments.sockets + "http.sock", arguments.max_body, inputs)
    metrics = Front(arguments.sockets + "metrics.sock", 0)
    for fd, handler in ((arguments.http_fd, triton.http), (arguments.metrics_fd, metrics.metrics)):
        if fd >= 0:
            app = application(handler)
            await listen(socket.socket(fileno=fd), app, arguments.max_connections)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sockets", required=True, help="Triton's sockets are named SOCKETS*.")
    parser.add_argument("--http-fd", type=int, default=-1, help="A bound socket.")
    parser.add_argument("--metrics-fd", type=int, default=-1, help="A bound socket.")
    parser.add_argument("--inputs", required=True, help="The model's, separated by commas.")
    parser.add_argument("--max-body", type=int, required=True, help="Bytes.")
    parser.add_argument("--max-connections", type=int, required=True, help="Per port.")
    parser.add_argument("--launcher", type=int, required=True, help="The pid to end with.")
    # The launcher ends this process, last of all; a signal to the whole group is not for it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    logging.getLogger("aiohttp.server").addFilter(is_news)
    arguments = parser.parse_args()
    become_child(signal.SIGKILL)
    if os.getppid() == arguments.launcher:  # else it has ended meanwhile
        asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
