"""The text of many sequences as their tokens come in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from judge_decoding.errors import UserError
from judge_decoding.text import TextStream, Tokenizer

SPARE = 1024
"""Streams kept besides those of the loop, for clients that left or that send an order again."""


class Detokenizer:
    """One `TextStream` per sequence, with its stop strings, so that it cuts where the loop does.

    A sequence whose client went away may never be finished here, so we keep at most `capacity`
    streams (more than ever run at once). Past that, the least recently used one is dropped, and
    later tokens of its sequence are refused.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._streams: OrderedDict[int, tuple[TextStream, int]] = OrderedDict()
        """Sequence -> (stream, number of tokens read); the least recently used comes first."""

    def __len__(self) -> int:
        return len(self._streams)

    def push(
        self,
        sequence: int,
        ids: Sequence[int],
        *,
        at: int,
        stop: Sequence[str],
        prompt: Sequence[int] = (),
        finish: str,
        ended: bool,
        min_tokens: int = 0,
    ) -> list[str]:
        """The text that each new token completes; what the end completes goes to the last token.

        at      number of the sequence's tokens before these; UserError if another number was read
        prompt  the end of the prompt's ids, with a sequence's first tokens
        finish  the finish reason; "" while the sequence goes on
        min_tokens  of the request (`TextStream`); like `stop`, it counts in the first order
        ended   the last id is an end token: it has no text
        """
        stream, read = self._streams.get(sequence) or (
            TextStream(self._tokenizer, stop, prompt, min_tokens),
            0,
        )
        if at != read:
            raise UserError(
                f"detokenize: tokens from {at} on of a sequence that was read up to {read}; "
                "it came twice, or too much came between"
            )
        self._streams.pop(sequence, None)
        texts = [stream.push(i) for i in (ids[:-1] if ended else ids)]
        if ended:
            texts.append("")
        if not finish:
            self._streams[sequence] = stream, read + len(ids)
            if len(self._streams) > self._capacity:
                self._streams.popitem(last=False)
        elif finish not in ("cancelled", "deadline") and texts:
            texts[-1] += stream.flush()
        return texts
