"""Files that grow on a disk that fills up: every line is whole or is not there."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from judge_decoding.config import AuditConfig
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import Result, Update
from judge_decoding.decoding.sequence import AcceptanceRecord, Request
from judge_decoding.errors import UserError
from judge_decoding.files import GrowingFile, write_whole
from judge_decoding.serving.audit_log import AuditLog, read_log
from judge_decoding.training.labels import LabelRecord, read_labels, write_labels
from judge_decoding.training.mining.label_file import DONE, LabelFile
from tests.faults.disks import fill, small_disk

PAGE = 4096
"""tmpfs gives space in pages, so that a write of more ends early where one is left."""


@pytest.fixture(name="disk")
def a_small_disk(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(small_disk(tmp_path / "disk", 64))
        except subprocess.CalledProcessError:
            pytest.skip("only root can mount a disk")


def leave(disk: Path, free: int) -> None:
    """Fill the disk up to `free` bytes."""
    fill(disk)
    filler = disk / "filler"
    os.truncate(filler, filler.stat().st_size - free)


def test_a_short_write_is_taken_back(disk: Path) -> None:
    path = disk / "lines"
    with GrowingFile(path) as file:
        file.append(b'{"a": 1}\n')
        leave(disk, PAGE)
        for sync in (False, True):
            with pytest.raises(OSError, match="No space left"):
                file.append(b"x" * 4 * PAGE + b"\n", sync=sync)
            assert path.read_bytes() == b'{"a": 1}\n'
        (disk / "filler").unlink()
        file.append(b'{"a": 2}\n')
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("length", [1, 70_000, 200_000])
def test_a_line_that_a_crash_cut_is_cut_off(tmp_path: Path, length: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n{' + b" " * (length - 1))
    with GrowingFile(path) as file:
        assert file.size == 9
        file.append(b"{}\n")
    assert path.read_bytes() == b'{"a": 1}\n{}\n'
    path.write_bytes(b"{" * length)
    GrowingFile(path).close()
    assert path.read_bytes() == b""


def test_nothing_is_cut_off_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    for data in (b"\x89PNG", b"a line\nanother"):
        path.write_bytes(data)
        with pytest.raises(OSError, match="unfinished and no JSON object"):
            GrowingFile(path)
        assert path.read_bytes() == data


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with GrowingFile(path), pytest.raises(OSError, match="another process is writing"):
        GrowingFile(path)
    GrowingFile(path).close()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Illegal seek"):
        GrowingFile(tmp_path / "pipe")


def finish(log: AuditLog, count: int) -> None:
    """A request with an answer of `count` tokens ends."""

    class Listener:
        def updated(self, update: Update, result: Result | None) -> None:
            pass

        def failed(self, message: str) -> None:
            raise AssertionError(message)

        def is_cancelled(self) -> bool:
            return False

    tokens = [5] * count
    result = Result("", tokens, "length", ["judged"] * count, [None] * count, AcceptanceRecord())
    request = Request([1], count, Acceptance("judge", threshold=0.5))
    log.watch(request, Listener()).updated(Update(0, [], "", "length"), result)


def test_an_audit_log_on_a_disk_that_was_full_is_read(disk: Path) -> None:
    """Regression, issue 16 item 5: a short write was ignored, and its line ended the reading."""
    path = disk / "audit.jsonl"
    times = iter(range(100))
    log = AuditLog(AuditConfig(log=path, share=1.0), clock=lambda: next(times))
    finish(log, 10)
    leave(disk, PAGE)
    for _ in range(3):
        finish(log, 2000)  # 24 KB
    (disk / "filler").unlink()
    finish(log, 10)
    assert [one.time for one in read_log(path).entries] == [0.0, 4.0]
    assert read_log(path).torn == 0


def test_torn_lines_of_a_log_are_skipped_and_counted(tmp_path: Path) -> None:
    """Regression, issue 16 item 5: logs that an earlier version has torn are still read."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(AuditConfig(log=path, share=1.0))
    for _ in range(3):
        finish(log, 3)
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:20] + third + third + b"\xff{\n" + first[:9])
    read = read_log(path)
    assert (len(read.entries), read.torn) == (2, 2)
    finish(log, 3)  # cuts the unfinished last line off
    assert (len(read_log(path).entries), read_log(path).torn) == (3, 2)


def record(name: str, size: int = 1) -> LabelRecord:
    return LabelRecord(
        id=f"{name}{DONE}",
        group="g",
        domain="d",
        prompt=name,
        response="r" * size,
        response_ids=[1],
        spans=[],
        split="train",
    )


def test_mining_on_a_full_disk_ends_in_one_line_and_goes_on_later(disk: Path) -> None:
    path = disk / "labels.jsonl"
    file = LabelFile(path, {"x": 1})
    file.add([record("a")])
    leave(disk, PAGE)
    with pytest.raises(UserError, match=r"mine: cannot write .* \(No space left on device\)"):
        file.add([record("b"), record("c", 4 * PAGE)])
    with pytest.raises(UserError, match="another process is writing"):
        LabelFile(path, {"x": 1})
    file.close()
    assert [one.prompt for one in read_labels([path])] == ["a"]
    (disk / "filler").unlink()
    again = LabelFile(path, {"x": 1})
    assert (again.known, again.torn) == ({"a"}, 0)
    again.close()
    with path.open("ab") as raw:
        raw.write(b'{"id": "b{"id"\n' + record("c").to_json().encode() + b"\n")
    healed = LabelFile(path, {"x": 1})
    assert (healed.known, healed.torn) == ({"a", "c"}, 1)
    healed.close()
    assert len(read_labels([path])) == 2


def test_a_document_is_replaced_or_stays(disk: Path) -> None:
    path = disk / "results.json"
    write_whole(path, "old", "x")
    path.chmod(0o640)
    leave(disk, PAGE)
    with pytest.raises(UserError, match=r"^x: cannot write .* \(No space left on device\); it is"):
        write_whole(path, "n" * 4 * PAGE, "x")
    with pytest.raises(UserError, match=r"labels: cannot write"):
        write_labels(path, [record("a", 4 * PAGE)])
    assert path.read_text() == "old"
    assert sorted(p.name for p in disk.iterdir()) == ["filler", "results.json"]
    (disk / "filler").unlink()
    link = disk / "link"
    link.symlink_to(path)
    write_whole(link, "new", "x")
    assert link.is_symlink() and path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    write_whole(Path("/dev/null"), "y", "x")
    assert not Path("/dev/null").is_file()


def test_members_of_a_gzipped_text_are_appended(tmp_path: Path) -> None:
    """What `distil-text` writes: a batch is a member of the file."""
    path = tmp_path / "text.jsonl.gz"
    rows = [json.dumps({"prompt": str(n)}).encode() + b"\n" for n in range(3)]
    with GrowingFile(path, lines=False) as file:
        for row in rows:
            file.append(gzip.compress(row))
    with GrowingFile(path, lines=False):
        pass
    assert gzip.decompress(path.read_bytes()) == b"".join(rows)
