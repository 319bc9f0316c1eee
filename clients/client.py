"""JudgeClient: answers of a served deployment, whole or as a stream, and their cancellation.

    with JudgeClient("127.0.0.1:8001") as client:
        answer = client.generate(Request("What is the capital of France?", chat=True))
        for chunk in client.stream(Request("Once upon a time", max_tokens=64)):
            print(chunk.text, end="", flush=True)

One client serves any number of threads and concurrent streams: every request is a gRPC stream of
its own on one connection. tritonclient's own client class allows one stream an object, drops the
request id of an error and leaves a thread behind when a stream is cut short, so that its generated
stubs are used instead.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import count
from threading import Timer
from typing import Any

from clients.access import Access
from clients.wire import (
    MODEL,
    Answer,
    Chunk,
    JudgeClientError,
    Request,
    ServerBusy,
    infer_request,
    read_response,
    stop_request,
)

CONTROL_S = 10.0
"""Seconds that the server gets for anything that is not an answer: readiness, a cancellation."""
REACH_S = 2.0
"""The same after a connection was lost, when there may be no server any more."""
AGAIN_S = 0.2
"""Before a cancellation is sent again."""

MESSAGE_BYTES = 2**31 - 1
CHANNEL = [
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
]


class JudgeClient:
    """A connection to a server. Close it, or use it in a `with`."""

    def __init__(
        self,
        url: str,
        *,
        model: str = MODEL,
        timeout: float | None = None,
        access: Access | None = None,
    ) -> None:
        """url      HOST:PORT of Triton's gRPC endpoint
        timeout  seconds that a whole answer may take; None waits for ever
        access   TLS and token; None takes them from the environment
        """
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        self.url = check_url(url)
        self.model = model
        self.timeout = timeout
        self._access = access or Access()
        self._channel = self._access.channel(grpc, url, CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def check(self) -> None:
        """JudgeClientError unless a server is there and serves the model."""
        import grpc
        from tritonclient.grpc import service_pb2

        try:
            wanted = service_pb2.ModelReadyRequest(name=self.model)
            ready = self._stub.ModelReady(wanted, timeout=CONTROL_S).ready
        except grpc.RpcError as error:
            raise call_error(error, self.url) from None
        if not ready:
            raise JudgeClientError(f"{self.url}: the server has no model {self.model!r} ready")

    def generate(self, request: Request, *, request_id: str | None = None) -> Answer:
        """The whole answer."""
        return collect(self._responses(request, request_id, stream=False))

    def stream(
        self, request: Request, *, request_id: str | None = None
    ) -> Generator[Chunk, None, None]:
        """The answer as it comes. Closing the iterator, or leaving it, cancels on the server."""
        return self._responses(request, request_id, stream=True)

    def cancel(self, request_id: str) -> None:
        """End a running request from any thread: its last chunk then says `cancelled`.

        An id that is not running, or no longer, is no error.
        """
        self._cancel(request_id, CONTROL_S)

    def _cancel(self, request_id: str, limit_s: float) -> None:
        import grpc

        end = time.monotonic() + limit_s
        message = stop_request(request_id, model=self.model)
        how = {"metadata": self._access.metadata(request_id)}
        for tries in count(1):
            left = end - time.monotonic()
            try:
                for response in self._stub.ModelStreamInfer(iter([message]), timeout=left, **how):
                    read_response(response)
                return
            except grpc.RpcError as error:
                # A connection that was just lost fails what is sent on it; the next one is new.
                if error.code() is not grpc.StatusCode.UNAVAILABLE or tries > 1:
                    raise call_error(error, self.url, limit_s) from None
            except ServerBusy:  # its request waits in a line that is full
                if left < 2 * AGAIN_S:
                    raise
            time.sleep(AGAIN_S)

    def _responses(
        self, request: Request, request_id: str | None, *, stream: bool
    ) -> Generator[Chunk, None, None]:
        import grpc

        number = request_id or new_request_id()
        message = infer_request(request, number, stream=stream, model=self.model)
        call: Any = self._stub.ModelStreamInfer(
            iter([message]), timeout=self.timeout, metadata=self._access.metadata(number)
        )
        cancel_s = CONTROL_S  # for its cancellation; 0: it has ended, as far as is known
        started = not stream  # then there is one response, which would have told
        try:
            for response in call:
                started = True
                try:
                    chunk, final = read_response(response)
                except JudgeClientError:
                    cancel_s = 0.0
                    raise
                cancel_s = 0.0 if final else CONTROL_S
                if chunk is not None:
                    yield chunk
                if final:
                    return
            raise JudgeClientError(f"{self.url}: the stream ended before its last response")
        except grpc.RpcError as error:
            cancel_s = cancel_time(error, started=started)
            raise call_error(error, self.url, self.timeout) from None
        finally:
            self._end(call, number, cancel_s)

    def _end(self, call: Any, request_id: str, cancel_s: float) -> None:
        """Leave nothing behind on the server; what ended the stream is what is reported.

        A stream is read to its end and not cut: Triton counts a request whose stream was cut in the
        moment of its last response as running, and waits for it when it shuts down.
        """
        import grpc

        # The server has gone; the client is closed.
        with suppress(JudgeClientError, grpc.RpcError, ValueError):
            if cancel_s:
                self._cancel(request_id, cancel_s)
            limit = Timer(CONTROL_S, call.cancel)
            limit.start()
            try:
                for _ in call:
                    pass
            finally:
                limit.cancel()


def collect(chunks: Iterator[Chunk]) -> Answer:
    answer = Answer()
    for chunk in chunks:
        answer.add(chunk)
    return answer


def new_request_id() -> str:
    return uuid.uuid4().hex


def check_url(url: str) -> str:
    """`url` where it is HOST:PORT; gRPC would take `localhost` for port 443 and wait."""
    host, _, port = url.rpartition(":")
    if not re.fullmatch(r"\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+", host) or not port.isdecimal():
        raise JudgeClientError(f"url: {url!r} is not HOST:PORT, such as 127.0.0.1:8001")
    if not 0 < int(port) < 65536:
        raise JudgeClientError(f"url: {port} is no port")
    return url


def cancel_time(error: Any, *, started: bool) -> float:
    """Seconds for the cancellation of a request whose call failed; 0 where it does not run.

    A lost connection says nothing of the server: without a cancellation the answer might run to
    its end for nobody.
    """
    status = error.code().name
    if status in ("DEADLINE_EXCEEDED", "CANCELLED"):
        return CONTROL_S
    return REACH_S if status == "UNAVAILABLE" and started else 0.0


def call_error(error: Any, url: str, timeout: float | None = None) -> JudgeClientError:
    """A failed gRPC call in one line; `timeout` is that of an answer."""
    status, details = error.code().name, error.details() or "no details"
    if status == "UNAVAILABLE":
        details = f"no server answers there ({details})"
    elif status == "DEADLINE_EXCEEDED":
        details = f"no answer within {CONTROL_S if timeout is None else timeout:g} s"
    return JudgeClientError(f"{url}: {details}", status)
