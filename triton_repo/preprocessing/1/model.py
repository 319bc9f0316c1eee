"""Text or messages -> token ids; the checks are `judge_decoding.serving.request.prompt`'s."""

import numpy as np
import triton_python_backend_utils as pb_utils

from judge_decoding.errors import UserError
from judge_decoding.serving import environment
from judge_decoding.serving.request import prompt
from judge_decoding.text import Tokenizer


class TritonPythonModel:
    def initialize(self, args):
        environment.announce("the preprocessing model")
        self.deployment = environment.deployment()
        try:
            self.tokenizer = Tokenizer(self.deployment.target.model)
        except UserError as error:
            environment.report_failure(str(error))
            raise

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if "stop" in tensors and tensors["stop"].item():
            ids, text = [], ""  # a cancel has no prompt
        else:
            try:
                ids, text = prompt(tensors, self.tokenizer, self.deployment)
            except UserError as error:
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                )
        if "exclude_input_in_output" not in tensors or tensors["exclude_input_in_output"].item():
            text = ""
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", np.array([ids], np.int32)),
                pb_utils.Tensor("input_text", np.array([[text.encode()]], object)),
            ]
        )
