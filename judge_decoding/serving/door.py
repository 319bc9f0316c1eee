"""Whether the loop's queue is full, for the preprocessing, which can then refuse at once.

Under overload most requests are refused. Each that reaches the loop's process costs milliseconds
of its interpreter lock, which the rounds need. So the loop shows in shared memory whether it would
refuse, and the preprocessing reads that before it tokenizes.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from judge_decoding.serving.admission import Busy

NAME = "door"
REASONS = ("server.max_queue", "server.max_wait_s")
_SHOWN = struct.Struct("<qqd")
"""Written by the loop: 1 + the reason's place, or 0; requests that wait; seconds to wait."""
_REFUSED = struct.Struct("<q")
"""Written by the preprocessing, in a cache line of its own: requests that it has refused."""
_REFUSED_AT, _SIZE = 64, 128


class Door:
    """One side of the file. The loop calls `show` and `count_refused`, the preprocessing `check`.

    Each value has one writer. A reader that sees half of an update refuses, or lets in, one request
    with last moment's numbers; the loop decides about those that are let in.
    """

    def __init__(self, folder: Path) -> None:
        """folder  the run folder; whoever comes first makes the file"""
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, _SIZE)
            self._memory = mmap.mmap(handle, _SIZE)
        finally:
            os.close(handle)
        self._counted = self._refused()

    def show(self, busy: Busy | None) -> None:
        """Show what any further request would be refused with; None opens the door."""
        if busy is None:
            _SHOWN.pack_into(self._memory, 0, 0, 0, 0.0)
        else:
            reason = 1 + REASONS.index(busy.why)
            _SHOWN.pack_into(self._memory, 0, reason, busy.waiting, busy.retry_after_s)

    def check(self) -> None:
        """Busy, and counted, if the loop would refuse."""
        reason, waiting, retry_after_s = _SHOWN.unpack_from(self._memory)
        if reason:
            _REFUSED.pack_into(self._memory, _REFUSED_AT, self._refused() + 1)
            raise Busy(waiting, retry_after_s, REASONS[reason - 1])

    def count_refused(self) -> int:
        """Requests refused by `check` since the last call."""
        before, self._counted = self._counted, self._refused()
        return self._counted - before

    def _refused(self) -> int:
        return int(_REFUSED.unpack_from(self._memory, _REFUSED_AT)[0])
