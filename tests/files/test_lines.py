"""Lines within bounds: a line of a gigabyte, a gzip bomb, bytes that are no text."""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from judge_decoding.errors import UserError
from judge_decoding.evaluation.import_questions import read_rows
from judge_decoding.evaluation.prompts import read_prompts
from judge_decoding.evaluation.task import read_task
from judge_decoding.files import Line, read_lines
from judge_decoding.serving.audit_log import read_log
from judge_decoding.training.draft.target_text import read_text
from judge_decoding.training.labels import read_labels
from judge_decoding.training.mining.label_file import LabelFile

GIGABYTE = 1 << 30


def test_lines_are_numbered_and_know_whether_they_are_whole(tmp_path: Path) -> None:
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack("a\u2028b\n\n \r\nc".encode()))
        assert list(read_lines(path, "x")) == [Line(1, "a\u2028b", True), Line(4, "c", False)]
        numbers = [line.number for line in read_lines(path, "x", blank=True)]
        assert numbers == [1, 2, 3, 4]


def mining(path: Path) -> object:
    path.with_name(f"{path.name}.run.json").write_text("{}")
    return LabelFile(path, {})


READERS: dict[str, Callable[[Path], object]] = {
    "labels": lambda path: read_labels([path]),
    "prompts": read_prompts,
    "task": read_task,
    "import": lambda path: read_rows(path, "d", "train"),
    "text": read_text,
    "audit": read_log,
    "mine": mining,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_line_of_a_gigabyte_is_refused_in_little_memory(tmp_path: Path, reader: str) -> None:
    """Regression, issue 16 item 9. The file is sparse: it takes no space, and no time to write."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(GIGABYTE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the line is longer than 16,777,216 byte"):
        READERS[reader](path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\n", r"bomb\.jsonl\.gz:100001: it holds more than 100,000 blank lines"),
        (b'{"prompt": "' + b"a" * 5000 + b'"}\n', r"bytes expand to more than 16,777,216; unpack"),
        (b"\0" * 1000, r"bomb\.jsonl\.gz:1: the line is longer"),
    ],
    ids=["blank lines", "lines", "one line"],
)
def test_a_gzip_bomb_is_refused(tmp_path: Path, line: bytes, message: str) -> None:
    """Regression, issue 16 item 9: 20 MB of lines in a file of 20 to 90 KB."""
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(line * (20_000_000 // len(line)), 6))
    assert path.stat().st_size * 200 < 20_000_000
    with pytest.raises(UserError, match=message):
        for _ in read_lines(path, "labels"):
            pass


def test_what_compresses_well_but_is_small_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    row = json.dumps({"prompt": "a"}).encode() + b"\n"
    path.write_bytes(gzip.compress(row * 100_000))
    assert path.stat().st_size * 200 < 100_000 * len(row)
    assert sum(1 for _ in read_lines(path, "x")) == 100_000


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n\xff\n")
    with pytest.raises(UserError, match=r"^x: .*a\.jsonl:2: it is not UTF-8 \(byte 0 of the line"):
        list(read_lines(path, "x"))
    assert [line.text for line in read_lines(path, "x", torn=True)] == ["{}", "\ufffd"]
    with pytest.raises(UserError, match=r"it cannot be read .*directory"):
        list(read_lines(tmp_path, "x"))
    cut = tmp_path / "a.jsonl.gz"
    cut.write_bytes(gzip.compress(b"{}\n" * 10_000)[:-20])
    with pytest.raises(UserError, match="it cannot be read"):
        list(read_lines(cut, "x"))
    list(read_lines(cut, "x", torn=True))
