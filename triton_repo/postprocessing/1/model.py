"""Token ids -> text, with `judge_decoding.serving.detokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from judge_decoding.errors import UserError
from judge_decoding.ranks import run_folder
from judge_decoding.serving import order
from judge_decoding.serving.bounds import read_strings
from judge_decoding.serving.detokenizer import SPARE, Detokenizer
from judge_decoding.text import Tokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        run_folder.announce("the postprocessing model")
        deployment = run_folder.deployment()
        self.secret, self.longest = run_folder.secret(), order.longest(deployment)
        pb_utils.deserialize_bytes_tensor = partial(read_strings, most=self.longest)
        self.streams = Detokenizer(
            Tokenizer(deployment.target.model), capacity=deployment.limits.max_sequences + SPARE
        )
        self.no_texts = pb_utils.Tensor("token_texts", strings([]))

    def execute(
        self, requests: Sequence[pb_utils.InferenceRequest]
    ) -> list[pb_utils.InferenceResponse]:
        return [self.answer(request) for request in requests]

    def answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        (tensor,) = request.inputs()
        try:
            asked = order.read(tensor.as_numpy().item(), self.secret, self.longest)
            before, with_texts = asked.pop("before"), asked.pop("token_texts")
            texts = self.streams.push(**asked)
        except UserError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            )
        text = (before + "".join(texts)).encode()
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([[text]], object)),
                pb_utils.Tensor("token_texts", strings(texts)) if with_texts else self.no_texts,
            ]
        )


def strings(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    array = np.empty((1, len(texts)), object)
    array[0] = [text.encode() for text in texts]
    return array
