"""AsyncJudgeClient: JudgeClient for asyncio. Many streams share one thread and one connection.

async with AsyncJudgeClient("127.0.0.1:8001") as client:
    requests = [Request(text, chat=True) for text in texts]
    answers = await asyncio.gather(*map(client.generate, requests))
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import count
from typing import Any

from clients.access import Access
from clients.client import (
    AGAIN_S,
    CHANNEL,
    CONTROL_S,
    call_error,
    cancel_time,
    check_url,
    new_request_id,
)
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
        await self._cancel(request_id, CONTROL_S)

    async def _cancel(self, request_id: str, limit_s: float) -> None:
        """See `JudgeClient._cancel`."""
        import grpc

        end = time.monotonic() + limit_s
        message = stop_request(request_id, model=self.model)
        how = {"metadata": self._access.metadata(request_id)}
        for tries in count(1):
            left = end - time.monotonic()
            try:
                async for response in self._stub.ModelStreamInfer(
                    iter([message]), timeout=left, **how
                ):
                    read_response(response)
                return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or tries > 1:
                    raise call_error(error, self.url, limit_s) from None
            except ServerBusy:
                if left < 2 * AGAIN_S:
                    raise
            await asyncio.sleep(AGAIN_S)

    async def _responses(
        self, request: Request, request_id: str | None, *, stream: bool
    ) -> AsyncGenerator[Chunk, None]:
        import grpc

        number = request_id or new_request_id()
        message = infer_request(request, number, stream=stream, model=self.model)
        call: Any = self._stub.ModelStreamInfer(
            iter([message]), timeout=self.timeout, metadata=self._access.metadata(number)
        )
        cancel_s = CONTROL_S  # for its cancellation; 0: it has ended, as far as is known
        started = not stream  # then there is one response, which would have told
        try:
            async for response in call:
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
        except asyncio.CancelledError:
            if not self._closed:
                raise
            # grpc's word for it, which would look like a cancelled task.
            raise JudgeClientError(f"{self.url}: the client was closed", "CANCELLED") from None
        finally:
            await self._end(call, number, cancel_s)

    async def _end(self, call: Any, request_id: str, cancel_s: float) -> None:
        """See `JudgeClient._end`."""
        import grpc

        if self._closed:
            return

        async def read() -> None:
            async for _ in call:
                pass

        # The server has gone; the stream does not end.
        with suppress(JudgeClientError, grpc.RpcError, asyncio.TimeoutError):
            if cancel_s:
                await self._cancel(request_id, cancel_s)
            await asyncio.wait_for(read(), CONTROL_S)
