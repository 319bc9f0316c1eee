"""Detokenization that never splits a character or leaks a stop string."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge_decoding.errors import UserError
from judge_decoding.text import TextStream, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_target: Path) -> Tokenizer:
    return Tokenizer(tiny_target)


def test_encode_and_decode_are_inverse(tokenizer: Tokenizer) -> None:
    text = "naïve 東京 🙂 end"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.size == 256


def test_the_chat_template_is_applied(tokenizer: Tokenizer) -> None:
    ids = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "[user] hi\n[assistant] "


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_join_to_the_whole_and_none_splits_a_character(
    tokenizer: Tokenizer, text: str
) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(tokenizer.encode(text))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="abcé", max_size=30),
    stops=st.lists(st.text(alphabet="abcé", min_size=1, max_size=4), max_size=3),
)
def test_nothing_of_a_stop_string_is_ever_shown(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    stream, shown, used = TextStream(tokenizer, stops), "", 0
    for token in tokenizer.encode(text):
        shown += stream.push(token)
        used += 1
        if stream.stopped:
            break
    shown += stream.flush()
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert (shown, stream.stopped) == (text, False)
        return
    # Stops are looked for as text arrives: the first to be complete ends it.
    first = min(ends)
    assert stream.stopped
    expected = min(text[:first].find(s) for s in stops if s in text[:first])
    assert shown == text[:expected]
    assert tokenizer.decode(tokenizer.encode(text)[:used]) == text[:first]


def test_an_unfinished_character_is_held_back_then_flushed(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("é")[0]
    stream = TextStream(tokenizer)
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not readable"):
        Tokenizer(tmp_path)


def test_no_chat_template_says_what_to_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((tokenizer.folder / "tokenizer.json").read_text())
    with pytest.raises(UserError, match="use --no-chat"):
        Tokenizer(tmp_path).chat([{"role": "user", "content": "hi"}])
