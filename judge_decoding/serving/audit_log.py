"""The request log that an audit reads: a sampled share of finished requests, one JSON line each.

    audit: {log: /var/lib/judge-decoding/audit.jsonl, share: 0.05}      in the deployment's YAML

It only holds requests that an audit can decide: greedy ones that ended by themselves, decoded by a
rule that may override the target. Prompts and answers are stored as token ids, and only the file's
owner can read them. The size is bounded: at half of `max_mb` the file becomes PATH.1, which
replaces an older one.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from judge_decoding.config import AuditConfig, describe
from judge_decoding.decoding.contracts import Provenance
from judge_decoding.decoding.loop import Result, Update
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.files import GrowingFile, read_lines
from judge_decoding.serving.admission import UpdateListener

LOSSY = frozenset({"judge", "topk", "typical", "kl", "fly"})

_log = logging.getLogger(__name__)


class Logged(BaseModel):
    """A finished request and its answer.

    time        when it ended, in seconds since 1970
    token_ids   all emitted tokens, an end token included; `provenance` has one entry per token
    stop_words  the request's stop strings
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: float
    rule: str
    threshold: float | None = None
    prompt_ids: list[int] = Field(min_length=1)
    token_ids: list[int] = Field(min_length=1)
    provenance: list[Provenance]
    max_tokens: int = Field(ge=1)
    min_tokens: int = 0
    stop_words: list[str] = []
    ignore_eos: bool = False
    finish_reason: Literal["stop", "length"]

    @model_validator(mode="after")
    def _one_origin_a_token(self) -> Logged:
        if len(self.provenance) != len(self.token_ids):
            raise ValueError("provenance needs one entry a token")
        return self


class AuditLog:
    """Writes the log, on the scheduler's thread only. Without a configuration it does nothing.

    A line that cannot be written is lost as a whole, and serving goes on; only the first one logs
    a warning.
    """

    def __init__(
        self,
        config: AuditConfig | None,
        *,
        clock: Callable[[], float] = time.time,
        seed: int | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._random = random.Random(seed)
        self._warned = False

    def watch(self, request: Request, listener: UpdateListener) -> UpdateListener:
        """The listener, or one that also logs the result if this request is in the sample."""
        config = self._config
        if (
            config is None
            or request.acceptance.rule not in LOSSY
            or not request.sampling.greedy
            or self._random.random() >= config.share
        ):
            return listener
        return _Watched(self, request, listener)

    def add(self, request: Request, result: Result) -> None:
        """Write one line if the request ended by itself and emitted tokens."""
        config = self._config
        if config is None or result.finish_reason not in ("stop", "length") or not result.token_ids:
            return
        line = Logged(
            time=self._clock(),
            rule=request.acceptance.rule,
            threshold=request.acceptance.threshold,
            prompt_ids=request.prompt_ids,
            token_ids=result.token_ids,
            provenance=result.provenance,
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            stop_words=list(request.stop),
            ignore_eos=request.ignore_end,
            finish_reason=result.finish_reason,
        ).model_dump_json(exclude_defaults=True)
        try:
            _append(config.log, f"{line}\n", int(config.max_mb * 1e6 / 2))
        except OSError as error:
            if not self._warned:
                _log.warning("audit: cannot write %s (%s); lines are lost", config.log, error)
            self._warned = True


class _Watched:
    """A listener that also passes the result to the log."""

    def __init__(self, log: AuditLog, request: Request, listener: UpdateListener) -> None:
        self._log = log
        self._request = request
        self._listener = listener

    def updated(self, update: Update, result: Result | None) -> None:
        self._listener.updated(update, result)
        if result is not None:
            self._log.add(self._request, result)

    def failed(self, message: str) -> None:
        self._listener.failed(message)

    def is_cancelled(self) -> bool:
        return self._listener.is_cancelled()


def _append(path: Path, text: str, most: int) -> None:
    """Append whole lines; set the file aside first if it would exceed `most` bytes."""
    data = text.encode()
    if path.exists() and path.stat().st_size + len(data) > most:
        path.replace(_older(path))
    # Opened anew each time, so that the file may be moved or deleted while the server runs.
    with GrowingFile(path, mode=0o600) as file:
        file.append(data)


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


class ReadLog(NamedTuple):
    """The entries of a log, the oldest first, and the number of torn lines, which are skipped."""

    entries: list[Logged]
    torn: int


def read_log(path: Path) -> ReadLog:
    """Read the log. UserError for JSON that is no entry, and for a log that has only torn lines.

    A torn line is one that is no JSON: a crash or a full disk has cut it. A last line without a
    newline is still being written; it is left out and not counted.
    """
    found: list[Logged] = []
    parts = [part for part in (_older(path), path) if part.exists()]
    if not parts:
        raise UserError(f"audit: no log {path}; a deployment with an `audit` section writes one")
    torn = 0
    for part in parts:
        for line in read_lines(part, "audit", torn=True):
            if not line.whole:
                continue
            try:
                found.append(Logged.model_validate_json(line.text))
            except ValidationError as error:
                if error.errors()[0]["type"] != "json_invalid":
                    where = f"{part}:{line.number}"
                    raise UserError(f"audit: {where}: {describe(error, 'line')}") from None
                torn += 1
    if torn and not found:
        raise UserError(f"audit: {path} holds no entry, only {torn} lines that are no JSON")
    return ReadLog(found, torn)
