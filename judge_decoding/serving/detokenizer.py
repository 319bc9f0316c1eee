"""The text of many sequences as their tokens come in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from judge_decoding.errors import UserError
from judge_decoding.text import TextStream, Tokenizer

SPARE = 1024
"""Streams beyond those of the loop: of clients who left, or who send orders of their own again."""


class Detokenizer:
    """One `TextStream` a sequence, with the sequence's stop strings: it cuts where the loop does.

    A sequence whose client went away may never be finished here. The streams are therefore bounded:
    past `capacity` (more than ever run at once) the one longest unheard of is dropped, and what
    still comes for it is refused.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._streams: OrderedDict[int, tuple[TextStream, int]] = OrderedDict()
        """With the tokens each has read; the one longest unheard of is the first."""

    def __len__(self) -> int:
        return len(self._streams)

    def push(
        self,
        sequence: int,
        ids: Sequence[int],
        *,
        at: int,
        stop: Sequence[str],
        finish: str,
        ended: bool,
    ) -> list[str]:
        """The text each new token settles; what the finish settles is the last one's.

        at      tokens of the sequence before these; UserError where others were read so far
        finish  the finish reason; "" while the sequence goes on
        ended   the last id is an end token: it has no text
        """
        stream, read = self._streams.get(sequence) or (TextStream(self._tokenizer, stop), 0)
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
