"""JudgeClient: answers of a served deployment, whole or streamed, and their cancellation.

    with JudgeClient("127.0.0.1:8001") as client:
        answer = client.generate(GenerateRequest("What is the capital of France?", chat=True))
        for chunk in client.stream(GenerateRequest("Once upon a time", max_tokens=64)):
            print(chunk.text, end="", flush=True)

One client serves any number of threads and concurrent streams over one connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from threading import Timer
from typing import Any, TypeVar

from judge_client.echo import shown
from judge_client.errors import JudgeClientError, ServerBusy, call_error
from judge_client.exchange import AGAIN_S, BaseClient, Exchange
from judge_client.wire import Answer, Chunk, GenerateRequest, Outputs, read_outputs

T = TypeVar("T")


class JudgeClient(BaseClient):
    """A connection to a server. Close it, or use it in a `with`."""

    @staticmethod
    def _grpc() -> Any:
        import grpc

        return grpc

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def check(self) -> None:
        """JudgeClientError unless a server answers and has the model ready."""
        import grpc
        from tritonclient.grpc import service_pb2

        try:
            wanted = service_pb2.ModelReadyRequest(name=self.model)
            ready = self._stub.ModelReady(wanted, timeout=self.control_s).ready
        except grpc.RpcError as error:
            raise call_error(error, self.url, self.control_s) from None
        if not ready:
            raise JudgeClientError(f"{self.url}: the server has no model {shown(self.model)} ready")

    def generate(self, request: GenerateRequest, *, request_id: str | None = None) -> Answer:
        """The whole answer. JudgeClientError where the server refuses, or is too late."""
        answer = Answer()
        for chunk in self._responses(self._generation(request, request_id, streamed=False)):
            answer.add(chunk)
        return answer

    def stream(
        self, request: GenerateRequest, *, request_id: str | None = None
    ) -> Generator[Chunk, None, None]:
        """The answer as it comes. Closing the iterator, or leaving it, cancels on the server."""
        return self._responses(self._generation(request, request_id, streamed=True))

    def infer(self, message: Any, read: Callable[[Outputs], T]) -> T:
        """Send a ModelInferRequest (`wire.infer_message`) and read its first response that has
        outputs. For models other than the ensemble."""
        responses = self._responses(self._exchange(message, read, streamed=False))
        found = list(responses)
        if not found:
            raise JudgeClientError(f"{self.url}: the answer has no outputs")
        return found[0]

    def cancel(self, request_id: str) -> None:
        """End a running request from any thread: its last chunk then says `cancelled`.

        An id that does not run, or no longer runs, is no error.
        """
        self._cancel(request_id, self.control_s)

    def _cancel(self, request_id: str, limit_s: float) -> None:
        import grpc

        order = self._cancellation(request_id, limit_s)
        while True:
            try:
                for response in self._call(order.message, order.begin()):
                    read_outputs(response)
                return
            except (grpc.RpcError, ServerBusy) as error:
                order.failed(error)
            time.sleep(AGAIN_S)

    def _responses(self, exchange: Exchange[T]) -> Generator[T, None, None]:
        import grpc

        call = self._call(exchange.message, self.timeout)
        try:
            for response in call:
                found = exchange.receive(response)
                if found is not None:
                    yield found
                if exchange.final:
                    return
            raise exchange.cut_short()
        except grpc.RpcError as error:
            raise exchange.failed(error) from None
        finally:
            self._end(call, exchange)

    def _end(self, call: Any, exchange: Exchange[Any]) -> None:
        """Leave nothing behind on the server; the caller reports what ended the stream.

        We read a stream to its end instead of cutting it: Triton counts a request whose stream is
        cut in the moment of its last response as running, and waits for it when it shuts down.
        """
        import grpc

        # The errors of a server that has gone, and of a client that is closed.
        with suppress(JudgeClientError, grpc.RpcError, ValueError):
            if exchange.cancel_s:
                self._cancel(exchange.request_id, exchange.cancel_s)
            limit = Timer(self.control_s, call.cancel)
            limit.start()
            try:
                for _ in call:
                    pass
            finally:
                limit.cancel()
