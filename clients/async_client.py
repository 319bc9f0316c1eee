"""AsyncJudgeClient: JudgeClient for asyncio. Many streams share one thread and one connection.

async with AsyncJudgeClient("127.0.0.1:8001") as client:
    requests = [Request(text, chat=True) for text in texts]
    answers = await asyncio.gather(*map(client.generate, requests))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from clients.access import Access
from clients.client import (
    CHANNEL,
    CONTROL_S,
    call_error,
    check_url,
    new_request_id,
)
from clients.wire import (
    MODEL,
    Answer,
    Chunk,
    JudgeClientError,
    Request,
    infer_request,
    read_response,
    stop_request,
)


class AsyncJudgeClient:
    """A connection to a server, for the event loop it was made in."""

    def __init__(
        self,
        url: str,
        *,
        model: str = MODEL,
        timeout: float | None = None,
        access: Access | None = None,
    ) -> None:
        """See `JudgeClient`."""
        import grpc.aio
        from tritonclient.grpc import service_pb2_grpc

        self.url = check_url(url)
        self.model = model
        self.timeout = timeout
        self._closed = False
        self._access = access or Access()
        self._channel = self._access.channel(grpc.aio, url, CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> AsyncJudgeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def generate(self, request: Request, *, request_id: str | None = None) -> Answer:
        """The whole answer. Cancelling the task cancels on the server."""
        answer = Answer()
        async for chunk in self._responses(request, request_id, stream=False):
            answer.add(chunk)
        return answer

    def stream(
        self, request: Request, *, request_id: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes. Closing the iterator, or leaving it, cancels on the server.

        An iterator that is left is closed when the event loop comes to it; `aclose()` does it now.
        """
        return self._responses(request, request_id, stream=True)

    async def cancel(self, request_id: str) -> None:
        """End a running request: its last chunk then says `cancelled`. Unknown ids are no error."""
        import grpc

        message = stop_request(request_id, model=self.model)
        try:
            async for _ in self._stub.ModelStreamInfer(
                iter([message]), timeout=CONTROL_S, metadata=self._access.metadata(request_id)
            ):
                pass
        except grpc.RpcError as error:
            raise call_error(error, self.url) from None

    async def _responses(
        self, request: Request, request_id: str | None, *, stream: bool
    ) -> AsyncGenerator[Chunk, None]:
        import grpc

        number = request_id or new_request_id()
        message = infer_request(request, number, stream=stream, model=self.model)
        call: Any = self._stub.ModelStreamInfer(
            iter([message]), timeout=self.timeout, metadata=self._access.metadata(number)
        )
        running = True  # on the server, as far as is known
        try:
            async for response in call:
                try:
                    chunk, final = read_response(response)
                except JudgeClientError:
                    running = False
                    raise
                running = not final
                if chunk is not None:
                    yield chunk
                if final:
                    return
            raise JudgeClientError(f"{self.url}: the stream ended before its last response")
        except grpc.RpcError as error:
            running = error.code() in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.CANCELLED,
            )
            raise call_error(error, self.url, self.timeout) from None
        except asyncio.CancelledError:
            if not self._closed:
                raise
            # grpc's word for it, which would look like a cancelled task.
            raise JudgeClientError(f"{self.url}: the client was closed", "CANCELLED") from None
        finally:
            await self._end(call, number, running=running)

    async def _end(self, call: Any, request_id: str, *, running: bool) -> None:
        """See `JudgeClient._end`."""
        import grpc

        if self._closed:
            return

        async def read() -> None:
            async for _ in call:
                pass

        # The server has gone; the stream does not end.
        with suppress(JudgeClientError, grpc.RpcError, asyncio.TimeoutError):
            if running:
                await self.cancel(request_id)
            await asyncio.wait_for(read(), CONTROL_S)
