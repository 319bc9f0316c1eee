"""AsyncJudgeClient: JudgeClient for asyncio. Many streams share one thread and one connection.

async with AsyncJudgeClient("127.0.0.1:8001") as client:
    requests = [GenerateRequest(text, chat=True) for text in texts]
    answers = await asyncio.gather(*map(client.generate, requests))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, TypeVar

from judge_client.errors import JudgeClientError, ServerBusy
from judge_client.exchange import AGAIN_S, BaseClient, Exchange
from judge_client.wire import Answer, Chunk, GenerateRequest, Outputs, read_outputs

T = TypeVar("T")


class AsyncJudgeClient(BaseClient):
    """A connection to a server, for the event loop in which it was made. See `JudgeClient`."""

    _closed = False

    @staticmethod
    def _grpc() -> Any:
        import grpc.aio

        return grpc.aio

    async def __aenter__(self) -> AsyncJudgeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def generate(self, request: GenerateRequest, *, request_id: str | None = None) -> Answer:
        """The whole answer. Cancelling the task cancels on the server."""
        answer = Answer()
        async for chunk in self._responses(self._generation(request, request_id, streamed=False)):
            answer.add(chunk)
        return answer

    def stream(
        self, request: GenerateRequest, *, request_id: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes. Closing the iterator, or leaving it, cancels on the server.

        The event loop closes an iterator that was left only when it gets to it; `aclose()` does so
        at once.
        """
        return self._responses(self._generation(request, request_id, streamed=True))

    def infer(
        self, message: Any, read: Callable[[Outputs], T], *, streamed: bool
    ) -> AsyncGenerator[T, None]:
        """The responses to a message of one's own (`wire.infer_message`), each as `read` makes it.
        Closing the iterator cancels, as with `stream`."""
        return self._responses(self._exchange(message, read, streamed=streamed))

    async def is_ready(self) -> bool:
        """Whether a server answers and has the model ready."""
        import grpc
        from tritonclient.grpc import service_pb2

        wanted = service_pb2.ModelReadyRequest(name=self.model)
        metadata = self._access.metadata("")
        try:
            answer = await self._stub.ModelReady(wanted, timeout=self.control_s, metadata=metadata)
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    async def cancel(self, request_id: str) -> None:
        """End a running request: its last chunk then says `cancelled`. Unknown ids are no error."""
        await self._cancel(request_id, self.control_s)

    async def _cancel(self, request_id: str, limit_s: float) -> None:
        import grpc

        order = self._cancellation(request_id, limit_s)
        while True:
            try:
                async for response in self._call(order.message, order.begin()):
                    read_outputs(response)
                return
            except (grpc.RpcError, ServerBusy) as error:
                order.failed(error)
            await asyncio.sleep(AGAIN_S)

    async def _responses(self, exchange: Exchange[T]) -> AsyncGenerator[T, None]:
        import grpc

        call = self._call(exchange.message, self.timeout)
        try:
            async for response in call:
                found = exchange.receive(response)
                if found is not None:
                    yield found
                if exchange.final:
                    return
            raise exchange.cut_short()
        except grpc.RpcError as error:
            raise exchange.failed(error) from None
        except asyncio.CancelledError:
            if not self._closed:
                raise
            # gRPC raises this for a closed channel; it would look like a cancelled task.
            raise JudgeClientError(f"{self.url}: the client was closed", "CANCELLED") from None
        finally:
            await self._end(call, exchange)

    async def _end(self, call: Any, exchange: Exchange[Any]) -> None:
        """See `JudgeClient._end`."""
        import grpc

        if self._closed:
            return

        async def read() -> None:
            async for _ in call:
                pass

        # The errors of a server that has gone, and of a stream that does not end.
        with suppress(JudgeClientError, grpc.RpcError, asyncio.TimeoutError):
            if exchange.cancel_s:
                await self._cancel(exchange.request_id, exchange.cancel_s)
            await asyncio.wait_for(read(), self.control_s)
