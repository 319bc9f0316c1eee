"""What the endpoint's process must know of a deployment. It holds no secret: the token is read from
its file."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
from safetensors import SafetensorError, safe_open

from judge_decoding.config import TRTLLM_RULES, Deployment
from judge_decoding.decoding.contracts import RuleName
from judge_decoding.serving import access
from judge_decoding.serving.front import body_limit, ensemble_inputs


class Settings(msgspec.Struct, frozen=True):
    """name         of the deployment, which is the model's name
    judging      what `/v1/models` says under `judge_decoding`
    grpc         HOST:PORT of Triton
    metrics_port  Triton's, where `/metrics` points
    inputs       names of the ensemble's inputs
    max_body     bytes
    max_choices  answers that may run or wait at once
    tls          paths of certificate, key and root, and the name in the certificate
    """

    name: str
    judging: dict[str, Any]
    grpc: str
    metrics_port: int
    inputs: frozenset[str]
    max_body: int
    max_choices: int
    token_file: str | None = None
    tls: tuple[str, str, str, str] | None = None

    @classmethod
    def of(cls, deployment: Deployment) -> Settings:
        server, tls = deployment.server, deployment.server.tls
        return cls(
            name=deployment.name,
            judging={
                "rules": rules(deployment),
                "rule": deployment.acceptance.rule,
                "threshold": threshold(deployment),
                "max_draft_len": deployment.max_draft_len,
                "max_tokens": deployment.limits.max_tokens,
            },
            grpc=f"{access.reachable(server.host)}:{server.grpc_port}",
            metrics_port=server.metrics_port,
            inputs=frozenset(ensemble_inputs()),
            max_body=body_limit(server),
            max_choices=deployment.limits.max_sequences + server.max_queue,
            token_file=None if server.token_file is None else str(server.token_file),
            tls=None
            if tls is None
            else (str(tls.certificate), str(tls.key), str(tls.ca), tls.name),
        )


def rules(deployment: Deployment) -> list[str]:
    """The acceptance rules that a request may name."""
    if deployment.draft is None:
        return ["none"]
    known = TRTLLM_RULES if deployment.engine == "trtllm" else get_args(RuleName)
    return [rule for rule in known if rule != "judge" or deployment.judge is not None]


def threshold(deployment: Deployment) -> float | None:
    """The judge's threshold, its file's own unless the deployment has one; None without a judge."""
    judge = deployment.judge
    if judge is None or judge.threshold is not None:
        return None if judge is None else judge.threshold
    try:
        with safe_open(judge.path, framework="numpy") as file:
            return float(json.loads(file.metadata()["judge"])["threshold"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None  # the server, which loads the judge, reports what is wrong with it
