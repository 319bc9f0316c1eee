"""Which sequence owns which key-value slot, and which tokens each slot holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from judge_decoding.torch_engine.llama import Segment


class Slots:
    """A fixed number of slots, one per sequence, and the tokens that each holds."""

    def __init__(self, count: int, context: int) -> None:
        self.context = context
        self._count = count
        self._free = list(range(count - 1, -1, -1))
        self._slot: dict[int, int] = {}
        self._tokens: dict[int, list[int]] = {}

    def extend(self, sequence: int, keep: int, tokens: Sequence[int]) -> Segment:
        """Keep the first `keep` positions and append `tokens`; return the segment to compute.

        A new sequence gets a slot. ValueError if the slot holds fewer than `keep` positions, if
        there are no tokens, or if the context or all slots are full. These are errors of the loop,
        checked here because a wrong cache would go unnoticed.
        """
        held = self._tokens.get(sequence)
        length = len(held) if held is not None else 0
        if not 0 <= keep <= length:
            raise ValueError(f"sequence {sequence}: keep={keep}, but the cache holds {length}")
        if not tokens:
            raise ValueError(f"sequence {sequence}: no tokens to read")
        if keep + len(tokens) > self.context:
            raise ValueError(
                f"sequence {sequence}: {keep} + {len(tokens)} tokens exceed the context "
                f"of {self.context}"
            )
        if held is None:
            if not self._free:
                raise ValueError(f"sequence {sequence}: all {self._count} slots are in use")
            self._slot[sequence] = self._free.pop()
            held = self._tokens[sequence] = []
        del held[keep:]
        held.extend(tokens)
        return Segment(self._slot[sequence], keep, len(tokens))

    def tokens(self, sequence: int) -> Sequence[int]:
        """The tokens that the slot holds."""
        return self._tokens[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        del self._tokens[sequence][length:]

    def release(self, sequence: int) -> None:
        if sequence in self._slot:
            self._free.append(self._slot.pop(sequence))
            del self._tokens[sequence]

    def slot(self, sequence: int) -> int:
        return self._slot[sequence]

    def check(self, expected: Mapping[int, Sequence[int]]) -> None:
        """Raise AssertionError unless exactly these sequences are held and begin as expected."""
        if set(expected) != set(self._slot):
            raise AssertionError(f"cached: {sorted(self._slot)}, expected: {sorted(expected)}")
        in_use = sorted([*self._slot.values(), *self._free])
        if in_use != list(range(self._count)):
            raise AssertionError(f"slots lost or shared: used and free together are {in_use}")
        for sequence, tokens in expected.items():
            held = self._tokens[sequence][: len(tokens)]
            if held != list(tokens):
                at = next((i for i, (a, b) in enumerate(zip(held, tokens)) if a != b), len(held))  # noqa: B905
                raise AssertionError(f"sequence {sequence}: the cache differs at position {at}")
