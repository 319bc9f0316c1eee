"""Labels for the judge: answers as token ids with spans that are good, bad or ignored.

One JSON object per line, from any producer (`build/court_labels.py`, `build/mine_labels.py`).
Spans are half-open token ranges of `response_ids`; tokens in no span are ignored.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from judge_decoding.errors import UserError
from judge_decoding.files import read_lines, write_whole
from judge_decoding.text import Tokenizer

Label = Literal["good", "bad", "ignore"]
AfterError = Literal["negative", "ignore", "error_only"]
Split = Literal["train", "heldout"]
AFTER_ERROR: tuple[AfterError, ...] = ("negative", "ignore", "error_only")

AFTER_ERROR_ORIGIN = "after_error"
"""Origin of the tokens that follow a mistake. It is the only span whose label is configurable."""

_AFTER_ERROR: dict[AfterError, Label] = {
    "negative": "bad",
    "ignore": "ignore",
    "error_only": "good",
}


class Span(BaseModel):
    """Tokens [start, end) carry one label; `origin` says why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: int = Field(ge=0)
    end: int
    label: Label
    origin: str = Field(min_length=1)


class LabelRecord(BaseModel):
    """One answer. Records with the same `group` share a fact and lie in the same split.

    chat  the prompt is a user's turn, put in the chat template; false: raw text
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    group: str = Field(min_length=1)
    domain: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    response: str
    response_ids: list[int] = Field(min_length=1)
    spans: list[Span]
    split: Split
    chat: bool = True

    @model_validator(mode="after")
    def _spans_are_ordered(self) -> LabelRecord:
        last = 0
        for span in self.spans:
            if not last <= span.start < span.end <= len(self.response_ids):
                raise ValueError(
                    f"span [{span.start}, {span.end}) must be non-empty, after the one before it, "
                    f"and within {len(self.response_ids)} tokens"
                )
            last = span.end
        return self

    def to_json(self) -> str:
        """The record as one line, without the newline."""
        return self.model_dump_json(exclude_defaults=True)

    def prompt_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The token ids that come before `response_ids`."""
        if self.chat:
            return tokenizer.turn(self.prompt, instead='give its label lines "chat": false')
        return tokenizer.encode(self.prompt)

    def token_labels(self, after_error: AfterError | None = None) -> list[tuple[Label, str]]:
        """(label, origin) of every token; `after_error` overrides the file's choice for tokens
        that follow a mistake."""
        labels: list[tuple[Label, str]] = [("ignore", "")] * len(self.response_ids)
        for span in self.spans:
            label = span.label
            if after_error is not None and span.origin == AFTER_ERROR_ORIGIN:
                label = _AFTER_ERROR[after_error]
            labels[span.start : span.end] = [(label, span.origin)] * (span.end - span.start)
        return labels


def after_error_label(choice: AfterError) -> Label:
    return _AFTER_ERROR[choice]


def file_name(path: Path) -> str:
    """A label file's name in tables: without .jsonl or .jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def read_labels(paths: Sequence[Path]) -> list[LabelRecord]:
    """All records of the files (.jsonl, .jsonl.gz), in order.

    UserError for a file or line that cannot be read, a repeated id, or a group in both splits.
    """
    records: dict[str, LabelRecord] = {}
    splits: dict[str, Split] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"labels: no file {path}; write one with build/court_labels.py")
        for number, line, _ in read_lines(path, "labels"):
            try:
                record = LabelRecord.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise UserError(f"labels: {path}:{number}: {where}: {first['msg']}") from None
            if record.id in records:
                raise UserError(f"labels: {path}:{number}: id {record.id!r} is there twice")
            if splits.setdefault(record.group, record.split) != record.split:
                raise UserError(
                    f"labels: {path}:{number}: group {record.group!r} is in both splits"
                )
            records[record.id] = record
    return list(records.values())


def write_labels(path: Path, records: Iterable[LabelRecord]) -> None:
    """Write one file, gzipped if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(record.to_json() + "\n" for record in records).encode()
    data = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    write_whole(path, data, "labels")


def check_growing(path: Path) -> None:
    """UserError if labels cannot be appended to the file one by one."""
    if path.suffix == ".gz":
        raise UserError(
            f"--out: {path} would be compressed, and labels are added to it one by one; write "
            f"{path.with_suffix('').name} and gzip it when it is done"
        )


def labels_hash(records: Iterable[LabelRecord]) -> str:
    """Identity of a training set: 16 hex digits, independent of the files and their order."""
    lines = sorted(record.to_json() for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
