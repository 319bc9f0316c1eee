"""`judge-decoding serve`: start everything, watch it, stop it. All of it runs, or none of it does.

1. start     one command: tritonserver, or an mpiexec line with tritonserver as rank 0
2. warm up   a whole round through the ensemble; only then is the server ready
3. watch     every process; the first that dies ends the rest, and the message names it
4. stop      SIGTERM or SIGINT: running requests get `server.drain_s`; a second signal ends at once
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError
from judge_decoding.config import Deployment, ServerConfig
from judge_decoding.config.layout import Layout
from judge_decoding.errors import UserError
from judge_decoding.ranks import mpiexec, run_folder
from judge_decoding.ranks.shared_memory import Segments
from judge_decoding.serving import access
from judge_decoding.serving.front import Front, bind
from judge_decoding.serving.processes import Deaths, become_child, is_running, session
from judge_decoding.serving.stub_health import Patience
from judge_decoding.serving.triton import SHM, find_triton, is_noise
from judge_decoding.serving.warmup import warm_up

POLL_S = 0.1
NOTICE_S = 1.0
"""Seconds to wait for the note of the process that ended the others."""
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
        _check_ports(deployment.server)
        front = Front(deployment, f"{SHM}/{folder.name}-")
        try:
            # Triton's own; the front has the others.
            bind("grpc", deployment.server.host, deployment.server.grpc_port).close()
            _forget_ready(ready_file)
            return ServerJob(deployment, folder, line, variables, stops, front).run(ready_file)
        finally:
            front.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for region in SHM.glob(f"{folder.name}*"):
            region.unlink(missing_ok=True)


def _plan(
    deployment: Deployment, config: Path, folder: Path, in_world: bool
) -> tuple[list[str], dict[str, str]]:
    """The command line and its environment variables."""
    triton = find_triton(folder)
    line = triton.command(deployment.server, shm_prefix=f"{folder.name}-")
    variables = triton.environment | {
        run_folder.CONFIG_VARIABLE: str(config),
        run_folder.FOLDER_VARIABLE: str(folder),
    }
    if deployment.ranks is not None and not in_world:
        line = mpiexec.command(deployment, config, line, variables["PATH"])
        variables |= {k: v for k, v in mpiexec.LOOPBACK.items() if k not in os.environ}
    return line, variables


def _check_ports(server: ServerConfig) -> None:
    ports = {"http": server.http_port, "grpc": server.grpc_port, "metrics": server.metrics_port}
    if len(set(ports.values())) < len(ports):
        raise UserError(f"serve: the three ports must differ; they are {ports}")


def _forget_ready(path: Path | None) -> None:
    """Remove the ready file of a run that was killed: a pod's volume outlives its containers."""
    try:
        if path is not None:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"serve: cannot remove the old ready file {path} ({error.strerror})"
        ) from None


class Stops:
    """Counts SIGTERM and SIGINT from the start, so that the run's folder is always removed."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
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
        front: Front,
    ) -> None:
        self._deployment = deployment
        self._folder = folder
        self._program = Path(line[0]).name
        self._stops = stops
        self._front = front
        self._patience = Patience()
        self._ready = threading.Event()
        self._warmup_error: str | None = None
        self._deaths = Deaths()
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
        self._segments = Segments(self._pids)
        self._reader = threading.Thread(target=self._forward, daemon=True)
        self._reader.start()

    def run(self, ready_file: Path | None) -> int:
        threading.Thread(target=self._warm_up, daemon=True).start()
        try:
            reason = self._watch(ready_file)
        finally:
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)
            self._patience.stop()
            self._kill()
        if reason is None:
            return 0
        _say(reason)  # last, below what the processes wrote as they ended
        return 1

    def _watch(self, ready_file: Path | None) -> str | None:
        """Watch until a signal, then drain: None. Otherwise, in words, why the run ended early."""
        started, announced = time.monotonic(), False
        while not self._stops.count:
            self._segments.look()
            if culprit := self._front.look() or self._death():
                return f"{culprit}; everything is stopped"
            if self._ready.is_set() and not announced:
                try:
                    self._announce(ready_file)
                except OSError as error:
                    return f"cannot write the ready file {ready_file} ({error.strerror})"
                announced = True
            limit = self._deployment.server.startup_timeout_s
            if not announced and time.monotonic() - started > limit:
                return f"not ready after {limit:g} s (server.startup_timeout_s)"
            time.sleep(POLL_S)
        if culprit := self._drain():
            return f"{culprit} while requests were finished; everything is stopped"
        return None

    def _warm_up(self) -> None:
        server = self._deployment.server
        try:
            warm_up(self._deployment, f"{_reachable(server.host)}:{server.grpc_port}")
            self._ready.set()
        except Exception as error:
            self._warmup_error = str(error)

    def _announce(self, ready_file: Path | None) -> None:
        for region in SHM.glob(f"{self._folder.name}*"):
            region.chmod(0o600)  # prompts and answers pass through it; Triton lets all users read
        if self._patience.start(process.pid for process in self._here()):
            _say("this Triton is another one than we know: a model that is paused for 1 s ends")
        server = self._deployment.server
        host = _reachable(server.host)
        addresses = {
            "http": f"{_reachable(access.http_host(server))}:{server.http_port}",
            "grpc": f"{host}:{server.grpc_port}",
            "metrics": f"{host}:{server.metrics_port}",
        }
        if server.http_port is None:
            del addresses["http"]
        shown = ", ".join(f"{name} {address}" for name, address in addresses.items())
        with suppress(OSError):
            print(f"ready: {self._deployment.name} at {shown}", flush=True)
        if ready_file is not None:
            part = ready_file.with_name(f".{ready_file.name}.part")
            part.write_text(json.dumps(addresses | {"pid": os.getpid()}) + "\n")
            part.rename(ready_file)

    def _death(self) -> str | None:
        """Which process died or gave up, in words; None if all is well."""
        failures = run_folder.failures(self._folder)
        code = self._process.poll()
        if not self._gone() and not failures and code is None:
            return self._warmup_error
        # A note says more than a death, but may still be on its way.
        _wait(lambda: bool(run_folder.failures(self._folder)), NOTICE_S)
        if said := run_folder.failures(self._folder):
            return said[0]
        code = self._process.poll()
        if code is not None and code < 0 and self._program != run_folder.SERVER_ROLE:
            # If its ranks had died, mpiexec would have ended with an exit code.
            return f"{self._program} (pid {self._process.pid}) died ({_how(128 - code)})"
        # A server that dies takes its models with it; it may also abort because one of them died.
        gone = [process.role for process in self._gone()]
        if (death := mpiexec.first_death(self._folder)) is not None:
            rank, code = death
            role = str(Layout.of(self._deployment).place(rank)) if rank else run_folder.SERVER_ROLE
            if role not in gone[1:]:
                return f"{self._named(role)} died ({_how(code)})"
        if gone:
            return f"{self._named(gone[0])} died"
        return f"{self._program} ended with exit code {code}"

    def _named(self, role: str) -> str:
        known = run_folder.processes(self._folder)
        return next((f"{role} (pid {p.pid})" for p in known if p.role == role), role)

    def _gone(self) -> list[run_folder.Process]:
        """The dead processes of this host, in the order of their deaths."""
        known = {process.pid: process for process in self._here()}
        self._deaths.watch(known)
        return [known[pid] for pid in self._deaths.ended()]

    def _drain(self) -> str | None:
        """Let the loop finish what it has taken in, then let Triton unload the models and end.

        Returns which process died meanwhile, in words, or None.
        """
        known = run_folder.processes(self._folder)
        server = next((p.pid for p in known if p.role == run_folder.SERVER_ROLE), None)
        if server is None:
            return None  # it was still starting

        def over() -> bool:
            return self._process.poll() is not None or self._stops.count > 1

        if self._ready.is_set():
            run_folder.ask_to_drain(self._folder)
            limit = self._deployment.server.drain_s + STOP_MARGIN_S
            _wait(lambda: over() or run_folder.is_drained(self._folder), limit)
            if self._stops.count == 1 and (culprit := self._death()):
                return culprit
            if not over():
                self._flush()
        if is_running(server):
            os.kill(server, signal.SIGTERM)
        _wait(over, STOP_MARGIN_S)
        return None

    def _flush(self) -> None:
        """Cancel a request that does not exist: the reply comes after all that the loop sent."""
        server = self._deployment.server
        address = f"{_reachable(server.host)}:{server.grpc_port}"
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

        _wait(gone, KILL_S)
        self._process.wait()
        self._segments.remove(name for process in self._here() for name in process.segments)
        self._reader.join(timeout=1.0)

    def _pids(self) -> set[int]:
        return {p.pid for p in self._here()} | set(session(self._process.pid))

    def _here(self) -> list[run_folder.Process]:
        """The processes that have announced themselves on this host so far."""
        known = run_folder.processes(self._folder)
        return [process for process in known if process.host == os.uname().nodename]

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


def _how(code: int) -> str:
    """A shell's exit code in words."""
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def _wait(condition: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(POLL_S / 2)
