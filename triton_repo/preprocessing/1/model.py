"""Text or messages -> token ids: `execute` queues the prompts, and the queue's thread reads them.

The package `judge_decoding.serving` has the checks (`request`) and the queue (`tokenizer_queue`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from judge_client.echo import cut
from judge_decoding.errors import UserError
from judge_decoding.ranks import run_folder
from judge_decoding.serving.admission import Unavailable
from judge_decoding.serving.bounds import check_tensors, longest_string, read_strings
from judge_decoding.serving.door import Door
from judge_decoding.serving.request import prompt
from judge_decoding.serving.tokenizer_queue import TokenizerQueue
from judge_decoding.text import Tokenizer

Tensors = Mapping[str, np.ndarray[Any, Any]]
LAST = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        run_folder.announce("the preprocessing model")
        self.deployment = run_folder.deployment()
        most = longest_string(self.deployment)
        pb_utils.deserialize_bytes_tensor = partial(read_strings, most=most)
        try:
            self.tokenizer = Tokenizer(self.deployment.target.model, self.deployment.chat_template)
            self.tokenizer.try_template()
        except UserError as error:
            run_folder.report_failure(str(error))
            raise
        self.door = Door(run_folder.folder())
        # As many prompts as the loop accepts: it would refuse any more.
        limits, server = self.deployment.limits, self.deployment.server
        self.queue = TokenizerQueue(limits.max_sequences + server.max_queue)

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            sender, name = request.get_response_sender(), request.request_id()
            try:
                check_tensors(tensors, self.deployment, name)
                if "stop" in tensors and tensors["stop"].item():
                    # A cancel has no prompt.
                    self.queue.put_behind(name, partial(answer, sender, tensors, [], ""))
                else:
                    self.door.check()
                    self.queue.put(name, partial(self.read, sender, tensors))
            except UserError as error:
                fail(sender, error)

    def read(self, sender: pb_utils.InferenceResponseSender, tensors: Tensors) -> None:
        try:
            ids, text = prompt(tensors, self.tokenizer, self.deployment)
        except UserError as error:
            fail(sender, error)
        except Exception as error:
            why = cut(f"{type(error).__name__}: {error}")
            fail(sender, UserError(f"prompt: it cannot be read ({why})"))
            raise
        else:
            answer(sender, tensors, ids, text)


def answer(
    sender: pb_utils.InferenceResponseSender, tensors: Tensors, ids: list[int], text: str
) -> None:
    if "exclude_input_in_output" not in tensors or tensors["exclude_input_in_output"].item():
        text = ""
    outputs = [
        pb_utils.Tensor("input_ids", np.array([ids], np.int32)),
        pb_utils.Tensor("input_text", np.array([[text.encode()]], object)),
    ]
    sender.send(pb_utils.InferenceResponse(outputs), flags=LAST)


def fail(sender: pb_utils.InferenceResponseSender, error: UserError) -> None:
    later = isinstance(error, Unavailable)
    code = pb_utils.TritonError.UNAVAILABLE if later else pb_utils.TritonError.INVALID_ARG
    refusal = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
    sender.send(refusal, flags=LAST)
