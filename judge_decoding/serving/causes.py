"""Why a running server cannot go on, in words: which process died, gave up, or is stopped."""

from __future__ import annotations

import subprocess

from judge_decoding.config import Deployment
from judge_decoding.config.layout import Layout
from judge_decoding.ranks import mpiexec, run_folder
from judge_decoding.serving.kept_folder import KeptFolder
from judge_decoding.serving.processes import Deaths, wait_until
from judge_decoding.serving.stalls import Stalls

NOTICE_S = 1.0
"""Seconds to wait for the note of the process that ended the others."""


class Causes:
    """Looks at the processes of one run and at the notes in its folder."""

    def __init__(
        self,
        deployment: Deployment,
        kept: KeptFolder,
        process: subprocess.Popen[bytes],
        program: str,
    ) -> None:
        """process  what the launcher started: `program`, tritonserver or mpiexec"""
        self._deployment = deployment
        self._kept = kept
        self._process = process
        self._program = program
        self._deaths = Deaths()
        self._stalls = Stalls(deployment.server.stall_timeout_s)

    def death(self) -> str | None:
        """Which process died or gave up; None if all is well."""
        folder = self._kept.path
        code = self._process.poll()
        if not self._gone() and not run_folder.failures(folder) and code is None:
            return None
        # A note says more than a death, but may still be on its way.
        wait_until(lambda: bool(run_folder.failures(folder)), NOTICE_S)
        if said := run_folder.failures(folder):
            return said[0]
        code = self._process.poll()
        if code is not None and code < 0 and self._program != run_folder.SERVER_ROLE:
            # If its ranks had died, mpiexec would have ended with an exit code.
            return f"{self._program} (pid {self._process.pid}) died ({_how(128 - code)})"
        # A server that dies takes its models with it; it may also abort because one of them died.
        gone = [process.role for process in self._gone()]
        if (death := mpiexec.first_death(folder)) is not None:
            rank, code = death
            role = str(Layout.of(self._deployment).place(rank)) if rank else run_folder.SERVER_ROLE
            if role not in gone[1:]:
                return f"{self._named(role)} died ({_how(code)})"
        if gone:
            return f"{self._named(gone[0])} died"
        return f"{self._program} ended with exit code {code}"

    def stall(self) -> str | None:
        """Which process of the server is stopped for good; None if none is.

        Call it several times per second, and only once the server is ready.
        """
        known = {p.pid: p.role for p in self._kept.processes() if not p.role.startswith("rank ")}
        pid = self._stalls.look(known)
        if pid is None:
            return None
        limit = self._deployment.server.stall_timeout_s
        return f"{known[pid]} (pid {pid}) was stopped for {limit:g} s (server.stall_timeout_s)"

    def server(self) -> int | None:
        """The pid of tritonserver, once it is known."""
        known = self._kept.processes()
        return next((p.pid for p in known if p.role == run_folder.SERVER_ROLE), None)

    def _named(self, role: str) -> str:
        known = self._kept.processes()
        return next((f"{role} (pid {p.pid})" for p in known if p.role == role), role)

    def _gone(self) -> list[run_folder.Process]:
        """The dead processes of this host, in the order of their deaths."""
        known = {process.pid: process for process in self._kept.processes()}
        self._deaths.watch(known)
        return [known[pid] for pid in self._deaths.ended()]


def _how(code: int) -> str:
    """A shell's exit code in words."""
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"
