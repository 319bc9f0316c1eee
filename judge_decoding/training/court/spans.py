"""Locating the error: which tokens of a wrong answer are wrong, and what surrounds them."""

from __future__ import annotations

from collections.abc import Sequence

from judge_decoding.text import Tokenizer
from judge_decoding.training.labels import AFTER_ERROR_ORIGIN, AfterError, Span, after_error_label


def tokens_until(ids: Sequence[int], chars: int, tokenizer: Tokenizer) -> int:
    """How many tokens are needed to write the first `chars` characters of the text."""
    n = 0
    while n < len(ids) and len(tokenizer.decode(ids[:n]).rstrip("\ufffd")) < chars:
        n += 1
    return n


def error_spans(
    start: int, end: int, count: int, after_error: AfterError, origin: str = "error"
) -> list[Span]:
    """The spans of an answer of `count` tokens in which tokens [start, end) are the error."""
    spans = [Span(start=start, end=end, label="bad", origin=origin)]
    if start:
        spans.insert(0, Span(start=0, end=start, label="good", origin="before_error"))
    if end < count:
        label = after_error_label(after_error)
        spans.append(Span(start=end, end=count, label=label, origin=AFTER_ERROR_ORIGIN))
    return spans


def mistake_spans(
    wrong: Sequence[int],
    right: Sequence[int],
    until: int,
    tokenizer: Tokenizer,
    after_error: AfterError,
) -> list[Span]:
    """The spans of a wrong answer, given the right one in the same words.

    The error starts at the first token that differs and ends with the token that holds character
    number `until` of the text. The list is empty if no token up to there differs: "12" instead of
    "120" is wrong only in what follows and has no wrong token of its own.
    """
    start = 0
    while start < min(len(wrong), len(right)) and wrong[start] == right[start]:
        start += 1
    end = tokens_until(wrong, until, tokenizer)
    return error_spans(start, end, len(wrong), after_error) if start < end else []
