"""The endpoint's process, as the launcher sees it."""

from __future__ import annotations

import os
import sys

import msgspec

from judge_decoding.config import Deployment
from judge_decoding.serving.kept_process import KeptProcess
from judge_decoding.serving.openai.settings import Settings
from judge_decoding.serving.ports import bind


class OpenAiDoor(KeptProcess):
    """Started again if it dies; requests that it was serving then break off, and their answers run
    to their end in the loop."""

    def __init__(self, deployment: Deployment) -> None:
        """Binds the port; UserError if it is taken. The deployment has `server.openai_port`."""
        port = deployment.server.openai_port
        assert port is not None
        settings = msgspec.json.encode(Settings.of(deployment)).decode()
        super().__init__(
            "the OpenAI endpoint",
            {"openai": bind(deployment.server.host, port, "openai")},
            [
                *(sys.executable, "-m", "judge_decoding.serving.openai.app"),
                *("--settings", settings),
                *("--launcher", str(os.getpid())),
            ],
        )
