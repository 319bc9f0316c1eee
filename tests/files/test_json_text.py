"""JSON within bounds: what is nested, long or large is one short line and no raw exception."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from judge_decoding.errors import UserError
from judge_decoding.files import JsonError, parse_json, read_object
from judge_decoding.files.json_text import DEPTH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "nested deeper than 64"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested deeper than 64"),
        ("[1" + "0" * 10_000 + "]", "an integer of more than 4,300 digits"),
        ("[1, 2", "Expecting ',' delimiter"),
        (b'"\xff"', "it is not UTF-8: byte 1"),
    ],
    ids=["open", "deep list", "deep object", "digits", "cut off", "bytes"],
)
def test_what_exceeds_a_bound_is_one_line(text: str | bytes, message: str) -> None:
    """Regression, issue 16 item 9: they were a RecursionError and a raw ValueError."""
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 100 and "\n" not in str(caught.value)


def test_what_is_just_within_the_bounds_is_read() -> None:
    value = parse_json("[" * DEPTH + "]" * DEPTH)
    assert str(value) == "[" * DEPTH + "]" * DEPTH
    assert parse_json("1" + "0" * 4299) == 10**4299


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    link = tmp_path / "link.json"
    link.symlink_to(path)
    assert read_object(link, most=8) == {"a": 1}
    with pytest.raises(UserError, match=r"is not readable JSON \(it has 8 bytes, at most 7"):
        read_object(link, most=7)
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for odd in (pipe, Path("/dev/zero")):
        with pytest.raises(UserError, match="it is not a regular file"):
            read_object(odd)
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        read_object(loop)
    with pytest.raises(UserError, match="no file"):
        read_object(tmp_path / "none.json")
