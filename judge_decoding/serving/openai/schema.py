"""Requests: OpenAI's fields and ours. What is not supported is refused by name.

Reference: OpenAI's API reference (chat completions, completions); `top_k`, `min_p`, `ignore_eos`
and their neighbours as in vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import Field, ValidationError, model_validator

from judge_client.echo import cut, shown
from judge_decoding.config import describe
from judge_decoding.config.fields import Strict
from judge_decoding.serving.openai.errors import ApiError

MAX_CHOICES = 16
"""Answers to one request: `n` times the number of prompts."""
_UNSUPPORTED = frozenset(
    {
        "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
        "response_format", "audio", "modalities", "prediction", "reasoning_effort",
        "verbosity", "web_search_options", "store", "metadata", "service_tier", "suffix",
        "best_of", "prompt_cache_key", "safety_identifier", "prompt_cache_retention",
        "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
        "prompt_logprobs", "use_beam_search"
    }
)  # fmt: skip
"""Fields that others have. With null, or what changes nothing, they are accepted."""
_NEUTRAL: dict[str, list[Any]] = {
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "store": [False],
    "metadata": [{}],
    "service_tier": ["auto", "default"],
    "suffix": [""],
    "best_of": [1],
    "use_beam_search": [False],
}

Int32 = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: Literal[False] | None = None


class Part(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn. `developer` is OpenAI's newer name for `system`."""

    role: str
    content: str | list[Part]
    name: None = None
    tool_calls: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)

    def turn(self) -> dict[str, str]:
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Common(Strict):
    """What both kinds of requests have. None takes the deployment's default.

    The lower half is ours, or vLLM's.
    """

    model: str | None = None
    max_tokens: Int32 | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    min_tokens: Int32 | None = None
    ignore_eos: bool = False
    stop_token_ids: list[Int32] | None = None
    bad_words: list[str] | None = None
    end_id: Int32 | None = None
    deadline_ms: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    acceptance_rule: str | None = None
    judge_threshold: float | None = Field(default=None, ge=0, le=1)
    max_draft_len: Int32 | None = None
    return_provenance: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Common:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Int32 | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    continue_final_message: bool = False
    add_generation_prompt: Literal[True] = True

    @property
    def limit(self) -> int | None:
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many to return for each token; None asks for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        return self


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: bool = False

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, values: Any) -> Any:
        prompt = values.get("prompt") if isinstance(values, dict) else None
        if isinstance(prompt, list) and any(isinstance(item, (int, list)) for item in prompt):
            raise ValueError("prompt: token ids are not supported; send text")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.n * len(self.prompts) > MAX_CHOICES:
            raise ValueError(f"n: {self.n * len(self.prompts)} answers; ask for {MAX_CHOICES}")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: not together with logprobs, since a prompt's are not computed")
        return self


R = TypeVar("R", ChatRequest, CompletionRequest)


def read(kind: type[R], body: bytes) -> R:
    """The request in a body; ApiError with status 400 that names what is wrong."""
    try:
        document = msgspec.json.decode(body)
    except RecursionError:
        raise ApiError(400, "the body's JSON is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ApiError(400, "the body is not a JSON object")
    for name in list(document):
        if name in _UNSUPPORTED:
            value = document.pop(name)
            if value is not None and value not in _NEUTRAL.get(name, []):
                message = f"{name}: not supported by this server; leave it out"
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        elif name not in kind.model_fields:
            message = f"{shown(name)}: unknown field"
            raise ApiError(400, message, param=cut(name), code="unknown_parameter")
    try:
        return kind.model_validate(document, strict=True)
    except ValidationError as error:
        where = error.errors(include_url=False, include_context=False)[0]
        field = str(where["loc"][0]) if where["loc"] else where["msg"].partition(": ")[0]
        field = field.removeprefix("Value error, ").partition(":")[0]
        raise ApiError(400, describe(error, "request"), param=field) from None
