"""Servers to break, streams to watch while that happens, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clients.server import descendants
from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError
from judge_client.metrics import parse_metrics
from judge_client.wire import Answer, GenerateRequest
from tests.attacks.canary import Canary
from tests.conftest import LLAMA31_ROPE, perturb, write_judge, write_llama, write_tokenizer
from tests.faults.words import shorten
from tests.triton_world import COMMAND, Serving, free_ports, wait_for

PATIENCE_S = 120.0
LONG = GenerateRequest("A long answer, please", max_tokens=900, ignore_eos=True)
SHORT = GenerateRequest("A short answer, please", max_tokens=24, ignore_eos=True)


@dataclass(frozen=True)
class Outcome:
    """The result of a fault.

    client   what a streaming client sees, or the client that causes the fault
    seconds  from the fault until then
    server   what happens to the server
    left     processes, shared memory, folders and slots that should not remain; or "nothing"
    gap_s    longest time without text in another client's stream; None where none was watched
    """

    client: str
    seconds: float
    server: str
    left: str
    gap_s: float | None = None


@dataclass(frozen=True)
class Fault:
    """A fault; `inject` causes it, asserts what must hold, and returns the outcome.

    quick   it is part of the test suite; all faults are in the table
    leaves  something may remain, since the process that would clean up is dead
    """

    group: str
    name: str
    inject: Callable[[Bench], Outcome]
    quick: bool = False
    leaves: bool = False

    def run(self, bench: Bench) -> Outcome:
        outcome = self.inject(bench)
        assert self.leaves or outcome.left == "nothing", outcome
        return outcome


class Launched(Serving):
    """A server with an unusual log, temporary folder, ready file or command line."""

    def __init__(
        self,
        config: Path,
        folder: Path,
        *,
        ports: list[int] | None = None,
        log: Path | None = None,
        temporary: Path | None = None,
        ready_file: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """prefix  words to put before the command"""
        self.ports = ports or free_ports(3)
        self.log = log or folder / "log"
        self.temporary = temporary or folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.ready_file = ready_file or folder / "ready.json"
        names = ("--http-port", "--grpc-port", "--metrics-port")
        options = [part for pair in zip(names, map(str, self.ports), strict=True) for part in pair]
        options += ["--config", str(config), "--ready-file", str(self.ready_file)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*prefix, str(COMMAND), "serve", *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"},
            )


class Bench:
    """A folder of tiny models, and servers on them. One shared server lives until the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = write_llama(folder / "target", rope_parameters=LLAMA31_ROPE)
        write_tokenizer(self.target)
        self.draft = perturb(self.target, folder / "draft", noise=0.05)
        self.judge = write_judge(folder / "judge.safetensors", self.target, scale=0.02, seed=4)
        self._stack = ExitStack()
        self._shared: Serving | None = None
        self._canary: Canary | None = None
        self._known = ""
        self._count = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def document(self, *, ranks: int = 1, **changes: Any) -> dict[str, Any]:
        """A deployment of the tiny pair; `ranks` of the target, 0 for a single process."""
        document: dict[str, Any] = {
            "name": "tiny",
            "dtype": "float32",
            "target": {"model": str(self.target)},
            "draft": {"model": str(self.draft)},
            "max_draft_len": 4,
            "limits": {"max_sequences": 2, "max_context": 1024, "max_tokens": 1000},
            "server": {"drain_s": 5},
        }
        if ranks:
            document["ranks"] = {
                "draft": {"tp": 1, "threads": 1},
                "target": {"tp": ranks, "threads": 1},
                "timeout_s": 60,
            }
        return document | deepcopy(changes)

    def place(self) -> Path:
        """A new folder."""
        self._count += 1
        folder = self.folder / f"run-{self._count}"
        folder.mkdir()
        return folder

    def start(self, document: dict[str, Any], **options: Any) -> Serving:
        """Starts a server without waiting; see `Launched`."""
        folder = self.place()
        config = folder / "deployment.yaml"
        config.write_text(yaml.safe_dump(document))
        return Launched(config, folder, **options)

    @contextmanager
    def server(self, **changes: Any) -> Iterator[Serving]:
        """A ready server of its own; see `document`."""
        with self.start(self.document(**changes)) as server:
            yield server

    @property
    def shared(self) -> Serving:
        """The server for faults that it must survive: a draft rank and a target rank."""
        if self._shared is None:
            self._shared = self._stack.enter_context(self.server())
            self._known = answer(self._shared)
        return self._shared

    @property
    def canary(self) -> Canary:
        """Watches streams of the shared server."""
        if self._canary is None:
            self._canary = self._stack.enter_context(Canary(self.shared.url))
        return self._canary

    def unharmed(self) -> str:
        """Checks that the shared server answers as at first and has all slots free. -> `left`"""
        server = self.shared
        assert answer(server) == self._known
        wait_for(lambda: slots(server) == 0, "the slots to be free")
        assert server.process.poll() is None
        return "nothing"


def answer(server: Serving) -> str:
    with JudgeClient(server.url, timeout=PATIENCE_S) as client:
        return client.generate(SHORT).text


def slots(server: Serving) -> float:
    """Number of sequences in the loop and requests in the queue, now."""
    values = parse_metrics(server.metrics())
    names = ("num_requests_running", "num_requests_waiting")
    return sum(values[f"judge_decoding_{name}"] for name in names)


class Watched(threading.Thread):
    """A client's stream in its own thread, recorded to its end."""

    def __init__(
        self, url: str, request: GenerateRequest = LONG, *, timeout: float | None = PATIENCE_S
    ) -> None:
        super().__init__(daemon=True)
        self.url, self.request, self.timeout = url, request, timeout
        self.answer = Answer()
        self.error: JudgeClientError | None = None
        self.ended = 0.0  # time.monotonic()
        self._first = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            # Its own clean-up may wait for a server that is gone, so note the time first.
            with JudgeClient(self.url, timeout=self.timeout) as client:
                for chunk in client.stream(self.request):
                    self.answer.add(chunk)
                    self._first.set()
        except JudgeClientError as error:
            self.error = error
        finally:
            self.ended = time.monotonic()
            self._first.set()

    def running(self) -> Watched:
        """Waits for the first text, which must not be the last; returns itself."""
        assert self._first.wait(PATIENCE_S)
        assert self.error is None and self.answer.finish_reason is None, self.error
        return self

    def seen(self) -> str:
        """What the client saw, once it has ended."""
        self.join(PATIENCE_S + 60)
        assert not self.is_alive()
        if self.error is None:
            return f"the whole answer (`{self.answer.finish_reason}`)"
        status = f"{self.error.status}: " if self.error.status else ""
        text = str(self.error).removeprefix(f"{self.url}: ")
        return f"`{status}{shorten(text)}`"


def said(server: Serving) -> str:
    """The launcher's last message."""
    lines = [x for x in server.output.splitlines() if x.startswith("judge-decoding: ")]
    assert lines, server.output
    return lines[-1].removeprefix("judge-decoding: ")


class Remains:
    """What a server uses now, to be checked once it has ended."""

    def __init__(self, server: Serving) -> None:
        self.server = server
        self.pids = set(descendants(server.process.pid))
        self.shm = set[str]()
        for pid in self.pids:
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                    path = line.partition("/dev/shm/")[2].removesuffix(" (deleted)")
                    if path:
                        self.shm.add(path)

    def left(self, *, limit_s: float = 20.0) -> str:
        """What remains after the server's end; processes get a moment to end."""
        end = time.monotonic() + limit_s
        while (alive := self._alive()) and time.monotonic() < end:
            time.sleep(0.05)
        found = [f"{len(alive)} processes"] if alive else []
        regions = [name for name in self.shm if (Path("/dev/shm") / name).exists()]
        mib = sum((Path("/dev/shm") / name).stat().st_size for name in regions) / 2**20
        found += [f"{len(regions)} files in /dev/shm ({mib:.1f} MB)"] if regions else []
        folders = list(self.server.temporary.glob("judge-decoding-*"))
        found += ["the run folder"] if folders else []
        found += ["the ready file"] if self.server.ready_file.exists() else []
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in regions:
            (Path("/dev/shm") / name).unlink()
        return ", ".join(found) or "nothing"

    def _alive(self) -> list[int]:
        mark = f"TMPDIR={self.server.temporary}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


def ended(server: Serving, code: int) -> str:
    """Asserts that the server has stopped with that exit code; returns the table's text."""
    assert server.wait() == code, server.output
    return f"stops, exit {code}: `{shorten(said(server))}`"
