"""The ports of a server, held from before its start until after its end.

To bind a port and let it go again says only that it is free now: two servers that start in the same
second would both find it free. So a launcher also holds a lock for each port, an abstract Unix
socket. It belongs to the same network namespace as the port, is gone with its process, and leaves
no file.
"""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack

from judge_decoding.config import ServerConfig
from judge_decoding.errors import UserError


class Ports:
    """The locks of a server's ports. `with Ports(server):` holds them."""

    def __init__(self, server: ServerConfig) -> None:
        """UserError if two ports are the same, or if something else uses one."""
        names = {
            "http": server.http_port,
            "openai": server.openai_port,
            "grpc": server.grpc_port,
            "metrics": server.metrics_port,
        }
        ports = {name: port for name, port in names.items() if port is not None}
        if len(set(ports.values())) < len(ports):
            raise UserError(f"serve: the ports must differ; they are {ports}")
        with ExitStack() as held:
            for name, port in ports.items():
                held.enter_context(_lock(server.host, port, name))
                bind(server.host, port, name).close()
            self._held = held.pop_all()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


def owner(host: str, port: int) -> int | None:
    """The pid of the launcher that holds this port; None if there is none.

    It is 0 where the kernel does not say: the launcher is in another pid namespace, or was asked
    more often than its socket's backlog is long.
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(_name(host, port))
        except BlockingIOError:
            return 0
        except OSError:
            return None
        size = struct.calcsize("3i")  # pid, uid, gid
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[0])


def bind(host: str, port: int, name: str) -> socket.socket:
    """A listening socket; UserError if something else uses the port.

    name  of the option that chooses the port
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise _taken(host, port, name, error.strerror) from None
    return bound


def _lock(host: str, port: int, name: str) -> socket.socket:
    lock = socket.socket(socket.AF_UNIX)  # not inherited by the server's processes
    try:
        lock.bind(_name(host, port))
        lock.listen()
    except OSError as error:
        lock.close()
        pid = owner(host, port)
        whose = f"the server of process {pid}" if pid else "another server"
        reason = error.strerror if pid is None else f"{whose} has it"
        raise _taken(host, port, name, reason) from None
    return lock


def _taken(host: str, port: int, name: str, reason: str | None) -> UserError:
    return UserError(
        f"serve: cannot listen on {host}:{port} ({reason}); choose another --{name}-port"
    )


def _name(host: str, port: int) -> str:
    return f"\0judge-decoding-{host}:{port}"
