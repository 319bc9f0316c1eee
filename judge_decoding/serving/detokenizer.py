"""The text of many sequences as their tokens come in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from judge_decoding.text import TextStream, Tokenizer


class Detokenizer:
    """One `TextStream` a sequence, with the sequence's stop strings: it cuts where the loop does.

    A sequence whose client went away may never be finished here. The streams are therefore bounded:
    past `capacity` (more than ever run at once) the one longest unheard of is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._streams: OrderedDict[int, TextStream] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    def push(
        self, sequence: int, ids: Sequence[int], *, stop: Sequence[str], finish: str, ended: bool
    ) -> list[str]:
        """The text each new token settles; what the finish settles is the last one's.

        finish  the finish reason; "" while the sequence goes on
        ended   the last id is an end token: it has no text
        """
        stream = self._streams.pop(sequence, None) or TextStream(self._tokenizer, stop)
        texts = [stream.push(i) for i in (ids[:-1] if ended else ids)]
        if ended:
            texts.append("")
        if not finish:
            self._streams[sequence] = stream
            if len(self._streams) > self._capacity:
                self._streams.popitem(last=False)
        elif finish not in ("cancelled", "deadline") and texts:
            texts[-1] += stream.flush()
        return texts
