"""The request that makes a server ready: drafted, verified, and sent through every part.

It is alone in the loop, where a deployment may have no use for drafts: then none are asked of it.
"""

from __future__ import annotations

import time
from queue import Queue
from typing import Any

from judge_decoding.config import Deployment
from judge_decoding.errors import UserError
from judge_decoding.serving import access
from judge_decoding.serving.triton import ENSEMBLE

POLL_S = 0.1


def warm_up(deployment: Deployment, address: str) -> None:
    """Wait until the server at HOST:PORT (gRPC) has answered; UserError where the answer is wrong.

    Blocks as long as nobody listens: whoever started the server watches it meanwhile.
    """
    import numpy as np
    from tritonclient import grpc

    k = deployment.max_draft_len
    tokens = min(2 * (k + 1), deployment.limits.max_tokens)
    values = [
        ("text_input", "BYTES", np.array([[b"Hi"]], object)),
        ("max_tokens", "INT32", np.array([[tokens]], np.int32)),
        ("ignore_eos", "BOOL", np.array([[True]])),
    ]
    inputs = []
    for name, kind, array in values:
        tensor = grpc.InferInput(name, array.shape, kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    client = grpc.InferenceServerClient(address, **access.grpc_options(deployment.server))
    try:
        while not _is_ready(client):
            time.sleep(POLL_S)
        answers: Queue[tuple[Any, Any]] = Queue()
        client.start_stream(
            lambda result, error: answers.put((result, error)),
            headers=access.grpc_headers(deployment.server),
        )
        client.async_stream_infer(ENSEMBLE, inputs, request_id="warm-up")
        result, error = answers.get()
        client.stop_stream()
    finally:
        client.close()
    if error is not None:
        raise UserError(f"serve: the warm-up request failed: {error}")
    drafted = int(result.as_numpy("total_draft_tokens").item())
    ended = result.as_numpy("finish_reason").item().decode()
    if tokens > 1 and must_draft(deployment) and not drafted and ended != "deadline":
        raise UserError("serve: the warm-up request drafted nothing")


def must_draft(deployment: Deployment) -> bool:
    """Whether a request that is alone gets drafts for certain."""
    return deployment.acceptance.rule != "none" and deployment.draft_len(1) > 0


def _is_ready(client: Any) -> bool:
    from tritonclient.utils import InferenceServerException

    try:
        return bool(client.is_server_ready() and client.is_model_ready(ENSEMBLE))
    except InferenceServerException:
        return False  # nobody listens yet
