"""A running server as the audit sees it: whether it is idle, and its core model's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from judge_client.client import JudgeClient
from judge_client.connection import check_address
from judge_client.errors import JudgeClientError
from judge_client.metrics import RUNNING, WAITING, read_metrics
from judge_client.wire import Outputs, infer_message
from judge_decoding.config import ServerConfig
from judge_decoding.errors import UserError
from judge_decoding.evaluation.audit import Rule
from judge_decoding.serving import access
from judge_decoding.serving.audit_log import Logged

MODEL = "judge_decoding"
"""The core model takes and returns token ids, so that no text in between can differ."""
TIMEOUT_S = 300.0
"""Seconds for one answer."""


class AuditedServer:
    """A connection; close it, or use it in a `with`.

    url      HOST:PORT of the gRPC endpoint
    metrics  HOST:PORT of the metrics endpoint
    server   the deployment's `server` section, for the token and the certificate
    """

    def __init__(self, url: str, metrics: str, server: ServerConfig, rule: Rule = "strict") -> None:
        allowed = access.client_access(server)
        try:
            check_address(metrics, "metrics")
            self._client = JudgeClient(url, model=MODEL, timeout=TIMEOUT_S, access=allowed)
        except ImportError:
            raise UserError("audit: -u needs tritonclient; pip install -e '.[serve]'") from None
        except JudgeClientError as error:
            raise UserError(str(error)) from None
        self._metrics = f"http://{metrics}/metrics"
        self._rule = rule

    def __enter__(self) -> AuditedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def is_idle(self) -> bool:
        """Whether no request runs or waits. UserError if the metrics do not say."""
        try:
            values = read_metrics(self._metrics)
        except OSError as error:
            raise UserError(f"audit: no metrics at {self._metrics} ({error})") from None
        for name in (RUNNING, WAITING):
            if name not in values:
                raise UserError(f"audit: {self._metrics} has no {name}; is it this server's?")
        return values[RUNNING] + values[WAITING] == 0

    def decode(self, logged: Logged) -> list[int]:
        """The answer's token ids. UserError if the server refuses or does not answer."""
        tensors: dict[str, tuple[str, Sequence[Any]]] = {
            "input_ids": ("INT32", logged.prompt_ids),
            "max_tokens": ("INT32", [logged.max_tokens]),
            "min_tokens": ("INT32", [logged.min_tokens]),
            "ignore_eos": ("BOOL", [logged.ignore_eos]),
            "acceptance_rule": ("BYTES", [self._rule]),
        }
        if logged.stop_words:
            tensors["stop_words"] = ("BYTES", logged.stop_words)
        message = infer_message(MODEL, "audit", tensors, ["output_ids"])
        try:
            return self._client.infer(message, _output_ids)
        except JudgeClientError as error:
            raise UserError(f"audit: {error}") from None


def _output_ids(outputs: Outputs) -> list[int]:
    return [int(token) for token in outputs.array("output_ids")]
