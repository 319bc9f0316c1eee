"""A GGUF file's tokenizer: as transformers reads it, and where transformers does not, as the model
was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from judge_decoding.checkpoint.demo_target import find_gguf
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer

TEXTS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["<|im_start|>", "<|im_end|>", "<file_sep>", "<|im_", " ", "  ", "\n", "\n\n", "\t"]
        ),
        st.sampled_from(
            ["'ll", "don't", "İ", "naïve", "日本", "🙂", "\u0301", "\u00a0", "()", ";\r\n"]
        ),
        st.sampled_from(["the ", "The", " New York", "def f(x):", "123", "1", " 7", "½", "٣"]),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def demo() -> tuple[Tokenizer, Any]:
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer reads all tensors first

    path = find_gguf()
    return Tokenizer(path), PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name
    )


@settings(max_examples=400)
@given(TEXTS)
@example("a\n\n1. b   22")
def test_the_demo_targets_text_is_tokenized_as_transformers_does_between_digits(
    demo: tuple[Tokenizer, Any], text: str
) -> None:
    """SmolLM was trained with every digit as a piece of its own, which its file says (`smollm`) and
    transformers does not read. It encodes what lies between digits, and each digit."""
    ours, theirs = demo
    pieces, start = [], 0
    for at, character in enumerate(text):
        if character.isnumeric():
            pieces += [text[start:at], character]
            start = at + 1
    expected = [
        token for piece in [*pieces, text[start:]] for token in theirs.encode(piece) if piece
    ]
    assert ours.encode(text) == expected


@settings(max_examples=200)
@given(st.lists(st.integers(0, 49151), max_size=24))
def test_the_demo_targets_tokens_are_decoded_as_transformers_does(
    demo: tuple[Tokenizer, Any], ids: list[int]
) -> None:
    ours, theirs = demo
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_the_demo_targets_chat_template_is_in_the_file(demo: tuple[Tokenizer, Any]) -> None:
    ours, theirs = demo
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    for prompt in (False, True):
        expected = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        assert ours.chat_text(messages, add_generation_prompt=prompt) == expected
    assert ours.has_chat_template
    assert ours.size == 49152


BYTES = sorted(ByteLevel.alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "Ċ Ċ", "1 2", "12 3", "3 4", "Ġ Ġ", "i n", "in g", "Ġ a", ". Ċ"]


def write_tokenizer(path: Path, **values: Any) -> Path:
    """A GGUF file that holds nothing but a tokenizer; None leaves a value out."""
    writer = gguf.GGUFWriter(path, arch="llama")
    for name, value in values.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(**changes: Any) -> dict[str, Any]:
    """Bytes, a few merges, a control token, a user-defined one and one that no merge reaches."""
    tokens = [*BYTES, *(m.replace(" ", "") for m in MERGES), "<s>", "<e>", "<think>", "Ġwhole"]
    types = [1] * len(BYTES) + [1] * len(MERGES) + [3, 3, 4, 1]
    values = {
        **{"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types},
        **{"merges": MERGES, "bos_token_id": len(tokens) - 4, "eos_token_id": len(tokens) - 3},
    }
    return values | changes


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """Pieces with scores, and a token for each byte that no piece covers."""
    pieces = ["▁", "a", "b", "n", "t", "h", "e", "▁t", "he", "▁the", "th", "an", "▁an", "ab", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [float(-n) for n in range(len(pieces))]
    types = [2, 3, 3, *([6] * 256), *([1] * len(pieces))]
    values = {
        **{"model": "llama", "pre": "default", "tokens": tokens, "scores": scores},
        **{"token_type": types, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    }
    return values | changes


SMALL = {
    "gpt-2": byte_level(),
    "qwen2": byte_level(pre="qwen2", add_bos_token=False),
    "llama-bpe": byte_level(pre="llama-bpe", add_bos_token=True),
    "eos": byte_level(add_bos_token=True, add_eos_token=True),
    "sentencepiece": sentencepiece(),
}


@pytest.mark.parametrize("name", SMALL)
def test_other_tokenizers_are_read_as_transformers_does(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = write_tokenizer(tmp_path / "a.gguf", **SMALL[name])
    ours, theirs = Tokenizer(path), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)

    @settings(max_examples=150, database=None)
    @given(TEXTS | st.text("ab the<s>/\n 1234ing.", max_size=30))
    @example("the whole thing 1234\n\n the <s> then <think> </s>")
    def check(text: str) -> None:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        bare = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=False) == bare
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    if name == "llama-bpe":  # a word that is a token is not cut, which transformers does not know
        word = ours.encode(" whole", special=False)
        assert word == [len(SMALL[name]["tokens"]) - 1]
        assert len(theirs.encode(" whole", add_special_tokens=False)) == 6
        with pytest.raises(AssertionError):
            check()
        theirs.backend_tokenizer.model.ignore_merges = True
    check()


def test_a_sentencepiece_file_may_say_that_no_space_is_put_before_a_text(tmp_path: Path) -> None:
    """transformers does not read this; SentencePiece's own `add_dummy_prefix`."""
    plain = sentencepiece(add_bos_token=False)
    tokens = plain["tokens"]
    for prefix, pieces in ((True, ["▁the", "▁an"]), (False, ["t", "he", "▁an"])):
        path = write_tokenizer(tmp_path / f"{prefix}.gguf", **plain, add_space_prefix=prefix)
        tokenizer = Tokenizer(path)
        assert tokenizer.encode("the an") == [tokens.index(piece) for piece in pieces]
        assert tokenizer.decode(tokenizer.encode("the an")) == "the an"
        assert tokenizer.decode([tokens.index("▁an")]) == ("an" if prefix else " an")


def test_older_files_that_do_not_name_bos_get_llama_cpps_rule(tmp_path: Path) -> None:
    for number, (values, adds) in enumerate(
        [(byte_level(), False), (byte_level(pre="llama-bpe"), True), (sentencepiece(), True)]
    ):
        path = write_tokenizer(tmp_path / f"{number}.gguf", **values)
        assert (Tokenizer(path).encode("a")[0] == values["bos_token_id"]) is adds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (byte_level(tokens=None), "has no tokenizer.ggml.tokens"),
        (byte_level(model="bert"), "has the model 'bert'; supported: gpt2, llama"),
        (
            byte_level(pre="falcon"),
            "has the pre-tokenizer 'falcon'; supported: gpt-2, smollm, llama-bpe, llama3, "
            "llama-v3, qwen2",
        ),
        (byte_level(token_type=[1, 1]), "has 272 tokens but 2 token types"),
        (byte_level(merges=["a b c"]), "has the merge 'a b c', not a pair"),
        (
            byte_level(merges=["zz b"]),
            "is not readable (Cannot instantiate Tokenizer from buffer: Token `zz` out of voc",
        ),
        (
            byte_level(bos_token_id=272),
            "has tokenizer.ggml.bos_token_id 272, not one of 272 tokens",
        ),
        (sentencepiece(scores=None), "has 274 tokens but 0 tokenizer.ggml.scores"),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_named(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_tokenizer(tmp_path / "a.gguf", **values)
    with pytest.raises(UserError) as error:
        Tokenizer(path)
    assert str(error.value).startswith(f"tokenizer: {path} {message}")
