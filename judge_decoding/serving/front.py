"""The HTTP front's process: its ports are bound before anything starts, and it is kept alive.

The launcher holds the sockets, so no second server can take the ports, and connections wait while
the front starts again.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time

from judge_decoding.config import Deployment, ServerConfig
from judge_decoding.config.paths import shipped
from judge_decoding.ranks.shared_memory import FOLDER
from judge_decoding.serving import access
from judge_decoding.serving.ports import bind

STARTS = 5
"""So many within STARTS_S are too many: then the server ends."""
STARTS_S = 60.0
_SPARE_CONNECTIONS = 256


def body_limit(server: ServerConfig) -> int:
    """Bytes of an HTTP body: JSON writes a byte of text in three at most (an escaped `é`), but for
    control characters; and there are other inputs."""
    return 3 * server.max_prompt_bytes + 2**18


def ensemble_inputs() -> list[str]:
    """The names of the ensemble's inputs, as its configuration declares them."""
    text = (shipped("triton_repo") / "ensemble" / "config.pbtxt").read_text("utf-8")
    return re.findall(r'name: "(\w+)"', text[text.index("input [") : text.index("output [")])


class Front:
    """The process, and the sockets that it serves."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        """Binds the ports; UserError if one is taken.

        name  the server's (`Triton.command`)
        """
        server = deployment.server
        self._bound = dict[str, socket.socket]()
        if server.http_port is not None:
            self._bound["http"] = bind(access.http_host(server), server.http_port, "http")
        self._bound["metrics"] = bind(server.host, server.metrics_port, "metrics")
        waiting = deployment.limits.max_sequences + server.max_queue
        self._line = [
            *(sys.executable, "-m", "judge_decoding.serving.http_front"),
            *("--sockets", f"{FOLDER}/{name}-"),
            *("--launcher", str(os.getpid())),
            *("--inputs", ",".join(ensemble_inputs())),
            *("--max-body", str(body_limit(server))),
            *("--max-connections", str(2 * waiting + _SPARE_CONNECTIONS)),
        ]
        for name, bound in self._bound.items():
            self._line += [f"--{name}-fd", str(bound.fileno())]
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: list[float] = []

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        """The process holds nothing that a signal could save."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for bound in self._bound.values():
            bound.close()

    def look(self) -> str | None:
        """Start the process if it does not run; in words, why that is no use any longer."""
        code = self._process.poll() if self._process else None
        if self._process is not None and code is None:
            return None
        now = time.monotonic()
        self._starts = [start for start in self._starts if now - start < STARTS_S]
        if len(self._starts) >= STARTS:
            return f"the HTTP front ended {STARTS} times within {STARTS_S:g} s, with {code}"
        self._starts.append(now)
        # Without a preexec_fn, which is not safe beside other threads (the warm-up's, with gRPC).
        # So the front itself asks to end with the launcher.
        self._process = subprocess.Popen(
            self._line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[bound.fileno() for bound in self._bound.values()],
        )
        return None
