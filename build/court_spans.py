"""Where the mistake is: the tokens of a wrong answer, and those around it."""

from __future__ import annotations

from collections.abc import Sequence

from judge_decoding.labels import AFTER_ERROR_ORIGIN, AfterError, Span, after_error_label
from judge_decoding.text import Tokenizer


def tokens_until(ids: Sequence[int], chars: int, tokenizer: Tokenizer) -> int:
    """How many tokens it takes to have `chars` characters of the text written."""
    n = 0
    while n < len(ids) and len(tokenizer.decode(ids[:n]).rstrip("\ufffd")) < chars:
        n += 1
    return n


def error_spans(
    start: int, end: int, count: int, after_error: AfterError, origin: str = "error"
) -> list[Span]:
    """The mistake is tokens [start, end) of `count`."""
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
    """The mistake runs from the first token that differs from the right answer's to the wrong
    answer's last character, number `until` of the text. [] where no token within it differs."""
    start = 0
    while start < min(len(wrong), len(right)) and wrong[start] == right[start]:
        start += 1
    end = tokens_until(wrong, until, tokenizer)
    if start >= end:  # "12" for "120": the error is in what follows, not in a token of its own
        return []
    return error_spans(start, end, len(wrong), after_error)
