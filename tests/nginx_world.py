"""nginx in front of servers, with the project's own configuration on other ports."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.triton_world import free_ports, wait_for

CONFIG = Path(__file__).parent.parent / "docs" / "operations" / "nginx.conf"


def find_nginx() -> str | None:
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


class Nginx:
    """`with Nginx(folder, ports) as balancer:` ready at `balancer.url`, ended behind itself."""

    def __init__(self, folder: Path, backends: list[int]) -> None:
        (port,) = free_ports(1)
        self.url = f"127.0.0.1:{port}"
        text = CONFIG.read_text()
        servers = re.findall(r"^ *server 127\.0\.0\.1:\d+ (.*);$", text, re.M)
        assert len(servers) == 2
        for old, new in zip(("8001", "9001"), backends, strict=True):
            text = text.replace(f"server 127.0.0.1:{old} ", f"server 127.0.0.1:{new} ")
        text = text.replace("listen 127.0.0.1:8100 ", f"listen {self.url} ")
        text = re.sub(r"^pid .*;$", f"pid {folder}/nginx.pid;", text, flags=re.M)
        (folder / "nginx.conf").write_text(text)
        self.log = folder / "nginx.log"
        binary = find_nginx()
        assert binary is not None
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [binary, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Nginx:
        host, port = self.url.split(":")

        def listens() -> Any:
            assert self._process.poll() is None, self.log.read_text()
            with suppress(OSError), socket.create_connection((host, int(port)), 1):
                return True

        wait_for(listens, "nginx")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
