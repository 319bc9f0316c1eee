"""A running server as the audit sees it: what it is doing, and its core model's tokens."""

from __future__ import annotations

import re
from queue import Empty, Queue
from typing import Any

from judge_decoding.config import ServerConfig
from judge_decoding.errors import UserError
from judge_decoding.evaluation.audit import Rule
from judge_decoding.evaluation.audit_log import Logged
from judge_decoding.serving import access

MODEL = "judge_decoding"
"""The core model: token ids in, token ids out; no text in between that could differ."""
BUSY = ("judge_decoding_num_requests_running", "judge_decoding_num_requests_waiting")
TIMEOUT_S = 300.0
"""For one answer."""


class Server:
    """A connection; close it, or use it in a `with`.

    url      HOST:PORT of the gRPC endpoint
    metrics  HOST:PORT of the metrics endpoint
    server   the deployment's: its token and its certificate
    """

    def __init__(self, url: str, metrics: str, server: ServerConfig, rule: Rule = "strict") -> None:
        try:
            from tritonclient import grpc
        except ImportError:
            raise UserError("audit: -u needs tritonclient; pip install -e '.[serve]'") from None
        for what, address in (("url", url), ("metrics", metrics)):
            if not re.fullmatch(r"[^\s/]+:\d+", address):
                raise UserError(f"{what}: {address!r} is not HOST:PORT, such as 127.0.0.1:8001")
        self._grpc = grpc
        self._url = url
        self._metrics = f"http://{metrics}/metrics"
        self._headers = access.grpc_headers(server)
        self._rule = rule
        self._client = grpc.InferenceServerClient(url, **access.grpc_options(server))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def is_idle(self) -> bool:
        try:
            with access.DIRECT.open(self._metrics, timeout=10) as page:
                text = page.read().decode("utf-8")
        except OSError as error:
            raise UserError(f"audit: no metrics at {self._metrics} ({error})") from None
        busy = 0.0
        for name in BUSY:
            values = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
            if not values:
                raise UserError(f"audit: {self._metrics} has no {name}; is it this server's?")
            busy += sum(map(float, values))
        return busy == 0

    def decode(self, logged: Logged) -> list[int]:
        """UserError where the server does not answer, or refuses."""
        import numpy as np
        from tritonclient.utils import InferenceServerException

        values = [
            ("input_ids", "INT32", np.array([logged.prompt_ids], np.int32)),
            ("max_tokens", "INT32", np.array([[logged.max_tokens]], np.int32)),
            ("min_tokens", "INT32", np.array([[logged.min_tokens]], np.int32)),
            ("ignore_eos", "BOOL", np.array([[logged.ignore_eos]])),
            ("acceptance_rule", "BYTES", np.array([[self._rule.encode()]], object)),
        ]
        if logged.stop_words:
            stops = [[word.encode() for word in logged.stop_words]]
            values.append(("stop_words", "BYTES", np.array(stops, object)))
        inputs = []
        for name, kind, array in values:
            tensor = self._grpc.InferInput(name, list(array.shape), kind)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        answers: Queue[tuple[Any, Any]] = Queue()
        self._client.start_stream(
            lambda result, error: answers.put((result, error)), headers=self._headers
        )
        try:
            self._client.async_stream_infer(MODEL, inputs, request_id="audit")
            result, error = answers.get(timeout=TIMEOUT_S)
        except (InferenceServerException, Empty) as problem:
            raise UserError(f"audit: {self._url}: {problem or 'no answer in time'}") from None
        finally:
            self._client.stop_stream(cancel_requests=True)
        if error is not None:
            raise UserError(f"audit: {self._url}: {error}")
        return [int(token) for token in result.as_numpy("output_ids").reshape(-1)]
