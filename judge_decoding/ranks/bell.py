"""A bell beside a message: wakes a rank of the same host that sleeps between two looks.

MPI cannot wake a process that waits without burning a core. So a sender also drops one byte into
the receiver's datagram socket (Linux's abstract Unix names: no file, no network), which cuts the
receiver's sleep short. The byte carries nothing. Lost, refused or never sent, it costs the rest of
that sleep; the message itself goes through MPI.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import time


class Bell:
    """This rank's bell. `address` is "" where there are none (not Linux): `wait` then sleeps."""

    def __init__(self) -> None:
        self.address = ""
        self._socket: socket.socket | None = None
        with contextlib.suppress(OSError, AttributeError):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            made.setblocking(False)
            name = f"judge-decoding-{secrets.token_hex(8)}"
            made.bind("\0" + name)
            if made.fileno() < 1024:  # select's limit
                self._socket, self.address = made, name

    def ring(self, address: str) -> None:
        """Wake the rank whose bell has this address, if it is there and asleep."""
        if self._socket is not None and address:
            with contextlib.suppress(OSError):  # gone, or rung ten times already
                self._socket.sendto(b"!", "\0" + address)

    def wait(self, seconds: float) -> bool:
        """Sleep, or less long where somebody rings: whether somebody did."""
        if self._socket is None:
            time.sleep(seconds)
            return False
        if not select.select([self._socket], [], [], seconds)[0]:
            return False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
        return True
