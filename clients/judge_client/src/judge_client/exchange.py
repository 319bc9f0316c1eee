"""One request without its I/O. The sync and the async client drive the same objects.

Every request is a gRPC stream of its own, since Triton refuses unary calls to decoupled models.
tritonclient's client class allows one stream per object, drops the request id of an error and
leaves a thread behind when a stream is cut short, so we use its generated stubs instead.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from judge_client.connection import Access, check_address
from judge_client.errors import JudgeClientError, ServerBusy, call_error
from judge_client.wire import (
    MODEL,
    Chunk,
    GenerateRequest,
    Outputs,
    infer_request,
    read_chunk,
    read_outputs,
    stop_request,
)

CONTROL_S = 10.0
"""Seconds that the server gets for anything that is not an answer: readiness, a cancellation."""
REACH_S = 2.0
"""The same after a lost connection, when the server may be gone."""
AGAIN_S = 0.2
"""Seconds before a cancellation is sent again."""

T = TypeVar("T")


class Exchange(Generic[T]):
    """The state of one request from its first to its last response.

    message   the ModelInferRequest
    cancel_s  seconds that its cancellation may take once the stream is left; 0 where the server is
              known not to run it any more
    final     whether the last response has come
    """

    def __init__(
        self,
        message: Any,
        read: Callable[[Outputs], T],
        *,
        url: str,
        timeout: float | None,
        control_s: float,
        streamed: bool,
    ) -> None:
        self.message = message
        self.cancel_s = control_s
        self.final = False
        self._read = read
        self._url = url
        self._timeout = timeout
        self._control_s = control_s
        # A whole answer has one response, so that a lost connection may hide a running request.
        self._started = not streamed

    @property
    def request_id(self) -> str:
        return str(self.message.id)

    def receive(self, response: Any) -> T | None:
        """What a ModelStreamInferResponse carries, None for nothing.

        JudgeClientError where the server refused or ended the request.
        """
        self._started = True
        try:
            outputs, self.final = read_outputs(response)
        except JudgeClientError:
            self.cancel_s = 0.0
            raise
        self.cancel_s = 0.0 if self.final else self._control_s
        return None if outputs is None else self._read(outputs)

    def failed(self, error: Any) -> JudgeClientError:
        """The error to raise for a `grpc.RpcError`."""
        self.cancel_s = cancel_time(error, started=self._started, control_s=self._control_s)
        return call_error(error, self._url, self._timeout or self._control_s)

    def cut_short(self) -> JudgeClientError:
        """The error to raise where the stream ended and `final` is False."""
        return JudgeClientError(f"{self._url}: the stream ended before its last response")


class Cancellation:
    """A request that ends another one, sent again where that helps."""

    def __init__(self, message: Any, *, url: str, limit_s: float) -> None:
        self.message = message
        self._url = url
        self._limit_s = limit_s
        self._end = time.monotonic() + limit_s
        self._left = limit_s
        self._tries = 0

    def begin(self) -> float:
        """Count a try; the seconds that it may take."""
        self._tries += 1
        self._left = self._end - time.monotonic()
        return self._left

    def failed(self, error: Exception) -> None:
        """Raise a JudgeClientError unless the cancellation should be sent again after AGAIN_S.

        A connection that was just lost fails what is sent on it; the next one is new. A refusal
        because the queue is full passes, since cancellations wait in that queue too.
        """
        if isinstance(error, ServerBusy):
            if self._left < 2 * AGAIN_S:
                raise error
            return
        import grpc

        assert isinstance(error, grpc.RpcError)
        if error.code() is not grpc.StatusCode.UNAVAILABLE or self._tries > 1:
            raise call_error(error, self._url, self._limit_s) from None


class BaseClient:
    """Address, options and messages of a client; subclasses do the I/O."""

    def __init__(
        self,
        url: str,
        *,
        model: str = MODEL,
        timeout: float | None = None,
        access: Access | None = None,
        control_s: float = CONTROL_S,
    ) -> None:
        """url        HOST:PORT of Triton's gRPC endpoint
        timeout    seconds that a whole answer may take; None waits for ever
        access     TLS and token; None takes them from the environment
        control_s  seconds that the server gets for readiness and cancellations

        JudgeClientError for an address that is not HOST:PORT, an unreadable certificate or a token
        that cannot be sent.
        """
        from tritonclient.grpc import service_pb2_grpc

        self.url = check_address(url)
        self.model = model
        self.timeout = timeout
        self.control_s = control_s
        self._access = access or Access.from_environment()
        self._channel = self._access.channel(self._grpc(), url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    @staticmethod
    def _grpc() -> Any:
        """The module that makes channels: `grpc` or `grpc.aio`."""
        raise NotImplementedError

    def _call(self, message: Any, timeout: float | None) -> Any:
        """Send a ModelInferRequest; iterates over its responses."""
        metadata = self._access.metadata(message.id)
        return self._stub.ModelStreamInfer(iter([message]), timeout=timeout, metadata=metadata)

    def _generation(
        self, request: GenerateRequest, request_id: str | None, *, streamed: bool
    ) -> Exchange[Chunk]:
        number = request_id or new_request_id()
        message = infer_request(request, number, stream=streamed, model=self.model)
        return self._exchange(message, read_chunk, streamed=streamed)

    def _exchange(
        self, message: Any, read: Callable[[Outputs], T], *, streamed: bool
    ) -> Exchange[T]:
        return Exchange(
            message,
            read,
            url=self.url,
            timeout=self.timeout,
            control_s=self.control_s,
            streamed=streamed,
        )

    def _cancellation(self, request_id: str, limit_s: float) -> Cancellation:
        message = stop_request(request_id, model=self.model)
        return Cancellation(message, url=self.url, limit_s=limit_s)


def new_request_id() -> str:
    return uuid.uuid4().hex


def cancel_time(error: Any, *, started: bool, control_s: float = CONTROL_S) -> float:
    """Seconds for the cancellation of a request whose call failed; 0 where it does not run.

    A lost connection says nothing about the server: without a cancellation the answer might run to
    its end with nobody listening.
    """
    status = error.code().name
    if status in ("DEADLINE_EXCEEDED", "CANCELLED"):
        return control_s
    return min(REACH_S, control_s) if status == "UNAVAILABLE" and started else 0.0
