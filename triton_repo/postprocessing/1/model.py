"""Token ids -> text; the work is `judge_decoding.serving.detokenizer`'s."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

from judge_decoding.serving import environment
from judge_decoding.serving.detokenizer import Detokenizer
from judge_decoding.text import Tokenizer


class TritonPythonModel:
    def initialize(self, args):
        environment.announce("the postprocessing model")
        deployment = environment.deployment()
        self.streams = Detokenizer(
            Tokenizer(deployment.target.model), capacity=2 * deployment.limits.max_sequences
        )
        self.no_texts = pb_utils.Tensor("token_texts", strings([]))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        (tensor,) = request.inputs()
        order = json.loads(tensor.as_numpy().item())  # serving.reply.Reply
        before, asked = order.pop("before"), order.pop("token_texts")
        texts = self.streams.push(**order)
        text = (before + "".join(texts)).encode()
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([[text]], object)),
                pb_utils.Tensor("token_texts", strings(texts)) if asked else self.no_texts,
            ]
        )


def strings(texts):
    array = np.empty((1, len(texts)), object)
    array[0] = [text.encode() for text in texts]
    return array
