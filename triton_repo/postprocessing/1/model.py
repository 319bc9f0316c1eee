"""Token ids -> text; the work is `judge_decoding.serving.detokenizer`'s."""

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

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        texts = self.streams.push(
            int(tensors["sequence"].item()),
            tensors["output_ids"].reshape(-1).tolist(),
            stop=[word.decode() for word in tensors["stop_strings"].flat],
            finish=tensors["finish_reason"].item().decode(),
            ended=bool(tensors["ended"].item()),
        )
        text = tensors["text_before"].item() + "".join(texts).encode()
        if not tensors["with_token_texts"].item():
            texts = []
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([[text]], object)),
                pb_utils.Tensor("token_texts", strings(texts)),
            ]
        )


def strings(texts):
    array = np.empty((1, len(texts)), object)
    array[0] = [text.encode() for text in texts]
    return array
