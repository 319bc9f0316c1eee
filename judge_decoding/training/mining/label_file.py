"""The file that mined labels are added to; an interrupted run continues with it.

OUT.run.json, beside OUT, records what the labels depend on. A run with other models or settings is
refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from judge_decoding.errors import UserError
from judge_decoding.training.labels import LabelRecord

DONE = "-mined"
"""Suffix of the id of a prompt's last record."""


class LabelFile:
    """A label file that grows by the records of one or more prompts; `known` prompts are done."""

    def __init__(self, path: Path, identity: dict[str, Any], *, fresh: bool = False) -> None:
        """identity  what must be the same for a run to continue the file, or UserError
        fresh     discard what the file holds
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        note = path.with_name(path.name + ".run.json")
        if fresh:
            path.unlink(missing_ok=True)
        if path.is_file() and path.stat().st_size:
            _compare(note, identity, path)
        _replace(note, json.dumps(identity, indent=1) + "\n")
        kept = _whole(path)
        self.known = {record.prompt for record in kept}
        # Not in place: a crash in the middle would lose what an earlier run has found.
        _replace(path, "".join(record.to_json() + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def add(self, records: Iterable[LabelRecord]) -> None:
        """Append records; they are on disk when this returns."""
        self._file.writelines(record.to_json() + "\n" for record in records)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _compare(note: Path, identity: dict[str, Any], path: Path) -> None:
    way_out = "choose another --out, or begin anew with --fresh"
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise UserError(
            f"mine: {path} has labels of an unknown run (no {note}); {way_out}"
        ) from None
    for key, value in identity.items():
        if before.get(key) != value:
            raise UserError(
                f"mine: {path} was mined with {key} {before.get(key)}, now it is {value}; {way_out}"
            )


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash it is the old one or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _whole(path: Path) -> list[LabelRecord]:
    """Records of an earlier run; those of a prompt that was not finished are dropped."""
    if not path.is_file():
        return []
    records = []
    # The last piece has no newline and is dropped. splitlines() would split at more than \n.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            records.append(LabelRecord.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"mine: {path} holds a line that is no label record: {error}") from None
    done = {r.prompt for r in records if r.id.endswith(DONE)}
    return [r for r in records if r.prompt in done]
