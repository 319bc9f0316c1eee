"""perf_analyzer's profile export as timed answers.

A response carries all tokens of a round, so we count tokens by the server's `num_output_tokens` and
not by responses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge_client.errors import JudgeClientError


class Truncated(JudgeClientError):
    """The file ends in the middle. Another run may help: see `read_export`."""


@dataclass(frozen=True)
class TimedAnswer:
    """One request as its client saw it; seconds since the first one was sent.

    chunks  (when, how many new tokens) of each response that brought some, in order
    end_s   the last response, with tokens or without
    """

    sent_s: float
    chunks: tuple[tuple[float, int], ...]
    end_s: float
    finish_reason: str

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.chunks)


def read_export(path: Path) -> list[TimedAnswer]:
    """The answers of the one experiment in a file, in the order in which they were asked for.

    perf_analyzer 2.51.0 reads four bytes where an output (`judge_scores`) is empty. If they happen
    to be a NaN, its JSON writer stops there and cuts the file off, and we raise Truncated.
    """
    try:
        document = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise Truncated(f"perf_analyzer: its export is cut off at byte {error.pos}") from None
    experiments = document.get("experiments", [])
    if len(experiments) != 1:
        raise JudgeClientError(f"perf_analyzer: its export holds {len(experiments)} experiments")
    requests = sorted(experiments[0]["requests"], key=lambda request: int(request["timestamp"]))
    if not requests:
        raise JudgeClientError("perf_analyzer: its export holds no request")
    began = int(requests[0]["timestamp"])
    return [_answer(request, began) for request in requests]


def _answer(request: dict[str, Any], began: int) -> TimedAnswer:
    times = [(int(time) - began) / 1e9 for time in request["response_timestamps"]]
    outputs = request.get("response_outputs") or []
    if not outputs or len(outputs) != len(times) or "num_output_tokens" not in outputs[-1]:
        raise JudgeClientError(
            "perf_analyzer: its export has no num_output_tokens a response; use 2.51.0, and a "
            "server of this package"
        )
    chunks, before = [], 0
    for time, output in zip(times, outputs, strict=True):
        so_far = int(output["num_output_tokens"])
        if so_far > before:
            chunks.append((time, so_far - before))
            before = so_far
    finish = str(outputs[-1].get("finish_reason", ""))
    return TimedAnswer((int(request["timestamp"]) - began) / 1e9, tuple(chunks), times[-1], finish)
