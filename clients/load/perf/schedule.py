"""From measured curves to a `draft_len_schedule`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from judge_client.errors import JudgeClientError

Curves = Mapping[int, Mapping[int, float]]
"""Active sequences -> draft length -> tok/s in total. Length 0 is measured at each."""


def choices(curves: Curves, margin: float) -> dict[int, int]:
    """The best draft length at each measured number of active sequences.

    It is 0 unless another length is faster by more than `margin` (a share): within the noise,
    drafting is not worth its memory traffic. Of equally fast lengths the shortest counts.
    """
    best = {}
    for active, speeds in sorted(curves.items()):
        length = min(speeds, key=lambda k: (-speeds[k], k))
        best[active] = length if speeds[length] > speeds[0] * (1 + margin) else 0
    return best


def schedule(chosen: Mapping[int, int]) -> dict[int, int]:
    """{active sequences up to: draft length}, as short as possible.

    A number between two measured ones takes the length of the larger; above the last there is no
    drafting.
    """
    limits: dict[int, int] = {}
    for active, length in sorted(chosen.items()):
        if limits and limits[last := max(limits)] == length:
            del limits[last]
        limits[active] = length
    return limits


def line(limits: Mapping[int, int]) -> str:
    """The line of a deployment file."""
    inside = ", ".join(f"{active}: {length}" for active, length in sorted(limits.items()))
    return f"draft_len_schedule: {{{inside}}}"


_LINE = re.compile(r"^draft_len_schedule:[ \t]*\{[^{}\n]*\}", re.MULTILINE)


def write(limits: Mapping[int, int], config: Path) -> None:
    """Put the schedule in a deployment file in place of its present one; the rest stays as it is.

    JudgeClientError unless the file has one, on one line.
    """
    text = config.read_text(encoding="utf-8")
    if len(_LINE.findall(text)) != 1:
        raise JudgeClientError(
            f"write: {config} has no line `draft_len_schedule: {{...}}` to replace; "
            f"add `{line(limits)}` by hand"
        )
    config.write_text(_LINE.sub(line(limits), text), encoding="utf-8")
