"""The endpoint's process: routes, access, and bounds on size, rate and time.

    python -m judge_decoding.serving.openai.app --openai-fd 5 --settings JSON --launcher PID

1. the head    as in the HTTP front: parsed by aiohttp, bounded, complete within IDLE_S
2. access      the token, compared in constant time; no request from another site's page
3. the body    bounded in size and time, UTF-8, JSON, known fields
4. room        at most `max_choices` answers at once and RATE requests a second; otherwise 429
5. ensemble    over gRPC; if the client goes away the answer is cancelled there
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from judge_client.aio import AsyncJudgeClient
from judge_client.connection import Access
from judge_client.errors import JudgeClientError
from judge_client.exchange import new_request_id
from judge_decoding.serving import access
from judge_decoding.serving.http_front import (
    MAX_BUFFERED,
    Handler,
    Refusal,
    listen,
    read_body,
)
from judge_decoding.serving.openai import engine
from judge_decoding.serving.openai.answers import Answer
from judge_decoding.serving.openai.description import description
from judge_decoding.serving.openai.errors import ApiError, from_client
from judge_decoding.serving.openai.schema import ChatRequest, CompletionRequest, R, read
from judge_decoding.serving.openai.settings import Settings
from judge_decoding.serving.processes import become_child

WRITE_S = 30.0
"""Seconds for which a reader may take nothing of a stream; then its answer is cancelled."""
RATE, BURST = 200.0, 400.0
"""Requests per second for answers, of all clients together, and how many at once."""
MAX_CONNECTIONS = 4096
STATIC = Path(__file__).parent / "static"
_OPEN = ("/", "/health", "/openapi.json", "/metrics")
"""Paths that need no token, beside /static/."""
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_JSON = msgspec.json.Encoder()


class Door:
    """The routes."""

    def __init__(self, settings: Settings, token: str, client: AsyncJudgeClient) -> None:
        self._settings = settings
        self._token = token.encode()
        self._client = client
        self._running = 0
        self._buffered = 0
        self._credit, self._credited = BURST, time.monotonic()

    def application(self) -> web.Application:
        app = web.Application(middlewares=[errors, self._guard])
        get, post = app.router.add_get, app.router.add_post
        post("/v1/chat/completions", partial(self._answer, ChatRequest, "chatcmpl"))
        post("/v1/completions", partial(self._answer, CompletionRequest, "cmpl"))
        get("/v1/models", self._models)
        get("/v1/models/{name}", self._model)
        get("/health", self._health)
        get("/metrics", self._metrics)
        get("/openapi.json", self._openapi)
        get("/", self._page)
        app.router.add_static("/static", STATIC)
        app.on_response_prepare.append(_page_headers)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuses without the token, and what a page of another site sends."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise ApiError(403, "requests from another site's page are not accepted")
        if self._token and request.path not in _OPEN and not request.path.startswith("/static/"):
            scheme, _, value = request.headers.get("Authorization", "").partition(" ")
            given = value.strip().encode(errors="replace")
            if not hmac.compare_digest(given, self._token) or scheme.lower() != "bearer":
                raise ApiError(
                    401,
                    "give the server's token as `Authorization: Bearer TOKEN`",
                    code="invalid_api_key",
                )
        return await handler(request)

    async def _answer(self, kind: type[R], prefix: str, request: web.Request) -> web.StreamResponse:
        asked = read(kind, await self._body(request))
        model = self._settings.name
        if asked.model not in (None, model):
            self._no_model(str(asked.model))
        name = f"{prefix}-{new_request_id()}"
        try:
            messages = engine.messages(asked, self._settings.inputs, name)
            answer = Answer(asked, name, model)
            with self._room(len(messages)):
                pieces = engine.answers(self._client, messages, streamed=asked.stream)
                async with aclosing(pieces):
                    if asked.stream:
                        return await self._stream(request, pieces, answer, asked.include_usage)
                    async for piece in pieces:
                        answer.add(piece)
        except JudgeClientError as error:
            raise from_client(error) from None
        return reply(answer.whole())

    async def _stream(
        self, request: web.Request, pieces: Any, answer: Answer, include_usage: bool
    ) -> web.StreamResponse:
        """Server-sent events. An error before the first of them has an HTTP status of its own."""
        piece = await anext(pieces, None)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        try:
            while piece is not None:
                await self._write(request, response, _JSON.encode(answer.chunk(piece)))
                piece = await anext(pieces, None)
            if include_usage:
                await self._write(request, response, _JSON.encode(answer.last()))
        except JudgeClientError as error:
            await self._write(request, response, _JSON.encode(from_client(error).body()))
        await self._write(request, response, b"[DONE]")
        await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        """ConnectionError for a reader that is gone, or has taken nothing for WRITE_S."""
        try:
            async with asyncio.timeout(WRITE_S):
                await response.write(b"data: " + data + b"\n\n")
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the reader takes nothing") from None

    async def _body(self, request: web.Request) -> bytes:
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise ApiError(415, "a compressed body is not accepted")
        most = self._settings.max_body
        if (request.content_length or 0) > most:
            raise ApiError(413, f"the body may have {most} bytes (server.max_prompt_bytes)")
        size = request.content_length or most
        if self._buffered + size > MAX_BUFFERED:
            raise ApiError(503, "too many large requests at once", retry_after_s=1)
        self._buffered += size
        try:
            return await read_body(request, most)
        finally:
            self._buffered -= size

    @contextmanager
    def _room(self, answers: int) -> Iterator[None]:
        now = time.monotonic()
        self._credit = min(BURST, self._credit + RATE * (now - self._credited))
        self._credited = now
        if self._credit < answers:
            raise ApiError(429, "too many requests per second", code="rate", retry_after_s=1)
        self._credit -= answers
        if self._running + answers > self._settings.max_choices:
            message = f"{self._running} answers are running or waiting; try again later"
            raise ApiError(429, message, code="server_busy", retry_after_s=1)
        self._running += answers
        try:
            yield
        finally:
            self._running -= answers

    async def _models(self, request: web.Request) -> web.Response:
        return reply({"object": "list", "data": [self._card()]})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != self._settings.name:
            self._no_model(request.match_info["name"])
        return reply(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._settings.name,
            "object": "model",
            "created": 0,
            "owned_by": "judge-decoding",
            "judge_decoding": self._settings.judging,
        }

    def _no_model(self, name: str) -> None:
        message = f"model: there is no {name[:200]!r}; this server has {self._settings.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")

    async def _health(self, request: web.Request) -> web.Response:
        """200 once the ensemble is ready."""
        if not await self._client.is_ready():
            raise ApiError(503, "the server is starting, or ends", retry_after_s=1)
        return reply({"status": "ok"})

    async def _metrics(self, request: web.Request) -> web.Response:
        """Points to the metrics' own port."""
        host = urlsplit(f"//{request.host}").hostname or "127.0.0.1"
        host = f"[{host}]" if ":" in host else host
        target = f"http://{host}:{self._settings.metrics_port}/metrics"
        return web.Response(status=307, headers={"Location": target})

    async def _openapi(self, request: web.Request) -> web.Response:
        return reply(description(self._settings.name))

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(STATIC / "index.html")


async def _page_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    if request.path == "/" or request.path.startswith("/static/"):
        response.headers.update(_PAGE_HEADERS)


def reply(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=_JSON.encode(document),
        status=status,
        headers=headers,
        content_type="application/json",
    )


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in OpenAI's shape. One within a body ends the connection, which has its rest."""
    try:
        return await handler(request)
    except ApiError as error:
        found = error
    except Refusal as error:
        found = ApiError(error.status, str(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        found = ApiError(error.status, f"{request.method} {request.path[:200]}: {error.reason}")
        found.headers |= {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    response = reply(found.body(), found.status, found.headers)
    if request.can_read_body and not request.content.at_eof():
        response.force_close()
    return response


async def run(settings: Settings, sock: socket.socket) -> None:
    token, tls = "", None
    if settings.token_file is not None:
        token = access.read_token(Path(settings.token_file))
    client_access = Access(token=token)
    if settings.tls is not None:
        certificate, key, ca, name = settings.tls
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        client_access = Access(ca, token, server_name=name)
    async with AsyncJudgeClient(settings.grpc, access=client_access) as client:
        app = Door(settings, token, client).application()
        await listen(sock, app, MAX_CONNECTIONS, tls)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--openai-fd", type=int, required=True, help="A bound socket.")
    parser.add_argument("--settings", required=True, help="JSON (`Settings`).")
    parser.add_argument("--launcher", type=int, required=True, help="The pid to end with.")
    # The launcher ends this process, last of all; a signal to the whole group is not for it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    arguments = parser.parse_args()
    become_child(signal.SIGKILL)
    if os.getppid() != arguments.launcher:  # it has ended meanwhile
        return
    settings = msgspec.json.decode(arguments.settings, type=Settings)
    with suppress(KeyboardInterrupt):
        asyncio.run(run(settings, socket.socket(fileno=arguments.openai_fd)))


if __name__ == "__main__":
    main()
