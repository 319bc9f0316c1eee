"""Takes sockets away from this process and its children, with a seccomp filter (seccomp(2)).

A child process executes this file's text, so it imports nothing of the package. No privilege is
needed. The filter refuses `socket`, `connect` and `io_uring_setup`, which can also open sockets.
"""

from __future__ import annotations

import ctypes
import platform
import struct

_ARCHITECTURES = {
    "x86_64": (0xC000003E, (41, 42, 425)),
    "aarch64": (0xC00000B7, (198, 203, 425)),
}
"""Machine -> its AUDIT_ARCH, and the numbers of socket, connect and io_uring_setup."""
_X32 = 0x40000000
"""Bit of the system calls of x86_64's second interface, x32."""
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: EPERM
_SET_SECCOMP, _NO_NEW_PRIVILEGES, _FILTER = 22, 38, 2


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def take_network_away() -> None:
    """Refuse new sockets from now on. OSError if this system cannot."""
    if platform.system() != "Linux" or platform.machine() not in _ARCHITECTURES:
        raise OSError("no seccomp filter for this system")
    architecture, refused = _ARCHITECTURES[platform.machine()]
    steps = [
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_AT_LEAST, len(refused) + 1, 0, _X32),
        *((_EQUAL, len(refused) - n, 0, number) for n, number in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), code)
    if (
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0
        or libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) != 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")
