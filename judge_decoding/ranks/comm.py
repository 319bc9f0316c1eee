"""All use of MPI: typed messages and raw buffers between ranks, with bounded and cheap waits.

The module uses only point-to-point calls of the MPI standard, all from the thread that made the
`Comm`, so that both MPICH and Open MPI work. (TensorRT-LLM's own threads also use MPI:
`start_mpi`.)

MPI itself waits by spinning, so an idle rank would take a whole core from one that computes. Here a
wait polls instead: for a moment without a pause, then between sleeps. On the same host the sender's
`Bell` ends a sleep early. Without a bell, the sleeps grow with the time waited so far.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from judge_decoding.config.layout import Layout
from judge_decoding.ranks import codec, messages
from judge_decoding.ranks.bell import Bell
from judge_decoding.ranks.codec import MAX_BYTES, WireError
from judge_decoding.ranks.messages import Message

if TYPE_CHECKING:
    import torch

    from judge_decoding.config import Deployment

_CONTROL, _EXCHANGE = 1, 2  # tags
SPIN_S = 30e-6
_EXCHANGE_SPIN_S = 300e-6  # in the middle of a pass: the peers' parts are about to come
_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 50e-6, 1e-3
_RUNG_SLEEP_S = 50e-3  # until the bell rings: every poll takes a core from a rank that computes
_SLEEP_SHARE = 1 / 30  # of the time waited so far: how late a wake-up without a bell may be
_MPIEXEC_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
_ORPHAN_CHECK_S = 1.0


Received: TypeAlias = tuple[int, Message, int]
"""(rank, message, call)"""


class RankTimeout(RuntimeError):
    """Rank `rank` did not do its part in time."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank


def under_mpiexec() -> bool:
    """Whether an MPI launcher started this process; does not start MPI."""
    return any(name in os.environ for name in _MPIEXEC_VARIABLES)


def start_mpi(deployment: Deployment) -> None:
    """Join the MPI world, once every rank does; a second call does nothing.

    Call it before anything can fail: the ranks wait for each other here, where our time-outs do not
    apply, and only a rank that has joined also ends the others when it ends with an error.
    """
    import mpi4py

    # We finalize MPI ourselves. mpi4py would do it at interpreter exit on another thread, and after
    # an error it would wait for ranks that wait for us.
    mpi4py.rc.finalize = False
    # TensorRT-LLM's threads use MPI beside ours, in every mode (executorImpl.cpp).
    mpi4py.rc.thread_level = "multiple" if deployment.engine == "trtllm" else "serialized"
    from mpi4py import MPI  # noqa: F401


class Comm:
    """This process's connection to the other ranks. There is one per process."""

    def __init__(self, deployment: Deployment) -> None:
        start_mpi(deployment)
        from mpi4py import MPI

        self._mpi = MPI
        self._world = MPI.COMM_WORLD
        self._status = MPI.Status()
        self._thread = threading.get_ident()
        self._parent = os.getppid()
        self.rank = self._world.Get_rank()
        self.size = self._world.Get_size()
        self.host = socket.gethostname()
        self.layout: Layout | None = None
        """Set once the world is known to match the deployment; errors then name roles."""
        self.hosts: dict[int, str] = {self.rank: self.host}
        self.bells: dict[int, str] = {}
        """Addresses of the other ranks' bells, as they become known."""
        self._bell = Bell()
        self._last: dict[int, str] = {}

    @property
    def bell(self) -> str:
        """The address of this rank's own bell."""
        return self._bell.address

    def describe(self, rank: int) -> str:
        """`rank 3 (target 2 of 2) on host n1, last message: verify 71 sent`"""
        label = str(self.layout.place(rank)) if self.layout else f"rank {rank}"
        host, last = self.hosts.get(rank, "unknown"), self._last.get(rank, "none")
        return f"{label} on host {host}, last message: {last}"

    def send(self, to: int, data: bytearray, what: str, timeout_s: float) -> None:
        """Send an encoded message. RankTimeout if the rank does not take it in time."""
        self._check_thread()
        self._last[to] = f"{what} sent"
        request = self._world.Isend([data, self._mpi.BYTE], to, _CONTROL)
        if self._hears(to):
            self._bell.ring(self.bells[to])
        if not self._wait(request.Test, timeout_s):
            raise RankTimeout(to, f"{what} was not taken within {timeout_s:g} s")

    def receive(
        self, timeout_s: float | None, source: int | None = None, *, spin_s: float = SPIN_S
    ) -> Received | None:
        """The next message from `source`, or from any rank if `source` is None.

        timeout_s  None waits as long as the process's parent lives
        spin_s     seconds of polling before the first sleep

        Returns None if nothing came within `timeout_s`. WireError names the sender of a message
        that cannot be read, RankTimeout the sender of one that stops half-way.
        """
        self._check_thread()
        status, anyone = self._status, self._mpi.ANY_SOURCE
        wanted = anyone if source is None else source

        def arrived() -> bool:
            return bool(self._world.Iprobe(wanted, _CONTROL, status))

        senders = self.bells if source is None else [source]
        rung = all(map(self._hears, senders))
        if not self._wait(arrived, timeout_s, spin_s=spin_s, rung=rung):
            return None
        sender, size = status.Get_source(), status.Get_count(self._mpi.BYTE)
        if not 0 <= size <= MAX_BYTES:
            raise WireError(f"{self.describe(sender)}: {size:,} bytes exceed {MAX_BYTES:,}")
        data = bytearray(size)
        request = self._world.Irecv([data, self._mpi.BYTE], sender, _CONTROL)
        if not self._wait(request.Test, timeout_s):  # a large message still needs its sender
            raise RankTimeout(sender, f"the rest of a message is missing after {timeout_s:g} s")
        try:
            message, call = codec.decode(data)
        except WireError as error:
            raise WireError(f"{self.describe(sender)}: {error}") from None
        self._last[sender] = f"{messages.name(message)} {call} received"
        return sender, message, call

    def exchange(
        self,
        peers: Sequence[int],
        mine: torch.Tensor,
        theirs: Sequence[torch.Tensor],
        timeout: float,
    ) -> None:
        """Send `mine` to every peer and receive `theirs`, one per peer; contiguous CPU tensors.

        RankTimeout names the first peer whose part did not come.
        """
        self._check_thread()
        world, byte = self._world, self._mpi.BYTE
        incoming = [
            world.Irecv([_bytes(t), byte], peer, _EXCHANGE)
            for peer, t in zip(peers, theirs, strict=True)
        ]
        data = _bytes(mine)
        outgoing = [world.Isend([data, byte], peer, _EXCHANGE) for peer in peers]
        requests = [*incoming, *outgoing]
        if not self._wait(
            lambda: self._mpi.Request.Testall(requests), timeout, spin_s=_EXCHANGE_SPIN_S
        ):
            late = [p for p, r in zip(peers, incoming, strict=True) if r and not r.Test()]
            rank = (late or peers)[0]
            raise RankTimeout(rank, f"no part of a sum within {timeout:g} s from rank {rank}")

    def abort(self, code: int) -> NoReturn:
        """End every process of the job now, this one included."""
        self._world.Abort(code)
        os._exit(code)  # in case Abort returns

    def finalize(self) -> None:
        """Leave MPI in good order. Every rank must call it."""
        self._check_thread()
        if not self._mpi.Is_finalized():
            self._mpi.Finalize()

    @property
    def on_owner_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def _check_thread(self) -> None:
        if not self.on_owner_thread:
            raise RuntimeError(
                "ranks: MPI used from a second thread; load and run the pipeline on one thread"
            )

    def _hears(self, rank: int) -> bool:
        """Whether that rank and this one can ring each other."""
        return bool(self.bells.get(rank)) and self.hosts.get(rank) == self.host

    def _wait(
        self,
        done: Callable[[], Any],
        timeout_s: float | None,
        *,
        spin_s: float = SPIN_S,
        rung: bool = False,
    ) -> bool:
        """Poll `done` until it is true; return False after `timeout_s`.

        spin_s  seconds of polling before the first sleep
        rung    whether the sender rings the bell. Sleeps last 50 ms until it rings, then 1 ms.
                Without a bell they last a thirtieth of the time waited so far, at most 1 ms, so
                that late wake-ups add little to a wait and polling stays cheap
        """
        started = time.perf_counter()
        longest = _RUNG_SLEEP_S if rung else _LONGEST_SLEEP_S
        spin_until = started + spin_s
        next_orphan_check = _ORPHAN_CHECK_S
        while not done():
            now = time.perf_counter()
            waited = now - started
            if timeout_s is not None and waited > timeout_s:
                return False
            if now < spin_until:
                os.sched_yield()
                continue
            pause = longest
            if not rung:
                pause = min(max(waited * _SLEEP_SHARE, _SHORTEST_SLEEP_S), pause)
            if self._bell.wait(pause):
                spin_until = time.perf_counter() + spin_s
                longest = _LONGEST_SLEEP_S
            if waited > next_orphan_check:
                next_orphan_check += _ORPHAN_CHECK_S
                if os.getppid() != self._parent:  # the launcher is gone, and with it the job
                    os._exit(1)
        return True


def _bytes(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.view(torch.uint8).numpy()
