"""How a client reaches a server that is not open to all: TLS, a token, a load balancer.

Arguments of the clients, or for every command at once two variables:

JUDGE_CA     PEM file of the root that signed the server's certificate: the connection uses TLS
JUDGE_TOKEN  the token of `server.token_file`
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clients.wire import JudgeClientError

TOKEN = "triton-grpc-protocol-judge-token"
REQUEST_ID = "x-request-id"
"""The request's id where a balancer sees it: a cancellation must find the same server."""


class Access:
    """What a connection and each of its calls bring along; see the module."""

    def __init__(self, ca: Path | str | None = None, token: str | None = None) -> None:
        self._ca = ca or os.environ.get("JUDGE_CA")
        self._token = token or os.environ.get("JUDGE_TOKEN")

    def channel(self, grpc: Any, url: str, options: list[tuple[str, Any]]) -> Any:
        """A channel of `grpc`, or of `grpc.aio`."""
        from grpc import ssl_channel_credentials

        if self._ca is None:
            return grpc.insecure_channel(url, options=options)
        try:
            root = Path(self._ca).read_bytes()
        except OSError as error:
            raise JudgeClientError(f"ca: cannot read {self._ca} ({error.strerror})") from None
        return grpc.secure_channel(url, ssl_channel_credentials(root), options=options)

    def metadata(self, request_id: str) -> list[tuple[str, str]]:
        """Of a call; an id that a header cannot hold stays in the request alone."""
        found = [(TOKEN, self._token)] if self._token else []
        if request_id.isascii() and request_id.isprintable():
            found.append((REQUEST_ID, request_id))
        return found
