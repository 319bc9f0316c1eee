"""How a client reaches a server that is not open to all: TLS, a token, a load balancer.

Arguments of the clients, or for every command at once two variables:

JUDGE_CA     PEM file of the root that signed the server's certificate: the connection uses TLS
JUDGE_TOKEN  the token of `server.token_file`; as the server reads its file: the first line

None of it goes through a proxy of the environment (`http_proxy`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from clients.wire import JudgeClientError

TOKEN = "triton-grpc-protocol-judge-token"
REQUEST_ID = "x-request-id"
"""The request's id where a balancer sees it: a cancellation must find the same server."""
DIRECT = build_opener(ProxyHandler({}))
"""HTTP without a proxy, for the metrics."""


class Access:
    """What a connection and each of its calls bring along; see the module."""

    def __init__(self, ca: Path | str | None = None, token: str | None = None) -> None:
        self._ca = ca or os.environ.get("JUDGE_CA")
        self._token = _header_value(token or os.environ.get("JUDGE_TOKEN", ""))

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


def _header_value(token: str) -> str:
    """Without the newline that files and Kubernetes' secrets end with; "" for none."""
    value = (token.strip().splitlines() or [""])[0].rstrip()
    for place, character in enumerate(value, 1):
        if not " " <= character <= "~":  # the value itself is nobody's business
            raise JudgeClientError(
                f"token: character {place} of it ({character!a}) cannot be sent; give JUDGE_TOKEN "
                "the first line of the server's token_file"
            )
    return value
