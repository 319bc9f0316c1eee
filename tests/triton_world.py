"""A real server for tests (`judge-decoding serve` on free ports), and a minimal client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
from tritonclient import grpc

from judge_client.metrics import read_page
from judge_decoding.ranks import run_folder

LIMIT_S = 180.0
COMMAND = Path(sys.executable).parent / "judge-decoding"
KINDS = {
    "text_input": ("BYTES", object),
    "messages": ("BYTES", object),
    "acceptance_rule": ("BYTES", object),
    "stop_words": ("BYTES", object),
    "detokenize": ("BYTES", object),
    "temperature": ("FP32", np.float32),
    "top_p": ("FP32", np.float32),
    "judge_threshold": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
    "input_ids": ("INT32", np.int32),
}
"""Types of inputs; the others are BOOL, or INT32 by default."""


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.02)
    return value


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Trap:
    """A proxy for `http_proxy` that our processes must not use: it records and refuses requests."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy")
        self.variables = dict.fromkeys(names, url) | {"no_proxy": "", "NO_PROXY": ""}
        self.heard: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client, suppress(OSError):
                client.settimeout(5)
                self.heard.append(client.recv(4096))
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


class Serving:
    """`with Serving(config, folder) as server:` starts a server, waits for it, and stops it."""

    def __init__(
        self,
        config: Path,
        folder: Path,
        ports: list[int] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """variables  of the environment, added to those of this process"""
        self.ports = ports or free_ports(3)
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.ready_file = folder / "ready.json"
        self.log = folder / "log"
        names = ("--http-port", "--grpc-port", "--metrics-port")
        options = [part for pair in zip(names, map(str, self.ports), strict=True) for part in pair]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [COMMAND, "serve", "--config", config, *options, "--ready-file", self.ready_file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ
                | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
                | dict(variables or {}),
            )

    def __enter__(self) -> Serving:
        try:
            wait_for(lambda: self.ready_file.exists() or self.process.poll() is not None, "ready")
            assert self.process.poll() is None, self.output
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Sends SIGTERM; returns the launcher's exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.process.kill()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def run_folder(self) -> Path:
        (folder,) = self.temporary.glob("judge-decoding-*")
        return folder

    def processes(self) -> dict[str, int]:
        """Role -> pid."""
        return {p.role: p.pid for p in run_folder.processes(self.run_folder)}

    def http(self, path: str, body: bytes | None = None, port: int = 0) -> str:
        url = f"http://127.0.0.1:{self.ports[port]}{path}"
        with urllib.request.urlopen(url, body, timeout=LIMIT_S) as answer:
            return str(answer.read().decode())

    def metrics(self) -> str:
        """What the endpoint shows; no value is older than this call."""
        return read_page(f"http://127.0.0.1:{self.ports[2]}/metrics", fresh=True)

    def metric(self, name: str, **labels: str) -> float:
        """The value of judge_decoding_NAME now."""
        for line in self.metrics().splitlines():
            found = re.match(rf"judge_decoding_{name}\{{(.*)\}} (\S+)$", line)
            if found and all(f'{k}="{v}"' in found[1] for k, v in labels.items()):
                return float(found[2])
        raise AssertionError(f"no metric {name} with {labels}")


Response = dict[str, np.ndarray]


class Stream:
    """A gRPC stream: `send` sends requests, `responses` yields responses."""

    def __init__(self, server: Serving) -> None:
        self._answers: Queue[tuple[Any, Any]] = Queue()
        self._client = grpc.InferenceServerClient(server.url)
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def send(
        self,
        *,
        model: str = "ensemble",
        request_id: str = "",
        timeout_us: int | None = None,
        **values: Any,
    ) -> None:
        """timeout_us  Triton's own request parameter `timeout`"""
        inputs = [tensor(name, value) for name, value in values.items()]
        self._client.async_stream_infer(model, inputs, request_id=request_id, timeout=timeout_us)

    def next(self, limit_s: float = LIMIT_S) -> Response:
        """The next response; InferenceServerException if it is an error."""
        result, error = self._answers.get(timeout=limit_s)
        if error is not None:
            raise error
        names = [output.name for output in result.get_response().outputs]
        return {"id": result.get_response().id} | {n: result.as_numpy(n)[0] for n in names}

    def responses(self) -> Iterator[Response]:
        """Responses up to the first with a finish reason."""
        while True:
            response = self.next()
            yield response
            if response["finish_reason"][0]:
                return


def tensor(name: str, value: Any) -> grpc.InferInput:
    array = value
    if not isinstance(value, np.ndarray):
        values = value if isinstance(value, list) else [value]
        kind, dtype = KINDS.get(name, ("INT32", np.int32))
        if isinstance(values[0], bool):
            kind, dtype = "BOOL", np.dtype(bool)
        values = [v.encode() if isinstance(v, str) else v for v in values]
        array = np.array([values], dtype)
    else:
        kind = {"i": "INT32", "f": "FP32", "O": "BYTES", "l": "INT64"}[array.dtype.kind]
    made = grpc.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


def ask(server: Serving, **values: Any) -> list[Response]:
    """All responses to one request."""
    with Stream(server) as stream:
        stream.send(**values)
        return list(stream.responses())


def text(responses: list[Response]) -> str:
    return b"".join(r["text_output"][0] for r in responses).decode()


def ids(responses: list[Response]) -> list[int]:
    return [int(i) for r in responses for i in r["output_ids"]]
