"""From the loop's updates to the arrays of a response: the core model's outputs by wire name."""

from __future__ import annotations

from typing import Any

import numpy as np

from judge_decoding.decoding import Result, Update
from judge_decoding.sequence import Request, Token
from judge_decoding.serving.request import Parameters, to_json

Arrays = dict[str, np.ndarray[Any, Any]]


class Reply:
    """One request's responses: one a round when streaming, else a single one at the end.

    Every response holds the same arrays, empty where there is nothing to say: an ensemble wants
    that. The first five are for whoever detokenizes:

    sequence          int64 [1]
    ended             bool [1]: the last id is an end token, which has no text
    text_before       bytes [1]: goes before the text of this response
    stop_strings      bytes [n]
    with_token_texts  bool [1]
    """

    def __init__(
        self,
        sequence: int,
        request: Request | None = None,
        parameters: Parameters | None = None,
        end_ids: frozenset[int] = frozenset(),
        text_before: bytes = b"",
    ) -> None:
        """text_before  what the answer's text begins with

        Without a request: the answer to a cancel.
        """
        self._sequence = sequence
        self._request = request or Request([], 1)
        self._parameters = parameters or Parameters()
        self._end_ids = end_ids
        self._text_before = text_before
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
        if result is None and not self._parameters.stream:
            return None
        tokens, self._tokens = self._tokens, []
        before, self._text_before = self._text_before, b""
        reason = result.finish_reason if result else ""
        record = b""
        if result is not None and self._parameters.return_acceptance_record:
            record = to_json(result.record.to_dict())
        return {
            "sequence": np.array([self._sequence], np.int64),
            "ended": np.array([reason == "stop" and self._ended(tokens)], bool),
            "text_before": np.array([before], object),
            "stop_strings": np.array([text.encode() for text in self._request.stop], object),
            "with_token_texts": np.array([self._parameters.return_provenance], bool),
            "output_ids": np.array([token.id for token in tokens], np.int32),
            "finish_reason": np.array([str(reason).encode()], object),
            "num_input_tokens": np.array([len(self._request.prompt_ids)], np.int32),
            "num_output_tokens": np.array([self._count], np.int32),
            "acceptance_rate": np.array([self._accepted / max(self._drafted, 1)], np.float32),
            "total_accepted_draft_tokens": np.array([self._accepted], np.int32),
            "total_draft_tokens": np.array([self._drafted], np.int32),
            "provenance": np.array(
                [token.provenance.encode() for token in tokens]
                if self._parameters.return_provenance
                else [],
                object,
            ),
            "judge_scores": np.array(
                [np.nan if token.score is None else token.score for token in tokens]
                if self._parameters.return_judge_scores
                else [],
                np.float32,
            ),
            "speculative_decoding": np.array([record], object),
        }

    def _ended(self, tokens: list[Token]) -> bool:
        return bool(tokens) and self._request.ends(tokens[-1].id, self._count, self._end_ids)
