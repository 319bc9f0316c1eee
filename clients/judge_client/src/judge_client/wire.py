"""The wire contract: a request as tensors of the `ensemble` model, its responses as Python values.

Messages are built and read with tritonclient's generated classes. Everything here is pure: no
connection, no clock. docs/serving.md has the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from judge_client.echo import shown
from judge_client.errors import JudgeClientError, plain, refusal

MODEL = "ensemble"
"""Text in, text out: tokenizer, decoding loop and detokenizer in one."""


@dataclass(frozen=True)
class GenerateRequest:
    """What to generate. A field left at None is not sent: the deployment's default holds.

    prompt         text; bytes are sent as they are
    messages       a conversation of {"role", "content"}, instead of `prompt`
    chat           whether `prompt` is one user turn for the chat template; otherwise it is raw text
    stop           stop strings, or a single one
    logit_bias     token id -> what to add to its logit, in [-100, 100]
    end_id         the only end token, in place of the model's; `stop_token_ids` are further ones
    logprobs       ask for the target's log-probability of each token and of so many alternatives, 0
                   to 20 (with `provenance`)
    rule           acceptance rule; `threshold` is the judge's, in [0, 1]
    provenance     ask where each token comes from (Chunk.tokens)
    judge_scores   ask for the judge's score of each drafted token (with `provenance`)
    record         ask for the acceptance record (Answer.record)
    deadline_ms    counted by the server from the request's arrival, its queue included; the answer
                   then ends with what it has, and finish_reason is `deadline`
    """

    prompt: str | bytes = ""
    messages: Sequence[Mapping[str, str]] | None = None
    chat: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Sequence[str] | str = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str] = ()
    end_id: int | None = None
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    rule: str | None = None
    threshold: float | None = None
    max_draft_len: int | None = None
    ignore_eos: bool | None = None
    provenance: bool = False
    judge_scores: bool = False
    record: bool = False
    deadline_ms: int | None = None


class GeneratedToken(NamedTuple):
    """One emitted token.

    text        the text that became certain with it, possibly none
    provenance  `aligned`, `judged` or `target`
    score       the judge's score; None where there is none, or none was asked for
    logprob     the target's log-probability of the token, if asked for
    top         its alternatives of {"id", "token", "logprob"}, if asked for
    """

    id: int | None
    text: str
    provenance: str
    score: float | None
    logprob: float | None = None
    top: Sequence[Mapping[str, Any]] = ()


class Chunk(NamedTuple):
    """One response of a stream.

    text               new text
    tokens             the tokens that came in; [] unless `provenance` was asked for
    num_output_tokens  so far; None where the server did not say
    finish_reason      None until the last: `stop`, `length`, `cancelled` or `deadline`
    record             on the last response, when asked for
    """

    text: str
    tokens: list[GeneratedToken]
    num_input_tokens: int | None
    num_output_tokens: int | None
    finish_reason: str | None
    record: dict[str, Any] | None


@dataclass
class Answer:
    """A whole answer, or as much of it as came: the sum of its chunks."""

    text: str = ""
    tokens: list[GeneratedToken] = field(default_factory=list)
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    finish_reason: str | None = None
    record: dict[str, Any] | None = None

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.tokens += chunk.tokens
        if chunk.num_input_tokens is not None:
            self.num_input_tokens = chunk.num_input_tokens
        if chunk.num_output_tokens is not None:
            self.num_output_tokens = chunk.num_output_tokens
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.record = chunk.record or self.record


# Field of a request -> (tensor, Triton's type).
_INPUTS = {
    "prompt": ("text_input", "BYTES"),
    "messages": ("messages", "BYTES"),
    "chat": ("chat", "BOOL"),
    "max_tokens": ("max_tokens", "INT32"),
    "min_tokens": ("min_tokens", "INT32"),
    "stop": ("stop_words", "BYTES"),
    "temperature": ("temperature", "FP32"),
    "top_k": ("top_k", "INT32"),
    "top_p": ("top_p", "FP32"),
    "min_p": ("min_p", "FP32"),
    "seed": ("seed", "UINT64"),
    "repetition_penalty": ("repetition_penalty", "FP32"),
    "presence_penalty": ("presence_penalty", "FP32"),
    "frequency_penalty": ("frequency_penalty", "FP32"),
    "logit_bias": ("logit_bias", "BYTES"),
    "bad_words": ("bad_words", "BYTES"),
    "end_id": ("end_id", "INT32"),
    "stop_token_ids": ("stop_token_ids", "INT32"),
    "logprobs": ("logprobs", "INT32"),
    "rule": ("acceptance_rule", "BYTES"),
    "threshold": ("judge_threshold", "FP32"),
    "max_draft_len": ("max_draft_len", "INT32"),
    "ignore_eos": ("ignore_eos", "BOOL"),
    "provenance": ("return_provenance", "BOOL"),
    "judge_scores": ("return_judge_scores", "BOOL"),
    "record": ("return_acceptance_record", "BOOL"),
    "deadline_ms": ("deadline_ms", "INT32"),
}
_OUTPUTS = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")
_ON_DEMAND = {
    "provenance": ("provenance", "output_ids", "token_texts"),
    "judge_scores": ("judge_scores",),
    "logprobs": ("token_logprobs", "top_logprobs"),
    "record": ("speculative_decoding",),
}
"""Outputs that are always read, and those that a field of the request asks for."""
_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
}


Tensors = Mapping[str, tuple[str, Sequence[Any]]]
"""Name of an input -> (Triton's type, values)."""


def infer_request(
    request: GenerateRequest, request_id: str, *, stream: bool, model: str = MODEL
) -> Any:
    """A ModelInferRequest. JudgeClientError for a value that its tensor cannot hold."""
    tensors: dict[str, tuple[str, Sequence[Any]]] = {"stream": ("BOOL", [stream])}
    for one in fields(request):
        value = getattr(request, one.name)
        name, datatype = _INPUTS[one.name]
        if one.name == "messages" and value is not None:
            value = json.dumps([dict(message) for message in value])
        if one.name == "logit_bias" and value is not None:
            value = json.dumps({str(token): bias for token, bias in value.items()})
        if one.name in ("stop", "bad_words", "stop_token_ids"):
            several = [value] if isinstance(value, str) else list(value)
            tensors |= {name: (datatype, several)} if several else {}
        elif value is not None and (one.default is None or value != one.default):
            tensors[name] = (datatype, [value])
    tensors.setdefault("text_input", ("BYTES", [""]))  # the one input that is not optional
    # Only what a chunk is made of: every output costs time with every response, on both sides.
    wanted = [
        *_OUTPUTS,
        *(n for f, names in _ON_DEMAND.items() if _asks(request, f) for n in names),
    ]
    return infer_message(model, request_id, tensors, wanted)


def _asks(request: GenerateRequest, name: str) -> bool:
    """Whether a field asks for outputs; `logprobs` 0 does."""
    return getattr(request, name) not in (None, False)


def stop_request(request_id: str, *, model: str = MODEL) -> Any:
    """A message that ends the running request of that id: a second request under it, with `stop`.

    Triton does not pass the cancellation of a stream on to the steps of an ensemble.
    """
    tensors: Tensors = {"text_input": ("BYTES", [""]), "stop": ("BOOL", [True])}
    return infer_message(model, request_id, tensors)


def infer_message(
    model: str, request_id: str, tensors: Tensors, outputs: Sequence[str] = ()
) -> Any:
    """A ModelInferRequest for any model of the server; each tensor gets the shape [1, n].

    outputs  names of the wanted outputs; none for all of them

    JudgeClientError for a value that its tensor cannot hold.
    """
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    # Without it, a final flag that comes without tensors would not reach the client.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, (datatype, values) in tensors.items():
        message.inputs.add(name=name, datatype=datatype, shape=[1, len(values)])
        message.raw_input_contents.append(_raw(name, datatype, values))
    for name in outputs:
        message.outputs.add(name=name)
    return message


def _raw(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    from tritonclient.utils import serialize_byte_tensor

    for value in values:
        if not _fits(value, datatype):
            raise JudgeClientError(f"{name}: {shown(value)} is not a value of type {datatype}")
    if datatype != "BYTES":
        return np.array(values, dtype=_DTYPES[datatype]).tobytes()
    try:
        texts = [v if isinstance(v, bytes) else v.encode("utf-8") for v in values]
    except UnicodeEncodeError:
        raise JudgeClientError(f"{name}: it is not valid UTF-8") from None
    return bytes(serialize_byte_tensor(np.array(texts, dtype=object)).item())


def _fits(value: Any, datatype: str) -> bool:
    if datatype == "BYTES":
        return isinstance(value, (str, bytes))
    if datatype == "BOOL" or isinstance(value, bool):
        return datatype == "BOOL" and isinstance(value, bool)
    if datatype == "FP32":
        return isinstance(value, (int, float))
    limits = np.iinfo(_DTYPES[datatype])
    return isinstance(value, int) and limits.min <= value <= limits.max


class Outputs:
    """The outputs of one response by name; an output that the server left out is empty."""

    def __init__(self, response: Any) -> None:
        """response  a ModelInferResponse"""
        from tritonclient.grpc import InferResult

        self._result = InferResult(response)

    def array(self, name: str) -> list[Any]:
        values = self._result.as_numpy(name)
        return [] if values is None else list(values.reshape(-1).tolist())

    def texts(self, name: str) -> list[str]:
        return [value.decode("utf-8", errors="replace") for value in self.array(name)]

    def text(self, name: str) -> str:
        return "".join(self.texts(name))

    def integer(self, name: str) -> int | None:
        values = self.array(name)
        return int(values[0]) if values else None


def read_outputs(response: Any) -> tuple[Outputs | None, bool]:
    """A ModelStreamInferResponse -> (its outputs, whether it is the last response).

    The outputs are None where the response only says that no more will come. JudgeClientError where
    the server refused or ended the request: ServerBusy, ServerStopping where it may be sent again.
    """
    if response.error_message:
        raise refusal(plain(response.error_message))
    inner = response.infer_response
    final = bool(inner.parameters["triton_final_response"].bool_param)
    return (Outputs(inner) if inner.outputs else None), final


def read_chunk(outputs: Outputs) -> Chunk:
    """One response of the ensemble."""
    finish, record = outputs.text("finish_reason"), outputs.text("speculative_decoding")
    return Chunk(
        text=outputs.text("text_output"),
        tokens=list(_tokens(outputs)),
        num_input_tokens=outputs.integer("num_input_tokens"),
        num_output_tokens=outputs.integer("num_output_tokens"),
        finish_reason=finish or None,
        record=json.loads(record) if record else None,
    )


def _tokens(outputs: Outputs) -> Iterator[GeneratedToken]:
    """One token per entry of `provenance`; none where provenance was not asked for.

    The other outputs are as long, or empty. The ids are sent in any case.
    """
    origins = outputs.texts("provenance")
    count = len(origins)
    ids = outputs.array("output_ids")[:count] or [None] * count
    texts = outputs.texts("token_texts") or [""] * count
    scores = outputs.array("judge_scores")[:count] or [np.nan] * count
    logprobs = outputs.array("token_logprobs")[:count] or [None] * count
    top = json.loads(outputs.text("top_logprobs") or "[]")[:count] or [()] * count
    rows = zip(ids, texts, origins, scores, logprobs, top, strict=True)
    for number, text, origin, score, logprob, others in rows:
        known = None if np.isnan(score) else float(score)
        yield GeneratedToken(number, text, origin, known, logprob, others)
