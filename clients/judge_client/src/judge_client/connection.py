"""How a client reaches a server: its address, TLS, a token, and no proxy.

The commands take TLS and token from two environment variables:

JUDGE_CA     PEM file of the root that signed the server's certificate: the connection uses TLS
JUDGE_TOKEN  the token of `server.token_file`; like the server, we read its first line only

No connection goes through a proxy of the environment (`http_proxy`): a proxy would see the token.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from judge_client.echo import cut, shown
from judge_client.errors import JudgeClientError

TOKEN = "triton-grpc-protocol-judge-token"
"""The gRPC metadata key of the token."""
REQUEST_ID = "x-request-id"
"""Shows the request's id to a load balancer: a cancellation must reach the same server."""
DIRECT = build_opener(ProxyHandler({}))
"""Opens HTTP URLs without a proxy; for the metrics page."""

MESSAGE_BYTES = 2**31 - 1
CHANNEL = [
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
]
"""Options of every channel."""


class Access:
    """TLS and token of a connection."""

    def __init__(
        self,
        ca: Path | str | None = None,
        token: str | None = None,
        *,
        server_name: str | None = None,
    ) -> None:
        """ca           PEM file of the root certificate; None connects without TLS
        token        of the server's `token_file`; None and "" send none
        server_name  the name in the server's certificate, where it differs from the address

        JudgeClientError for a token that a header cannot hold.
        """
        self._ca = ca
        self._token = _header_value(token or "")
        self._server_name = server_name

    @classmethod
    def from_environment(cls) -> Access:
        """The access that JUDGE_CA and JUDGE_TOKEN describe."""
        return cls(os.environ.get("JUDGE_CA") or None, os.environ.get("JUDGE_TOKEN"))

    def channel(self, grpc: Any, url: str) -> Any:
        """A channel of the module `grpc` or `grpc.aio`. JudgeClientError for an unreadable `ca`."""
        if self._ca is None:
            return grpc.insecure_channel(url, options=CHANNEL)
        from grpc import ssl_channel_credentials

        try:
            root = Path(self._ca).read_bytes()
        except OSError as error:
            raise JudgeClientError(f"ca: cannot read {self._ca} ({error.strerror})") from None
        options = list[tuple[str, Any]](CHANNEL)
        if self._server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._server_name))
        return grpc.secure_channel(url, ssl_channel_credentials(root), options=options)

    def metadata(self, request_id: str) -> list[tuple[str, str]]:
        """Metadata of a call. An id that a header cannot hold is left out; the request has it."""
        found = [(TOKEN, self._token)] if self._token else []
        if request_id.isascii() and request_id.isprintable():
            found.append((REQUEST_ID, request_id))
        return found


def check_address(address: str, what: str = "url") -> str:
    """`address` if it is HOST:PORT; otherwise a JudgeClientError that begins with `what`.

    gRPC would take `localhost` for port 443 and wait.
    """
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+", host) or not port.isdecimal():
        raise JudgeClientError(f"{what}: {shown(address)} is not HOST:PORT, such as 127.0.0.1:8001")
    if not 0 < int(port) < 65536:
        raise JudgeClientError(f"{what}: {cut(port)} is no port")
    return address


def _header_value(token: str) -> str:
    """The first line of a token: files and Kubernetes' secrets end with a newline."""
    value = (token.strip().splitlines() or [""])[0].rstrip()
    for place, character in enumerate(value, 1):
        if not " " <= character <= "~":  # the message must not show the token itself
            raise JudgeClientError(
                f"token: character {place} of it ({character!a}) cannot be sent; give JUDGE_TOKEN "
                "the first line of the server's token_file"
            )
    return value
