"""A peer in a process of its own, so that its threads do not slow this package's.

Measured beside a llama.cpp server loaded into the same process: a pass of the demo target took
50 ms instead of 29, though the server was idle, and 26 with the server in a process of its own. A
likely cause, not proved: libgomp's workers wait actively only while all thread teams of a process
together have no more threads than there are CPUs.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from judge_decoding.evaluation.bench_system import (
    BenchAnswer,
    BenchSystem,
    NotMeasured,
    ReadBytes,
)

_FOREIGN_ERRORS = (NotMeasured, RuntimeError, ValueError, OSError)
_END_S = 5.0


class ChildPeer:
    """The system that `make(*args, **kwargs)` gives in a new process; both must be picklable.

    NotMeasured if it cannot be made there, if it refuses a prompt, or if its process died.
    """

    def __init__(self, make: Callable[..., BenchSystem], *args: Any, **kwargs: Any) -> None:
        self._child = _Child(make, args, kwargs)
        self.name: str
        self.draft_len: int | None
        self.reads: ReadBytes | None
        self.name, self.draft_len, self.reads = self._child.receive()

    def with_draft_len(self, draft_len: int) -> ChildPeer:
        """The same process with another draft length, for systems that take it with each prompt."""
        other = copy.copy(self)
        other.draft_len = draft_len
        return other

    def answer(self, prompt_ids: Sequence[int], max_tokens: int) -> BenchAnswer:
        self._child.connection.send((list(prompt_ids), max_tokens, self.draft_len))
        answer: BenchAnswer = self._child.receive()
        return answer


class _Child:
    """The process. It ends when nothing refers to this object any longer."""

    def __init__(
        self, make: Callable[..., BenchSystem], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        context = get_context("spawn")  # a fork would share this process's thread pools
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, make, args, kwargs), daemon=True)
        process.start()
        theirs.close()
        weakref.finalize(self, _end, self.connection, process)

    def receive(self) -> Any:
        try:
            received = self.connection.recv()
        except (EOFError, ConnectionError):
            raise NotMeasured("its process died") from None
        if isinstance(received, Exception):
            raise received
        return received


def _end(connection: Connection, process: BaseProcess) -> None:
    connection.close()
    process.join(_END_S)
    if process.is_alive():
        process.kill()


def _serve(
    connection: Connection,
    make: Callable[..., BenchSystem],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    try:
        system = make(*args, **kwargs)
        connection.send((system.name, system.draft_len, system.reads))
        while True:
            prompt_ids, max_tokens, system.draft_len = connection.recv()
            connection.send(system.answer(prompt_ids, max_tokens))
    except EOFError:
        pass  # the benchmark has ended
    except _FOREIGN_ERRORS as error:
        connection.send(NotMeasured(" ".join(str(error).split())))
