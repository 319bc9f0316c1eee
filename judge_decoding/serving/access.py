"""Who may ask the server for what: TLS, a token, and Triton's administration shut.

Triton checks a header's value by its own options `--grpc-restricted-protocol` and
`--http-restricted-api`, which name groups of its interface. Health stays open in any case: probes
bring nothing.
"""

from __future__ import annotations

import secrets
import string

from judge_client.connection import Access
from judge_decoding.config import ServerConfig
from judge_decoding.errors import UserError

ADMINISTRATION = ("shared-memory", "model-repository", "trace", "logging")
"""Nobody's business: with these a client maps memory of this host, or loads and unloads models."""
USE = ("inference", "metadata", "model-config", "statistics")
"""For whoever has the token, where there is one."""
TOKEN = "judge-token"
"""The HTTP header; for gRPC it is `judge_client.connection.TOKEN`."""
_SAFE = frozenset(string.ascii_letters + string.digits + "-._~+/=")


def arguments(server: ServerConfig) -> list[str]:
    """Triton's options; UserError for a missing file. Nobody is told the administration's key."""
    groups = {ADMINISTRATION: ("judge-administration", secrets.token_hex(16))}
    if value := token(server):
        groups[USE] = (TOKEN, value)
    options = []
    for names, (key, value) in groups.items():
        setting = f"{','.join(names)}:{key}={value}"
        options += [f"--grpc-restricted-protocol={setting}", f"--http-restricted-api={setting}"]
    if tls := server.tls:
        for name, path in (("certificate", tls.certificate), ("key", tls.key), ("ca", tls.ca)):
            if not path.is_file():
                raise UserError(f"server.tls.{name}: no file {path}")
        options += [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={tls.certificate}",
            f"--grpc-server-key={tls.key}",
        ]
    return options


def http_host(server: ServerConfig) -> str:
    """Where HTTP, which Triton serves in the clear, listens."""
    return server.host if server.tls is None else "127.0.0.1"


def token(server: ServerConfig) -> str:
    """The token that requests must bring, "" where none is asked for."""
    path = server.token_file
    if path is None:
        return ""
    try:
        value = (path.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"server.token_file: cannot read {path} ({error})") from None
    if len(value) < 16 or not _SAFE.issuperset(value):
        raise UserError(
            f"server.token_file: the first line of {path} must be at least 16 letters and digits; "
            "write one with `openssl rand -hex 32`"
        )
    return value


def http_headers(server: ServerConfig) -> dict[str, str]:
    value = token(server)
    return {TOKEN: value} if value else {}


def client_access(server: ServerConfig) -> Access:
    """TLS and token for our own calls to this server; nothing comes from the environment."""
    if server.tls is None:
        return Access(token=token(server))
    return Access(server.tls.ca, token(server), server_name=server.tls.name)
