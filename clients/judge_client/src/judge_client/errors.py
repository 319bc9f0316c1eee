"""What can go wrong with a request, each error as one line."""

from __future__ import annotations

import re
from typing import Any


class JudgeClientError(Exception):
    """The server's own message, or why the server was not reached.

    status  the gRPC status where the call itself failed (`UNAVAILABLE`, `DEADLINE_EXCEEDED`),
            None where the server refused or ended the request (but see ServerStopping)
    """

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


class ServerBusy(JudgeClientError):
    """The server's queue is full. Nothing was started, and the same request may be sent again.

    queued         number of waiting requests
    retry_after_s  when the server expects to have room; wait at least this long, with jitter
    """

    def __init__(self, message: str, queued: int, retry_after_s: float) -> None:
        super().__init__(message)
        self.queued = queued
        self.retry_after_s = retry_after_s


class ServerStopping(JudgeClientError):
    """The server is shutting down. Another one may take the request, or this one once it is back.

    Its status is `UNAVAILABLE`, like that of a server that has gone, since the remedy is the same.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, "UNAVAILABLE")


_BUSY = re.compile(r"RESOURCE_EXHAUSTED: (\d+) requests .*try again in ([\d.]+) s")
_STOPPING = re.compile(r"server: it is shutting down|Server is stopping")
"""The decoding loop's words while it drains, and Triton's words after that."""


def refusal(message: str) -> JudgeClientError:
    """The error for a server's message."""
    if found := _BUSY.search(message):
        return ServerBusy(message, int(found[1]), float(found[2]))
    if _STOPPING.search(message):
        return ServerStopping(message)
    return JudgeClientError(message)


def plain(message: str) -> str:
    """A message of Triton's without the names of the models that it passed through.

    Its advice on shared memory is for whoever runs the server, and only where that is small.
    """
    message = re.sub(r"^in ensemble '[^']*', ", "", message.strip())
    if message.startswith("Failed to increase the shared memory pool size"):
        return "the server has no room for a request of this size; shorten it or try again"
    return re.sub(r"^Failed to process the request\(s\).*?, message: ", "", message, flags=re.S)


def call_error(error: Any, url: str, timeout: float) -> JudgeClientError:
    """The error for a failed gRPC call.

    error    a `grpc.RpcError`
    timeout  of the call, in seconds
    """
    status, details = error.code().name, error.details() or "no details"
    if status == "UNAVAILABLE":
        details = f"no server answers there ({details})"
    elif status == "DEADLINE_EXCEEDED":
        details = f"no answer within {timeout:g} s"
    return JudgeClientError(f"{url}: {details}", status)
