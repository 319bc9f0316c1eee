"""The HTTP front's process: its ports are bound before anything starts, and it is kept alive."""

from __future__ import annotations

import os
import re
import socket
import sys

from judge_decoding.config import Deployment, ServerConfig
from judge_decoding.config.paths import shipped
from judge_decoding.ranks.shared_memory import FOLDER
from judge_decoding.serving import access
from judge_decoding.serving.kept_process import KeptProcess
from judge_decoding.serving.ports import bind

_SPARE_CONNECTIONS = 256


def body_limit(server: ServerConfig) -> int:
    """Bytes of an HTTP body: JSON writes a byte of text in three at most (an escaped `é`), but for
    control characters; and there are other inputs."""
    return 3 * server.max_prompt_bytes + 2**18


def ensemble_inputs() -> list[str]:
    """The names of the ensemble's inputs, as its configuration declares them."""
    text = (shipped("triton_repo") / "ensemble" / "config.pbtxt").read_text("utf-8")
    return re.findall(r'name: "(\w+)"', text[text.index("input [") : text.index("output [")])


class Front(KeptProcess):
    """The process, and the sockets that it serves."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        """Binds the ports; UserError if one is taken.

        name  the server's (`Triton.command`)
        """
        server = deployment.server
        bound = dict[str, socket.socket]()
        if server.http_port is not None:
            bound["http"] = bind(access.http_host(server), server.http_port, "http")
        bound["metrics"] = bind(server.host, server.metrics_port, "metrics")
        waiting = deployment.limits.max_sequences + server.max_queue
        line = [
            *(sys.executable, "-m", "judge_decoding.serving.http_front"),
            *("--sockets", f"{FOLDER}/{name}-"),
            *("--launcher", str(os.getpid())),
            *("--inputs", ",".join(ensemble_inputs())),
            *("--max-body", str(body_limit(server))),
            *("--max-connections", str(2 * waiting + _SPARE_CONNECTIONS)),
        ]
        super().__init__("the HTTP front", bound, line)
