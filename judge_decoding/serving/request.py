"""Turns the plain values that a client sends into a `Request`; every check has its message.

docs/serving.md has the names. Values arrive as numpy arrays, which any transport can make; nothing
here knows Triton.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from judge_client.echo import cut
from judge_decoding.config import Deployment, describe
from judge_decoding.decoding.contracts import MAX_LOGPROBS, Constraints, RuleName, Sampling
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.serving.bounds import (
    LISTS,
    MAX_BIASES,
    MAX_STOP_BYTES,
    MAX_STOP_STRINGS,
    MAX_TURNS,
    check_tensors,
)
from judge_decoding.text import Tokenizer

DEFAULT_MAX_TOKENS = 128
LONG_TOKEN = 16
"""Bytes per token. A text with more bytes than this per token of the context hardly fits it."""


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Parameters(BaseModel):
    """How to answer. None takes the deployment's value; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    stop_words: list[str] = Field(default=[], max_length=MAX_STOP_STRINGS)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = {}
    bad_words: list[str] = []
    end_id: int | None = None
    stop_token_ids: list[int] = []
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    n: int = 1
    max_draft_len: int | None = Field(default=None, ge=0)
    acceptance_rule: RuleName | None = None
    judge_threshold: float | None = Field(default=None, ge=0, le=1)
    ignore_eos: bool = False
    deadline_ms: int | None = Field(default=None, ge=1)
    stream: bool = False
    return_provenance: bool = False
    return_judge_scores: bool = False
    return_acceptance_record: bool = False
    # Always sent by load generators and by Triton's OpenAI front end; the counts always return.
    return_num_input_tokens: bool = True
    return_num_output_tokens: bool = True
    stop: bool = False

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        for alias, name in (("min_length", "min_tokens"), ("num_draft_tokens", "max_draft_len")):
            if alias in values:
                values.setdefault(name, values.pop(alias))
                values.pop(alias, None)
        return values

    @model_validator(mode="after")
    def _stop_strings_are_short(self) -> Parameters:
        if any(len(text.encode()) > MAX_STOP_BYTES for text in self.stop_words):
            raise ValueError(f"stop_words: one is longer than {MAX_STOP_BYTES} bytes")
        return self

    def deadline_s(self, deployment: Deployment, timeout_us: int = 0) -> float | None:
        """Seconds that the request may take: the smallest of all limits, None without any.

        timeout_us  Triton's own request parameter `timeout`; 0 where it was not given
        """
        given = [self.deadline_ms, deployment.server.deadline_ms]
        limits = [ms / 1e3 for ms in given if ms is not None]
        return min([*limits, timeout_us / 1e6] if timeout_us else limits, default=None)

    def request(
        self, prompt_ids: list[int], deployment: Deployment, tokenizer: Tokenizer | None = None
    ) -> Request:
        """The loop's request. The loop makes no text for it: the caller decides who detokenizes.

        tokenizer  reads `bad_words`, and tells which stop strings are special tokens
        """
        limit = deployment.limits.max_tokens
        if self.max_tokens is not None and self.max_tokens > limit:
            raise UserError(f"max_tokens: {self.max_tokens} is more than the limit of {limit}")
        if self.n != 1:
            raise UserError(
                f"n: {self.n} answers; a request has one, so send one request per answer, each "
                "with its own seed"
            )
        longest = deployment.max_draft_len
        if self.max_draft_len is not None and self.max_draft_len > longest:
            raise UserError(
                f"max_draft_len: {self.max_draft_len} is more than the deployment's {longest}"
            )
        # Clients of TensorRT-LLM ask for greedy decoding with top_k 1.
        temperature = 0.0 if self.top_k == 1 else self.temperature
        rule = self.acceptance_rule
        if rule is None and temperature > 0 and deployment.acceptance.rule == "strict":
            rule = "rejection"  # strict is greedy; this is its lossless sampling counterpart
        return Request(
            prompt_ids=prompt_ids,
            max_tokens=self.max_tokens or min(DEFAULT_MAX_TOKENS, limit),
            min_tokens=self.min_tokens,
            acceptance=deployment.default_acceptance(rule=rule, threshold=self.judge_threshold),
            sampling=Sampling(
                temperature,
                self.top_k,
                self.top_p,
                self.seed,
                self.min_p,
                constraints(
                    tokenizer,
                    repetition=self.repetition_penalty,
                    presence=self.presence_penalty,
                    frequency=self.frequency_penalty,
                    logit_bias=self.logit_bias,
                    bad_words=self.bad_words,
                ),
                self.logprobs,
            ),
            end_id=self.end_id,
            stop_ids=(*self.stop_token_ids, *special_stops(tokenizer, self.stop_words)),
            max_draft_len=self.max_draft_len,
            stop=tuple(text for text in self.stop_words if text),
            ignore_end=self.ignore_eos,
            text=False,
        )


def parameters(tensors: Mapping[str, np.ndarray[Any, Any]]) -> Parameters:
    """Checked parameters from arrays by name; all but `bounds.LISTS` hold one value."""
    try:
        return Parameters.model_validate(
            {
                name: [
                    _text(name, item) if isinstance(item, bytes) else item.item()
                    for item in array.reshape(-1)
                ]
                if name in LISTS
                else biases(_one(name, array))
                if name == "logit_bias"
                else _one(name, array)
                for name, array in tensors.items()
            }
        )
    except ValidationError as error:
        raise UserError(describe(error, "request")) from None


def constraints(
    tokenizer: Tokenizer | None,
    *,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    bad_words: Sequence[str] = (),
) -> Constraints | None:
    """A request's options as the engines read them; None if they change nothing.

    A bad word is excluded both as it is and after a blank, which are different tokens.
    """
    words = [text for text in bad_words if text]
    if words and tokenizer is None:
        raise UserError("bad_words: they need a tokenizer")
    excluded = [
        tuple(tokenizer.encode(text, special=False))
        for word in words
        if tokenizer is not None
        for text in (word, " " + word.lstrip())
    ]
    made = Constraints(
        repetition=repetition,
        presence=presence,
        frequency=frequency,
        bias=tuple(sorted((logit_bias or {}).items())),
        bad_words=tuple(dict.fromkeys(ids for ids in excluded if ids)),
    )
    return made if made.names else None


def special_stops(tokenizer: Tokenizer | None, stop: Sequence[str]) -> list[int]:
    """The ids of the stop strings that are special tokens, which have no text to match."""
    if tokenizer is None:
        return []
    return [number for text in stop if (number := tokenizer.special_id(text)) is not None]


def biases(text: str) -> dict[int, float]:
    """The JSON of `logit_bias`, token id -> bias; UserError if it is none or too large."""
    try:
        found: dict[int, float] = _BIASES.decode(text or "{}")
    except msgspec.MsgspecError as error:
        raise UserError(f"logit_bias: {cut(str(error))}") from None
    if len(found) > MAX_BIASES:
        raise UserError(f"logit_bias: {len(found)} tokens; give at most {MAX_BIASES}")
    return found


_BIASES = msgspec.json.Decoder(dict[int, float])


def prompt(
    tensors: Mapping[str, np.ndarray[Any, Any]], tokenizer: Tokenizer, deployment: Deployment
) -> tuple[list[int], str]:
    """The prompt's ids and its text, from `text_input` or `messages`.

    text_input  raw text; with `chat` true, one user turn for the chat template, unless the
                deployment says `chat_template: none`
    messages    JSON list of {"role", "content"} for the chat template; text_input is then ignored

    UserError if it is no prompt or far too long; the loop checks the exact length.
    """
    check_tensors(tensors, deployment)
    if "messages" in tensors and (conversation := _one("messages", tensors["messages"])):
        turns, instead = _messages(conversation), "send text_input instead of messages"
        ids = _chat(turns, tokenizer, deployment, instead)
        return ids, tokenizer.decode(ids)
    if "text_input" not in tensors:
        raise UserError("prompt: text_input is missing; give a text or messages")
    text = _one("text_input", tensors["text_input"])
    if not text:
        raise UserError("prompt: text_input is empty; give a text or messages")
    chat = "chat" in tensors and _one("chat", tensors["chat"])
    if chat and tokenizer.chat_template == "own":
        turns, instead = [{"role": "user", "content": text}], "send text_input without chat"
        return _chat(turns, tokenizer, deployment, instead), text
    _check_length(text, tokenizer, deployment)
    return tokenizer.encode(text), text


def _chat(
    turns: list[dict[str, str]], tokenizer: Tokenizer, deployment: Deployment, instead: str
) -> list[int]:
    text = tokenizer.chat_text(turns, instead=instead)
    _check_length(text, tokenizer, deployment)
    return tokenizer.encode(text, special=False)


def _check_length(text: str, tokenizer: Tokenizer, deployment: Deployment) -> None:
    """Refuse a text that cannot fit before all of it is tokenized: 1 MB takes seconds, and others
    wait.

    We count tokens piece by piece, since many bytes may be few tokens (some vocabularies have one
    for 64 blanks). A cut only changes the tokens beside it: a piece begins or ends within a word,
    or within a few words that a tokenizer without word boundaries would have merged. With pieces as
    long as these, the sum is never twice the number of tokens of the text.
    """
    limit = deployment.limits.max_context
    piece = LONG_TOKEN * limit
    encoded = text.encode()
    if len(encoded) <= piece:
        return
    seen = 0
    for start in range(0, len(encoded), piece):
        part = encoded[start : start + piece].decode(errors="ignore")  # whole characters
        seen += len(tokenizer.encode(part, special=False))
        if seen > 2 * limit:
            raise UserError(
                f"prompt: more than {limit} tokens do not fit the context of {limit} with an "
                "answer; shorten it or raise limits.max_context"
            )


_CONVERSATION = msgspec.json.Decoder(list[Message])
"""Stops at the first problem, within 30 ms for 1 MB of anything."""


def _messages(text: str) -> list[dict[str, str]]:
    try:
        turns = _CONVERSATION.decode(text)
    except msgspec.MsgspecError as error:
        raise UserError(f"messages: {cut(str(error))}") from None
    if not turns:
        raise UserError("messages: the list is empty")
    if len(turns) > MAX_TURNS:
        raise UserError(f"messages: {len(turns)} turns; give at most {MAX_TURNS}")
    return [msgspec.structs.asdict(turn) for turn in turns]


def _one(name: str, array: np.ndarray[Any, Any]) -> Any:
    """An array's only value as a plain Python value."""
    if array.size != 1:
        raise UserError(f"{name}: {array.size} values; give one")
    value = array.reshape(-1)[0]
    if isinstance(value, bytes):
        return _text(name, value)
    if isinstance(value, np.floating):
        # The decimal that was meant: 0.99 and not float32's 0.9900000095.
        return float(str(value))
    return value.item()


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not valid UTF-8 at byte {error.start}") from None


def to_json(document: Any) -> bytes:
    """The document on one line; ValueError for a number that JSON lacks, such as NaN."""
    return json.dumps(document, allow_nan=False).encode()
