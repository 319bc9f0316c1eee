"""The file that mined labels are added to; an interrupted run continues with it.

OUT.run.json, beside OUT, records what the labels depend on. A run with other models or settings is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from judge_client.echo import shown
from judge_decoding.config import describe
from judge_decoding.errors import UserError, shorten
from judge_decoding.files import GrowingFile, read_lines, read_object, write_whole
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
        note = _note(path)
        with self._open():  # locks it: another run would find its file replaced
            if path.stat().st_size and not fresh:
                _compare(note, identity, path)
            kept, self.torn = ([], 0) if fresh else _whole(path)
            self.known = {record.prompt for record in kept}
            # Not in place: a crash in the middle would lose what an earlier run has found. If both
            # runs are the same, the order does not matter; if not, old labels never get a new note.
            if fresh:
                write_whole(path, "", "mine")
            write_whole(note, json.dumps(identity, indent=1) + "\n", "mine")
            write_whole(path, "".join(record.to_json() + "\n" for record in kept), "mine")
        self._file = self._open()

    def _open(self) -> GrowingFile:
        try:
            return GrowingFile(self.path, lines=False)
        except OSError as error:
            raise UserError(f"mine: cannot write {self.path} ({shorten(error)})") from None

    def add(self, records: Iterable[LabelRecord]) -> None:
        """Append records; they are on disk when this returns. UserError if there is no space; the
        file then holds none of them, and a later run continues."""
        data = "".join(record.to_json() + "\n" for record in records).encode()
        try:
            self._file.append(data, sync=True)
        except OSError as error:
            raise UserError(
                f"mine: cannot write {self.path} ({error.strerror}); what it holds is whole: make "
                "space and run again"
            ) from None

    def close(self) -> None:
        self._file.close()


def noted(path: Path) -> dict[str, Any]:
    """What an earlier run has recorded beside `path`; empty without one."""
    try:
        return read_object(_note(path))
    except UserError:
        return {}


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".run.json")


def _compare(note: Path, identity: dict[str, Any], path: Path) -> None:
    way_out = "choose another --out, or begin anew with --fresh"
    try:
        before = read_object(note)
    except UserError:
        raise UserError(
            f"mine: {path} has labels of an unknown run (no {note}); {way_out}"
        ) from None
    for key, value in identity.items():
        if before.get(key) != value:
            raise UserError(
                f"mine: {path} was mined with {key} {shown(before.get(key))}, now it is "
                f"{value}; {way_out}"
            )


def _whole(path: Path) -> tuple[list[LabelRecord], int]:
    """Records of an earlier run, and the number of torn lines, whose prompts are mined again.

    The records of a prompt that was not finished are dropped.
    """
    records, torn = [], 0
    for line in read_lines(path, "mine", torn=True):
        if not line.whole:  # an interrupted write
            continue
        try:
            records.append(LabelRecord.model_validate_json(line.text))
        except ValidationError as error:
            if error.errors()[0]["type"] != "json_invalid":
                raise UserError(
                    f"mine: {path}:{line.number}: it is no label record: {describe(error, 'line')}"
                ) from None
            torn += 1
    done = {r.prompt for r in records if r.id.endswith(DONE)}
    return [r for r in records if r.prompt in done], torn
