"""The JSON of answers: choices, usage, and `metrics` as vLLM has them per request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from judge_client.wire import GeneratedToken
from judge_decoding.serving.openai.engine import Piece
from judge_decoding.serving.openai.schema import ChatRequest, CompletionRequest

_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}
"""Our reasons in OpenAI's words."""


@dataclass
class Choice:
    """One answer so far."""

    text: str = ""
    finish: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    record: dict[str, Any] | None = None
    rounds: list[int] = field(default_factory=list)
    accepted: int = 0  # in the round that is not over
    judge: dict[str, list[Any]] = field(
        default_factory=lambda: {"provenance": [], "texts": [], "scores": []}
    )
    scored: list[GeneratedToken] = field(default_factory=list)  # where log-probabilities are asked


class Answer:
    """The answer to one request, built from the pieces of its choices.

    `chunk` turns a piece into the JSON of a stream's event; `whole` makes one document of them all.
    """

    def __init__(self, request: ChatRequest | CompletionRequest, name: str, model: str) -> None:
        self._request = request
        self._chat = isinstance(request, ChatRequest)
        count = 1 if isinstance(request, ChatRequest) else len(request.prompts)
        self._choices = [Choice() for _ in range(count * request.n)]
        self._head = {
            "id": name,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def add(self, piece: Piece) -> dict[str, Any]:
        """Take in a piece; the fields of its choice beside the text."""
        choice, chunk = self._choices[piece.choice], piece.chunk
        choice.text += chunk.text
        choice.prompt_tokens = chunk.num_input_tokens or choice.prompt_tokens
        choice.tokens = chunk.num_output_tokens or choice.tokens
        choice.record = chunk.record or choice.record
        if chunk.finish_reason:
            choice.finish = _FINISH[chunk.finish_reason]
        fields = dict[str, Any]()
        if self._request.return_provenance:
            found: dict[str, list[Any]] = {
                "provenance": [token.provenance for token in chunk.tokens],
                "texts": [token.text for token in chunk.tokens],
                "scores": [token.score for token in chunk.tokens],
            }
            for key, values in found.items():
                choice.judge[key] += values
            for origin in found["provenance"]:
                if origin == "target":  # ends its round
                    choice.rounds.append(choice.accepted)
                    choice.accepted = 0
                else:
                    choice.accepted += 1
            fields["judge"] = found | {"rounds": list(choice.rounds)}
        if self._request.alternatives is not None:
            choice.scored += chunk.tokens
            fields["logprobs"] = self._logprobs(chunk.tokens)
        return fields

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """The event of a stream for this piece."""
        choice = self._choices[piece.choice]
        first = not choice.tokens
        fields = self.add(piece)
        content: dict[str, Any] = {"text": piece.chunk.text}
        if self._chat:
            role = {"role": "assistant"} if first else {}
            content = {"delta": role | {"content": piece.chunk.text}}
        event = self._event([self._choice(piece.choice, content, fields)])
        if self._request.include_usage:
            event["usage"] = None
        elif choice.finish is not None:
            event["metrics"] = self._metrics()
        return event

    def last(self) -> dict[str, Any]:
        """The event with `usage`, after all others."""
        return self._event([]) | {"usage": self._usage(), "metrics": self._metrics()}

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, choice in enumerate(self._choices):
            content: dict[str, Any] = {"text": choice.text}
            if self._chat:
                content = {"message": {"role": "assistant", "content": choice.text}}
            fields = dict[str, Any]()
            if self._request.return_provenance:
                fields["judge"] = choice.judge | {"rounds": choice.rounds}
            if self._request.alternatives is not None:
                fields["logprobs"] = self._logprobs(choice.scored)
            choices.append(self._choice(index, content, fields))
        return self._head | {
            "choices": choices,
            "usage": self._usage(),
            "metrics": self._metrics(),
        }

    def _choice(self, index: int, content: dict[str, Any], fields: dict[str, Any]) -> Any:
        finish = self._choices[index].finish
        return {"index": index, **content, "logprobs": None, "finish_reason": finish} | fields

    def _event(self, choices: list[Any]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return self._head | {"object": kind, "choices": choices}

    def _usage(self) -> dict[str, int]:
        prompts = sum(choice.prompt_tokens for choice in self._choices[:: self._request.n])
        tokens = sum(choice.tokens for choice in self._choices)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": tokens,
            "total_tokens": prompts + tokens,
        }

    def _metrics(self) -> dict[str, Any] | None:
        """vLLM's form, with `num_judged_tokens` and `num_target_tokens` added; like vLLM's, None
        for several answers."""
        if len(self._choices) > 1 or self._choices[0].record is None:
            return None
        return {"speculative_decoding": self._choices[0].record}

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> dict[str, Any]:
        if self._chat:
            return {"content": [_entry(one) for one in tokens], "refusal": None}
        return {
            "tokens": [one.text for one in tokens],
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [{t["token"]: t["logprob"] for t in one.top} for one in tokens],
        }


def _entry(one: GeneratedToken) -> dict[str, Any]:
    top = [_token(other["token"], other["logprob"]) for other in one.top]
    return _token(one.text, one.logprob) | {"top_logprobs": top}


def _token(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
