"""Detokenization that never splits a character or leaks a stop string."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
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


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "A metal?"},
]


def test_only_a_raw_text_gets_the_tokenizers_bos(llama_like: Path) -> None:
    """A chat template writes its own BOS; a second one would be a prompt unlike any in training."""
    tokenizer = Tokenizer(llama_like)
    assert tokenizer.size == 258
    assert tokenizer.encode("Hi") == [256, *tokenizer.encode("Hi", special=False)]
    assert len(tokenizer.encode("Hi", special=False)) == 2
    chat = tokenizer.chat(TURNS)
    assert chat.count(256) == 1 and chat[0] == 256 and chat.count(257) == 3
    assert "<s>" not in tokenizer.decode(chat)


def test_the_template_is_written_as_transformers_writes_it(llama_like: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer(llama_like), AutoTokenizer.from_pretrained(llama_like)
    for prompt in (False, True):
        text = theirs.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt)
        assert ours.chat_text(TURNS, add_generation_prompt=prompt) == text
    assert text == (
        "<s><<Be brief.>>\n[user]\nHi</s>\n[assistant]\nHello.</s>\n[user]\nA metal?</s>\n"
        "[assistant]\n"
    )
    assert ours.chat_text(TURNS) == text  # ready for an answer, unless told otherwise
    both = theirs.apply_chat_template(TURNS, tokenize=True, add_generation_prompt=True)
    ids = both if isinstance(both, list) else both["input_ids"]
    assert ours.chat(TURNS) == ids


def test_a_template_may_refuse_and_may_ask_the_date(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((tokenizer.folder / "tokenizer.json").read_text())
    template = tmp_path / "chat_template.jinja"
    template.write_text("{{ raise_exception('no roles but user') }}")
    with pytest.raises(UserError, match="refused the messages: no roles but user"):
        Tokenizer(tmp_path).chat([{"role": "x", "content": "hi"}])
    template.write_text("{{ strftime_now('%Y') }}|{{ bos_token }}|{{ eos_token }}|")
    assert Tokenizer(tmp_path).chat_text([]) == f"{datetime.now().year}|||"


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_join_to_the_whole_and_none_splits_a_character(
    tokenizer: Tokenizer, text: str
) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    whole, shown = tokenizer.decode(tokenizer.encode(text)), "".join(pieces) + stream.flush()
    assert whole.startswith(shown) and not whole[len(shown) :].strip("\ufffd")
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
    # Stop strings are searched for as text arrives; the first complete one ends it.
    first = min(ends)
    assert stream.stopped
    expected = min(text[:first].find(s) for s in stops if s in text[:first])
    assert shown == text[:expected]
    assert tokenizer.decode(tokenizer.encode(text)[:used]) == text[:first]


class Bytes(Tokenizer):
    """A tokenizer whose tokens are any bytes, as in byte-level vocabularies."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(),
    text=st.text(alphabet="aхо東🙂", min_size=1, max_size=10),
    stops=st.lists(st.text(alphabet="aхо東🙂", min_size=1, max_size=3), max_size=3),
)
def test_no_stop_string_is_shown_wherever_tokens_cut_characters(
    data: st.DataObject, text: str, stops: list[str]
) -> None:
    """Regression: a token that ends in half a character is held back, with its whole characters. If
    the answer ended there, they were not searched: "хо\ufffd" came out with the stop string
    "хо"."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw))), label="cuts"))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]  # the last is the end
    stream, shown, used = TextStream(Bytes(pieces), stops), "", 0
    while used < len(pieces) and not stream.stopped:
        shown += stream.push(used)
        used += 1
    shown += stream.flush()
    whole = b"".join(pieces[:used]).decode(errors="replace").rstrip("\ufffd")
    assert stream.stopped == any(stop in whole for stop in stops)
    assert not any(stop in shown for stop in stops)
    assert whole.startswith(shown)
    if stream.stopped:
        assert whole[len(shown) :].startswith(tuple(stops))
    else:
        assert shown == whole
    assert stream.flush() == ""


class Counting(Bytes):
    """Counts the ids that are decoded."""

    decoded = 0

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded += len(ids)
        return super().decode(ids)


@settings(max_examples=150, deadline=None)
@given(data=st.lists(st.integers(0, 255), max_size=80), end=st.binary(min_size=0, max_size=3))
def test_bytes_that_are_no_text_come_in_a_bounded_window(data: list[int], end: bytes) -> None:
    """Regression, public fault 10: they were held back, and decoded again and again, to the end."""
    raw = bytes(data) + end
    tokenizer = Counting([bytes([one]) for one in range(256)])
    stream, shown, whole = TextStream(tokenizer), "", raw.decode(errors="replace")
    for used, token in enumerate(raw, 1):
        shown += stream.push(token)
        assert whole.startswith(shown)
        assert len(raw[:used].decode(errors="replace")) - len(shown) <= 16
    assert shown + stream.flush() == whole[: len(shown)] + whole[len(shown) :].rstrip("\ufffd")
    assert tokenizer.decoded <= 1000 * len(raw)


def test_a_long_run_of_invalid_bytes_costs_the_same_per_token() -> None:
    tokenizer = Counting([b"\xff"])
    stream = TextStream(tokenizer)
    shown = "".join(stream.push(0) for _ in range(2000))
    assert len(shown) > 1980
    assert tokenizer.decoded < 2000 * 150


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of Llama-2's kind: byte fallback, and a decoder that ends in Strip."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    words = ["<unk>", "<s>", "\u2581", "a", "b", "is", "\u2581is", "\u2581Paris"]
    words += [f"<0x{one:02X}>" for one in range(256)]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("\u2581", "is")]
    fast = Fast(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast.add_special_tokens(["<s>"])
    folder = tmp_path_factory.mktemp("sentencepiece")
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def test_the_answer_keeps_its_first_blank(sentencepiece: Tokenizer) -> None:
    """Regression, public fault 3: " Paris" after "is" came without it, and no stop string with a
    blank matched."""
    prompt, paris = [1, 2, 6], 7
    assert TextStream(sentencepiece).push(paris) == "Paris"
    assert TextStream(sentencepiece, prompt=prompt).push(paris) == " Paris"
    stream = TextStream(sentencepiece, [" Paris"], prompt)
    assert (stream.push(paris), stream.stopped) == ("", True)


def test_half_a_character_at_the_prompts_end_takes_no_text_away(sentencepiece: Tokenizer) -> None:
    first, *rest = (8 + one for one in "東".encode())
    stream = TextStream(sentencepiece, prompt=[6, first])
    assert "".join(map(stream.push, [*rest, 3])).endswith("a")


def test_half_a_character_is_cut_off(tokenizer: Tokenizer) -> None:
    """Regression, public fault 9: `max_tokens` within an emoji left U+FFFD at the end."""
    ids = tokenizer.encode("ok 🙂")
    for cut in range(1, 4):
        stream = TextStream(tokenizer)
        assert "".join(map(stream.push, ids[:-cut])) + stream.flush() == "ok "


def test_a_raw_text_that_begins_with_bos_gets_one(llama_like: Path) -> None:
    """Regression, public fault 13."""
    tokenizer = Tokenizer(llama_like)
    assert tokenizer.encode("<s>Hi") == tokenizer.encode("Hi")
    assert tokenizer.encode("<s><s>Hi")[:3] == [256, 256, *tokenizer.encode("H")[1:]]
    assert tokenizer.encode("<s>", special=False) == [256]


def test_what_training_left_in_the_file_does_not_cut_or_pad_prompts(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Regression: `truncation` and `padding` of tokenizer.json were applied silently."""
    raw = json.loads((tokenizer.folder / "tokenizer.json").read_text())
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    raw["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    for text in ("far more than four tokens", "hi"):
        assert Tokenizer(tmp_path).encode(text) == tokenizer.encode(text)


def test_text_that_is_no_unicode_is_refused(tokenizer: Tokenizer) -> None:
    """Regression: a Latin-1 argument arrives as a lone surrogate, which caused a TypeError."""
    with pytest.raises(UserError, match=r"prompt: it holds '\\udce9', which is no character"):
        tokenizer.encode("caf\udce9")
    with pytest.raises(UserError, match="is the input UTF-8"):
        tokenizer.chat([{"role": "user", "content": "\udce9"}])


def test_a_tokens_own_text_keeps_its_blank_and_special_tokens(tokenizer: Tokenizer) -> None:
    text = " Hi é"
    ids = tokenizer.encode(text, special=False)
    whole = "".join(map(tokenizer.token_text, ids))
    assert whole.startswith(" Hi ") and whole.count("\ufffd") == 2  # both halves of one character
    tokenizer._fast.add_special_tokens(["<|im_end|>"])
    assert tokenizer.token_text(tokenizer.size - 1) == "<|im_end|>"


def test_an_unfinished_character_is_held_back(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("é")[0]
    stream = TextStream(tokenizer)
    assert stream.push(first) == ""
    assert stream.push(tokenizer.encode("é")[1]) == "é"
    assert stream.push(first) + stream.flush() == ""


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not readable"):
        Tokenizer(tmp_path)


@pytest.fixture
def bare(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A tokenizer's folder without a chat template."""
    (tmp_path / "tokenizer.json").write_text((tokenizer.folder / "tokenizer.json").read_text())
    return tmp_path


def test_no_chat_template_says_what_to_do(bare: Path) -> None:
    messages, refused = (
        [{"role": "user", "content": "hi"}],
        f"tokenizer: {bare} has no chat template",
    )
    with pytest.raises(UserError) as error:
        Tokenizer(bare).chat(messages)
    assert str(error.value) == (
        f"{refused}; say `chat_template: none` in the deployment (a prompt is then raw text)"
    )
    with pytest.raises(UserError) as error:
        Tokenizer(bare).turn("hi", instead="use --no-chat")
    assert str(error.value) == f"{refused}; use --no-chat"
    assert not Tokenizer(bare).has_chat_template


def test_without_a_chat_template_a_turn_is_raw_text(tokenizer: Tokenizer, bare: Path) -> None:
    assert tokenizer.has_chat_template
    assert tokenizer.turn("hi") == tokenizer.chat([{"role": "user", "content": "hi"}])
    for folder in (bare, tokenizer.folder):
        raw = Tokenizer(folder, "none")
        assert raw.turn("hi") == raw.encode("hi")
        assert not raw.has_chat_template
        with pytest.raises(UserError, match="chat_template: none; send text"):
            raw.chat([{"role": "user", "content": "hi"}], instead="send text")


def test_a_chat_template_that_is_no_template_is_named(bare: Path) -> None:
    (bare / "chat_template.jinja").write_text("{% for m in %}")
    with pytest.raises(UserError, match=r"has a chat template that is not readable \("):
        Tokenizer(bare).turn("hi")
