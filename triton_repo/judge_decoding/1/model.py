"""The speculative loop in Triton: `execute` enqueues, the scheduler's thread does the rest.

That thread loads the pipeline (with ranks it is MPI rank 0, and MPI belongs to one thread), runs
the rounds, sends the responses and touches the metrics.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from functools import partial
from threading import Thread

import numpy as np
import triton_python_backend_utils as pb_utils
from metrics import MetricsEndpoint

from judge_decoding.decoding.loop import Result, SpeculativeDecoder, Update
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from judge_decoding.ranks import run_folder
from judge_decoding.serving.admission import Unavailable, never_started
from judge_decoding.serving.audit_log import AuditLog
from judge_decoding.serving.bounds import check_tensors, longest_string, read_strings
from judge_decoding.serving.door import Door
from judge_decoding.serving.metrics import Metrics, Publisher
from judge_decoding.serving.reply import Array, Reply
from judge_decoding.serving.request import parameters
from judge_decoding.serving.scheduler import Scheduler

NOTHING = np.array(b"", object)
LOOK_S = 0.1
LARGE_BYTES = 64 * 1024
"""A larger last response may find no room in /dev/shm. It is followed by an empty one that ends the
stream: after a last response that failed, Triton would not send the error."""
LAST = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        run_folder.announce("the judge_decoding model")
        run_folder.announce(run_folder.SERVER_ROLE, pid=os.getppid())
        self.deployment = run_folder.deployment()
        most = longest_string(self.deployment)
        pb_utils.deserialize_bytes_tensor = partial(read_strings, most=most)
        self.secret = run_folder.secret()
        self.audit = AuditLog(self.deployment.audit)
        self.metrics = Metrics(self.deployment)
        self.scheduler = Scheduler(
            self.load,
            max_queue=self.deployment.server.max_queue,
            max_wait_s=self.deployment.server.max_wait_s,
            door=Door(run_folder.folder()),
            metrics=self.metrics,
            tick=lambda: self.publisher.tick(),
            close=self.close,
        )
        try:
            self.scheduler.start()
        except UserError as error:
            run_folder.report_failure(str(error))
            raise pb_utils.TritonModelException(str(error)) from None
        drain = partial(self.scheduler.drain, self.deployment.server.drain_s)
        Thread(target=run_folder.drain_when_asked, args=(drain,), daemon=True).start()
        self.tokenizer = self.pipeline.tokenizer
        self.end_ids = frozenset(self.scheduler.decoder.target.end_ids)

    def load(self) -> SpeculativeDecoder:
        self.pipeline = load_pipeline(self.deployment)
        make = MetricsEndpoint(self.deployment).series if self.deployment.server.metrics else None
        self.publisher = Publisher(self.metrics, make)
        if (ranks := self.pipeline.ranks) is not None:
            self.metrics.heard = ranks.heard
            self.publisher.beat = ranks.ping
        return self.pipeline.decoder

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.take_in(request, sender)
            except Unavailable as error:
                fail(sender, str(error), pb_utils.TritonError.UNAVAILABLE)
            except UserError as error:
                fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)

    def take_in(
        self, request: pb_utils.InferenceRequest, sender: pb_utils.InferenceResponseSender
    ) -> None:
        with self.scheduler.counting_refusals():
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            name = request.request_id()
            check_tensors(tensors, self.deployment, name)
            if "input_ids" not in tensors:  # Triton accepts a second copy of another input instead
                raise UserError("input_ids: it is missing; give the prompt's token ids")
            prompt_ids = tensors.pop("input_ids").reshape(-1).tolist()
            before = tensors.pop("input_text", NOTHING).item()
            asked = parameters(tensors)
            if asked.stop and not name:
                raise UserError("stop: give it the request id of the request to cancel")
            wanted = (
                None if asked.stop else asked.request(prompt_ids, self.deployment, self.tokenizer)
            )
        number = secrets.randbits(62)  # for this request only, and impossible to guess
        if wanted is None:
            self.scheduler.cancel(name)
            Stream(sender, Reply(number, self.secret)).updated(*never_started())
            return
        interval = self.deployment.server.stream_interval
        text = self.tokenizer.token_text
        reply = Reply(number, self.secret, wanted, asked, self.end_ids, before, interval, text)
        deadline_s = asked.deadline_s(self.deployment, request.timeout())
        listener = self.audit.watch(wanted, Stream(sender, reply))
        self.scheduler.submit(wanted, listener, name, deadline_s=deadline_s)

    def close(self) -> None:
        if self.scheduler.dead:
            run_folder.report_failure(self.scheduler.dead)
        self.pipeline.close()

    def finalize(self) -> None:
        self.scheduler.stop()


class Stream:
    """The scheduler's listener for one request: sends the responses that its reply builds."""

    def __init__(self, sender: pb_utils.InferenceResponseSender, reply: Reply) -> None:
        self.sender = sender
        self.reply = reply
        self.sent: dict[str, tuple[Array, pb_utils.Tensor]] = {}
        self.next_look = 0.0

    def updated(self, update: Update, result: Result | None) -> None:
        arrays = self.reply.add(update, result)
        if arrays is not None:
            tensors = [self.tensor(name, array) for name, array in arrays.items()]
            response = pb_utils.InferenceResponse(tensors)
            large = sum(len(arrays[name].item()) for name in ("detokenize", "top_logprobs"))
            if result is None or large <= LARGE_BYTES:
                self.sender.send(response, flags=LAST if result else 0)
            else:
                self.sender.send(response)
                self.sender.send(flags=LAST)

    def tensor(self, name: str, array: Array) -> pb_utils.Tensor:
        """Reuse the last response's tensor if the array is the same: a new one takes 15 us."""
        known = self.sent.get(name)
        if known is None or known[0] is not array:
            known = self.sent[name] = array, pb_utils.Tensor(name, array[None])
        return known[1]

    def failed(self, message: str) -> None:
        fail(self.sender, message, pb_utils.TritonError.UNAVAILABLE)

    def is_cancelled(self) -> bool:
        """Ask ten times per second at most: each time is a round trip to the server's process."""
        now = time.monotonic()
        if now < self.next_look:
            return False
        self.next_look = now + LOOK_S
        return self.sender.is_cancelled()


def fail(sender: pb_utils.InferenceResponseSender, message: str, code: int) -> None:
    error = pb_utils.TritonError(message, code)
    sender.send(pb_utils.InferenceResponse(error=error), flags=LAST)
