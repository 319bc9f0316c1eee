"""Access to the server: TLS, a token, and Triton's administration closed to everyone.

Triton's options `--grpc-restricted-protocol` and `--http-restricted-api` name groups of its
interface that require a header with a given value. Health is always open, since probes send no
token.
"""

from __future__ import annotations

import secrets
import string
from pathlib import Path

from judge_client.connection import Access
from judge_decoding.config import ServerConfig
from judge_decoding.errors import UserError

ADMINISTRATION = ("shared-memory", "model-repository", "trace", "logging")
"""Closed: these let a client map memory of this host, or load and unload models."""
USE = ("inference", "metadata", "model-config", "statistics")
"""Requires the token, if the deployment has one."""
TOKEN = "judge-token"
"""The HTTP header; for gRPC it is `judge_client.connection.TOKEN`."""
_SAFE = frozenset(string.ascii_letters + string.digits + "-._~+/=")


def arguments(server: ServerConfig) -> list[str]:
    """Triton's options; UserError for a missing file. The administration's key is kept secret."""
    groups = {ADMINISTRATION: ("judge-administration", secrets.token_hex(16))}
    if value := token(server):
        groups[USE] = (TOKEN, value)
    options = []
    for names, (key, value) in groups.items():
        setting = f"{','.join(names)}:{key}={value}"
        options.append(f"--grpc-restricted-protocol={setting}")
        if server.http_port is not None:
            options.append(f"--http-restricted-api={setting}")
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
    """The address for HTTP: loopback if TLS is on, since HTTP is not encrypted."""
    return server.host if server.tls is None else "127.0.0.1"


def reachable(host: str) -> str:
    """An address of this host at which a server that listens on `host` answers."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def token(server: ServerConfig) -> str:
    """The token that requests must send, "" if none is required. UserError for a bad token file."""
    return "" if server.token_file is None else read_token(server.token_file)


def read_token(path: Path) -> str:
    """The token in a `server.token_file`; UserError if it holds none."""
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


def client_access(server: ServerConfig) -> Access:
    """TLS and token for our own calls to this server; nothing comes from the environment."""
    if server.tls is None:
        return Access(token=token(server))
    return Access(server.tls.ca, token(server), server_name=server.tls.name)
