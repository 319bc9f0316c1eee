"""The request that makes a server ready: drafted, verified, and sent through every part."""

from __future__ import annotations

import time

from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError
from judge_client.wire import GenerateRequest
from judge_decoding.config import Deployment
from judge_decoding.errors import UserError
from judge_decoding.serving import access

POLL_S = 0.1


def warm_up(deployment: Deployment, address: str, *, name: str) -> None:
    """Wait until the server at HOST:PORT (gRPC) has answered; UserError if the answer is wrong.

    name  what the server calls itself (Triton's `--id`): another one may listen there

    It blocks until the server is ready, so the caller must watch the server meanwhile.
    """
    k = deployment.max_draft_len
    tokens = min(2 * (k + 1), deployment.limits.max_tokens)
    request = GenerateRequest("Hi", max_tokens=tokens, ignore_eos=True, record=True)
    with JudgeClient(address, access=access.client_access(deployment.server)) as client:
        while not _is_ready(client):
            time.sleep(POLL_S)
        try:
            if (answering := client.server_name()) != name:
                raise UserError(f"serve: another server answers at {address} ({answering!r})")
            answer = client.generate(request, request_id="warm-up")
        except JudgeClientError as error:
            raise UserError(f"serve: the warm-up request failed: {error}") from None
    drafted = (answer.record or {}).get("num_draft_tokens", 0)
    ended = answer.finish_reason
    if tokens > 1 and must_draft(deployment) and not drafted and ended != "deadline":
        raise UserError("serve: the warm-up request drafted nothing")


def must_draft(deployment: Deployment) -> bool:
    """Whether a request that runs alone certainly gets drafts."""
    return deployment.acceptance.rule != "none" and deployment.draft_len(1) > 0


def _is_ready(client: JudgeClient) -> bool:
    try:
        client.check()
    except JudgeClientError:
        return False  # nobody listens yet, or the model is not loaded
    return True
