"""`judge-decoding serve`: start everything, watch it, stop it. All of it runs, or none of it does.

1. start     one command: tritonserver, or an mpiexec line with tritonserver as rank 0
2. warm up   a whole round through the ensemble; only then is the server ready
3. watch     every process; the first that dies ends the rest, and the message names it
4. stop      SIGTERM (or INT, HUP, QUIT): running requests get `server.drain_s`; a second one ends
             it at once
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError
from judge_decoding.config import Deployment
from judge_decoding.ranks import mpiexec, run_folder
from judge_decoding.ranks.shared_memory import Segments
from judge_decoding.serving import access, regions
from judge_decoding.serving.causes import Causes
from judge_decoding.serving.front import Front
from judge_decoding.serving.kept_folder import KeptFolder
from judge_decoding.serving.kept_process import KeptProcess
from judge_decoding.serving.openai.process import OpenAiDoor
from judge_decoding.serving.ports import Ports
from judge_decoding.serving.processes import become_child, is_running, session, wait_until
from judge_decoding.serving.ready_file import ReadyFile
from judge_decoding.serving.stub_health import Patience
from judge_decoding.serving.triton import engine_gpus, find_triton, is_noise
from judge_decoding.serving.warmup import warm_up

POLL_S = 0.1
STOP_MARGIN_S = 15.0
"""Seconds beyond `drain_s`: for answers on their way, and again for the models to unload."""
KILL_S = 10.0
"""Seconds until killed processes are gone; one that is inside a driver may take longer."""


def serve(
    deployment: Deployment,
    config: Path,
    *,
    dry_run: bool = False,
    ready_file: Path | None = None,
    in_world: bool = False,
) -> int:
    """Serve, and return the exit code: 0 after a signal, 1 after a death.

    in_world  whether this process is rank 0 of ranks that something else has started

    UserError before anything is started.
    """
    stops = Stops()
    folder = Path(tempfile.mkdtemp(prefix="judge-decoding-"))
    try:
        line, variables = _plan(deployment, config.resolve(), folder, in_world)
        if dry_run:
            print(shlex.join([*(f"{k}={v}" for k, v in variables.items()), *line]))
            return 0
        with ExitStack() as open_ports:
            open_ports.enter_context(Ports(deployment.server))
            kept: list[KeptProcess] = [open_ports.enter_context(Front(deployment, folder.name))]
            if deployment.server.openai_port is not None:
                kept.append(open_ports.enter_context(OpenAiDoor(deployment)))
            ready = ReadyFile(ready_file)
            regions.check_room(deployment)
            return ServerJob(deployment, folder, line, variables, stops, kept).run(ready)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        regions.remove(folder.name)


def _plan(
    deployment: Deployment, config: Path, folder: Path, in_world: bool
) -> tuple[list[str], dict[str, str]]:
    """The command line and its environment variables."""
    triton = find_triton(folder)
    line = triton.command(deployment.server, name=folder.name, engine_gpus=engine_gpus(deployment))
    variables = triton.environment | {
        run_folder.CONFIG_VARIABLE: str(config),
        run_folder.FOLDER_VARIABLE: str(folder),
    }
    if deployment.ranks is not None and not in_world:
        line = mpiexec.command(deployment, config, line, variables["PATH"])
        variables |= {k: v for k, v in mpiexec.LOOPBACK.items() if k not in os.environ}
    return line, variables


class Stops:
    """Counts the signals that end a server from the start, so that its folder is always removed."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for number in (signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # such as nohup
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.count += 1


class ServerJob:
    """The processes of one run. They leave notes in `folder` (ranks.run_folder)."""

    def __init__(
        self,
        deployment: Deployment,
        folder: Path,
        line: list[str],
        variables: dict[str, str],
        stops: Stops,
        fronts: Sequence[KeptProcess],
    ) -> None:
        self._deployment = deployment
        self._folder = folder
        self._kept = KeptFolder(folder)
        self._program = Path(line[0]).name
        self._stops = stops
        self._fronts = fronts
        self._patience = Patience()
        self._ready = threading.Event()
        self._warmup_error: str | None = None
        self._process = subprocess.Popen(
            line,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,  # rank 0 of a world started by others may need one (MPICH's PMI_FD)
            # After SIGTERM, mpiexec would end its ranks slowly, and some of them not at all.
            preexec_fn=partial(
                become_child,
                signal.SIGTERM if self._program == run_folder.SERVER_ROLE else signal.SIGKILL,
            ),
        )
        self._causes = Causes(deployment, self._kept, self._process, self._program)
        self._segments = Segments(self._pids)
        self._reader = threading.Thread(target=self._forward, daemon=True)
        self._reader.start()

    def run(self, ready: ReadyFile) -> int:
        threading.Thread(target=self._warm_up, daemon=True).start()
        try:
            reason = self._watch(ready)
        finally:
            self._patience.stop()
            ready.remove()
            self._kill()
            self._kept.close()
        if reason is None:
            return 0
        _say(reason)  # last, below what the processes wrote as they ended
        return 1

    def _watch(self, ready: ReadyFile) -> str | None:
        """Watch until a signal, then drain: None. Otherwise, in words, why the run ended early."""
        started, announced = time.monotonic(), False
        while not self._stops.count:
            self._segments.look()
            self._kept.keep()
            looks = (front.look() for front in self._fronts)
            if (
                cause := next(filter(None, looks), None)
                or self._causes.death()
                or self._warmup_error
            ):
                return f"{cause}; everything is stopped"
            if announced and (cause := self._causes.stall()):
                return f"{cause}; everything is stopped"
            if self._ready.is_set() and not announced:
                try:
                    self._announce(ready)
                except OSError as error:
                    return f"cannot write the ready file {ready.path} ({error.strerror})"
                announced = True
            limit = self._deployment.server.startup_timeout_s
            if not announced and time.monotonic() - started > limit:
                return f"not ready after {limit:g} s (server.startup_timeout_s)"
            time.sleep(POLL_S)
        if cause := self._drain():
            return f"{cause} while requests were finished; everything is stopped"
        return None

    def _warm_up(self) -> None:
        server = self._deployment.server
        try:
            address = f"{access.reachable(server.host)}:{server.grpc_port}"
            warm_up(self._deployment, address, name=self._folder.name)
            self._ready.set()
        except Exception as error:
            self._warmup_error = str(error)

    def _announce(self, ready: ReadyFile) -> None:
        regions.hide(self._folder.name)
        if not regions.bound(self._causes.server() or 0, regions.region_bytes(self._deployment)):
            _say("/dev/shm is not bounded: tritonserver's RLIMIT_FSIZE cannot be set")
        if self._patience.start(process.pid for process in self._kept.processes()):
            _say("this Triton is another one than we know: a model that is paused for 1 s ends")
        server = self._deployment.server
        host = access.reachable(server.host)
        addresses = {
            "http": f"{access.reachable(access.http_host(server))}:{server.http_port}",
            "grpc": f"{host}:{server.grpc_port}",
            "metrics": f"{host}:{server.metrics_port}",
        }
        if server.http_port is None:
            del addresses["http"]
        if server.openai_port is not None:
            addresses["openai"] = f"{host}:{server.openai_port}"
        shown = ", ".join(f"{name} {address}" for name, address in addresses.items())
        with suppress(OSError):
            print(f"ready: {self._deployment.name} at {shown}", flush=True)
        ready.write(addresses)

    def _drain(self) -> str | None:
        """Let the loop finish what it has taken in, then let Triton unload the models and end.

        Returns why it could not, in words, or None.
        """
        server = self._causes.server()
        if server is None:
            return None  # it was still starting

        def over() -> bool:
            return self._process.poll() is not None or self._stops.count > 1

        if self._ready.is_set():
            limit = self._deployment.server.drain_s + STOP_MARGIN_S
            wait_until(lambda: over() or self._kept.drain() or bool(self._causes.stall()), limit)
            if self._stops.count == 1 and (cause := self._causes.death() or self._causes.stall()):
                return cause
            if not over():
                self._flush()
        if is_running(server):
            os.kill(server, signal.SIGTERM)
        wait_until(over, STOP_MARGIN_S)
        return None

    def _flush(self) -> None:
        """Cancel a request that does not exist: the reply comes after all that the loop sent."""
        server = self._deployment.server
        address = f"{access.reachable(server.host)}:{server.grpc_port}"
        try:
            with JudgeClient(address, access=access.client_access(server)) as client:
                client.cancel("drain")
        except JudgeClientError as error:
            _say(f"the server does not answer while it drains ({error})")

    def _kill(self) -> None:
        """Kill what is left of the session and wait until it is gone: the shell that notes a rank's
        end (ranks.mpiexec) must not write into a folder that is being removed."""
        self._segments.look()

        def gone() -> bool:
            left = [pid for pid in self._pids() if is_running(pid)]
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_until(gone, KILL_S)
        self._process.wait()
        known = self._kept.processes()
        self._segments.remove(name for process in known for name in process.segments)
        self._reader.join(timeout=1.0)

    def _pids(self) -> set[int]:
        return {p.pid for p in self._kept.processes()} | set(session(self._process.pid))

    def _forward(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace")
            if is_noise(line):
                continue
            with suppress(OSError):  # such as a full disk; read on, or the server would block
                print(line, end="", file=sys.stderr, flush=True)


def _say(message: str) -> None:
    with suppress(OSError):
        print(f"judge-decoding: {message}", file=sys.stderr, flush=True)
