"""Requests as no client of ours would make them, and what comes back, in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from judge_client.connection import CHANNEL
from judge_client.wire import Outputs
from tests.triton_world import Serving

ANSWER_S = 60.0
Tensor = tuple[str, Sequence[int], bytes]
"""Type, shape, raw contents."""


def string(*values: bytes) -> Tensor:
    return "BYTES", [1, len(values)], b"".join(len(v).to_bytes(4, "little") + v for v in values)


def numbers(kind: str, *values: float) -> Tensor:
    dtype = {"INT32": "i4", "INT64": "i8", "UINT64": "u8", "FP32": "f4", "BOOL": "?"}[kind]
    return kind, [1, len(values)], np.array(values, f"<{dtype}").tobytes()


def ids(count: int) -> Tensor:
    return "INT32", [1, count], np.full(count, 65, np.int32).tobytes()


HI = string(b"Hi")
FEW = numbers("INT32", 4)


def message(model: str = "ensemble", request_id: str = "", **tensors: Tensor) -> Any:
    """A ModelInferRequest."""
    made = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    made.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, (kind, shape, raw) in tensors.items():
        made.inputs.add(name=name, datatype=kind, shape=shape)
        made.raw_input_contents.append(raw)
    return made


def good(**tensors: Tensor) -> Any:
    """A request that is right, but for `tensors`."""
    return message(**{"text_input": HI, "max_tokens": FEW} | tensors)


def channel(server: Serving, *options: tuple[str, Any]) -> grpc.Channel:
    return grpc.insecure_channel(
        server.url, options=[*CHANNEL, ("grpc.use_local_subchannel_pool", 1), *options]
    )


def stub(made: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(made)


def said(responses: Iterable[Any]) -> str:
    """What a stream ends with: an error's message, `an answer`, or a status and its details."""
    last = "nothing"
    try:
        for response in responses:
            if response.error_message:
                last = response.error_message.removeprefix("in ensemble 'ensemble', ")
            elif response.infer_response.outputs:
                reason = Outputs(response.infer_response).text("finish_reason")
                last = f"an answer (`{reason}`)" if reason else "an answer"
    except grpc.RpcError as error:
        last = status(error)
    return last


def status(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"


def send(server: Serving, *messages: Any, metadata: Any = ()) -> str:
    """What a stream of these messages ends with (`said`)."""
    with channel(server) as made:
        calls = stub(made)
        return said(
            calls.ModelStreamInfer(iter(messages), timeout=ANSWER_S, metadata=list(metadata))
        )


def orders(server: Serving, request_id: str = "", tokens: int = 6) -> list[bytes]:
    """The signed orders for the postprocessing that a direct call of the core model gets."""
    asked = message(
        "judge_decoding",
        request_id,
        input_ids=ids(5),
        max_tokens=numbers("INT32", tokens),
        stream=numbers("BOOL", True),
        ignore_eos=numbers("BOOL", True),
        max_draft_len=numbers("INT32", 0),
    )
    found = []
    with channel(server) as made:
        for response in stub(made).ModelStreamInfer(iter([asked]), timeout=ANSWER_S):
            assert not response.error_message, response.error_message
            answer = response.infer_response
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
                if output.name == "detokenize":
                    found.append(raw[4:])
    return found
