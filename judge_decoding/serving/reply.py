"""From the loop's updates to the arrays of a response: the core model's outputs by wire name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from judge_decoding.decoding.loop import Result, Update
from judge_decoding.decoding.sequence import Request, Token
from judge_decoding.serving.order import part, sign
from judge_decoding.serving.request import Parameters, to_json
from judge_decoding.text import PROMPT_TAIL

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

_NO_TEXT = np.array([b""], object)
_NO_TEXTS = np.array([], object)
_LATER = part({"before": "", "stop": []})
"""In place of what only the first order says."""
_NO_SCORES = np.array([], np.float32)


class Reply:
    """The responses to one request: many for a stream, otherwise a single one at the end.

    A stream sends its first round at once and then one response every `stream_interval` rounds.

    Every response holds the same arrays, as an ensemble requires; an array may be empty. An array
    that says the same as before is the same object, so that its tensor can be kept.

    `detokenize` is a signed order (serving.order) to the postprocessing. It is one tensor, because
    each tensor costs time in every process that it passes through:

    sequence, at, ids, stop, min_tokens, finish, ended  what `Detokenizer.push` takes
    before       text to put before the text of this response
    token_texts  whether the text of each token was asked for

    Only the first order has the stop strings and the prompt's end: the `Detokenizer` keeps them.
    """

    def __init__(
        self,
        sequence: int,
        secret: bytes,
        request: Request | None = None,
        parameters: Parameters | None = None,
        end_ids: frozenset[int] = frozenset(),
        text_before: bytes = b"",
        stream_interval: int = 1,
        token_text: Callable[[int], str] = str,
    ) -> None:
        """secret           signs the orders
        text_before      what the answer's text begins with
        stream_interval  rounds between two responses of a stream (config.ServerConfig)
        token_text       writes the tokens of `top_logprobs` (Tokenizer.token_text)

        Without a request, this is the answer to a cancellation.
        """
        self._sequence = sequence
        self._secret = secret
        self._request = request or Request([], 1)
        self._parameters = parameters or Parameters()
        self._end_ids = end_ids
        # As large as a client likes, so not made on the scheduler's thread.
        first = {
            "before": text_before.decode(errors="replace"),
            "stop": list(self._request.stop),
            "min_tokens": self._request.min_tokens,
            "prompt": list(self._request.prompt_ids[-PROMPT_TAIL:]),
        }
        self._first = part(first)
        self._stream_interval = stream_interval
        self._token_text = token_text
        self._wait = 0  # rounds to hold back before the next response of a stream
        self._num_input_tokens = np.array([len(self._request.prompt_ids)], np.int32)
        self._tokens: list[Token] = []  # not sent yet
        self._count = 0
        self._drafted = 0
        self._accepted = 0

    def add(self, update: Update, result: Result | None) -> Arrays | None:
        """The response to send now, or None. `result` makes it the last."""
        self._tokens += update.tokens
        self._count += len(update.tokens)
        self._drafted += update.drafted
        self._accepted += sum(token.provenance != "target" for token in update.tokens)
        if result is None and (self._wait or not self._parameters.stream):
            self._wait = max(0, self._wait - 1)
            return None
        self._wait = self._stream_interval - 1
        tokens, self._tokens = self._tokens, []
        first, self._first = self._first, _LATER
        asked = self._parameters
        reason = str(result.finish_reason) if result else ""
        ids = [token.id for token in tokens]
        document = {
            "sequence": self._sequence,
            "at": self._count - len(ids),
            "ids": ids,
            "finish": reason,
            "ended": reason == "stop" and self._ended(tokens),
            "token_texts": asked.return_provenance,
        }
        record = _NO_TEXT
        if result is not None and asked.return_acceptance_record:
            record = np.array([to_json(result.record.to_dict())], object)
        return {
            "detokenize": np.array([sign(document, self._secret, first)], object),
            "output_ids": np.array(ids, np.int32),
            "finish_reason": np.array([reason.encode()], object) if reason else _NO_TEXT,
            "num_input_tokens": self._num_input_tokens,
            "num_output_tokens": np.array([self._count], np.int32),
            "acceptance_rate": np.array([self._accepted / max(self._drafted, 1)], np.float32),
            "total_accepted_draft_tokens": np.array([self._accepted], np.int32),
            "total_draft_tokens": np.array([self._drafted], np.int32),
            "provenance": np.array([token.provenance.encode() for token in tokens], object)
            if asked.return_provenance
            else _NO_TEXTS,
            "judge_scores": np.array(
                [np.nan if token.score is None else token.score for token in tokens], np.float32
            )
            if asked.return_judge_scores
            else _NO_SCORES,
            "speculative_decoding": record,
            **self._logprobs(tokens),
        }

    def _logprobs(self, tokens: list[Token]) -> Arrays:
        """`token_logprobs` and `top_logprobs`: per token a list of its alternatives, as JSON."""
        found = [token.logprobs for token in tokens if token.logprobs is not None]
        if not found:
            return {"token_logprobs": _NO_SCORES, "top_logprobs": _NO_TEXT}
        top = [
            [
                {"id": number, "token": self._token_text(number), "logprob": value}
                for number, value in one.top
            ]
            for one in found
        ]
        return {
            "token_logprobs": np.array([one.chosen for one in found], np.float32),
            "top_logprobs": np.array([to_json(top)], object)
            if self._parameters.logprobs
            else _NO_TEXT,
        }

    def _ended(self, tokens: list[Token]) -> bool:
        return bool(tokens) and self._request.ends(tokens[-1].id, self._count, self._end_ids)
