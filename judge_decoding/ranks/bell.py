"""The bell wakes a rank on the same host that sleeps while it waits for a message.

MPI cannot wake a waiting process that does not spin on a core. So the sender of a message also
sends one byte to the receiver's datagram socket (an abstract Unix name of Linux: no file, no
network), which ends the receiver's sleep. The byte carries no information; the message itself goes
through MPI. If the byte is lost, refused or never sent, the receiver only sleeps to the end.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import time


class Bell:
    """This rank's bell. Without support (not Linux), `address` is "" and `wait` only sleeps."""

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
            with contextlib.suppress(OSError):  # the rank is gone, or its socket is full
                self._socket.sendto(b"!", "\0" + address)

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds` or until the bell rings; return whether it rang."""
        if self._socket is None:
            time.sleep(seconds)
            return False
        if not select.select([self._socket], [], [], seconds)[0]:
            return False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
        return True
