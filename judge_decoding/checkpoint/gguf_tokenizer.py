"""A GGUF file's tokenizer as the `tokenizer.json` of the same model, and its chat template.

Text is split as `tokenizer.ggml.pre` says. transformers does the same except for `smollm`, where it
does not split digits from what precedes them, and `llama-bpe`, where it neither takes a whole word
that is a token at once nor puts BOS first by default. llama.cpp and the models' own tokenizers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from judge_decoding.checkpoint.gguf_file import GgufFile
from judge_decoding.errors import UserError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    **{"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3},
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}
"""Patterns of the pieces that are tokenized one by one; `gpt-2` and `smollm` have ByteLevel's."""
_TAKES_WORDS = {"llama-bpe", "llama3", "llama-v3"}
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types
_SPACE = "\u2581"


def tokenizer_json(file: GgufFile) -> dict[str, Any]:
    """The contents of `tokenizer.json`; UserError for an unknown or damaged tokenizer."""
    meta, path = file.metadata, file.path
    tokens = meta.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"tokenizer: {path} has no tokenizer.ggml.tokens")
    types = [int(one) for one in meta.get("tokenizer.ggml.token_type", [1] * len(tokens))]
    if len(types) != len(tokens):
        raise UserError(f"tokenizer: {path} has {len(tokens)} tokens but {len(types)} token types")
    kind = meta.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"tokenizer: {path} has the model {kind!r}; supported: gpt2, llama")
    parts = _byte_level(file, tokens, types) if kind == "gpt2" else _sentencepiece(file, tokens)
    special = {one for one in (_token(file, name) for name in _SPECIAL) if one is not None}
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": found != _USER_DEFINED or token in special,
        }
        for index, (token, found) in enumerate(zip(tokens, types, strict=True))
        if found in (_CONTROL, _USER_DEFINED) or token in special
    ]
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return document | {"normalizer": None, "post_processor": _post_processor(file)} | parts


_SPECIAL = ("bos", "eos", "unknown", "padding")


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """What the chat template needs of `tokenizer_config.json`."""
    return {
        "chat_template": file.metadata.get("tokenizer.chat_template"),
        "bos_token": _token(file, "bos"),
        "eos_token": _token(file, "eos"),
        "unk_token": _token(file, "unknown"),
        "pad_token": _token(file, "padding"),
    }


def _token(file: GgufFile, name: str) -> str | None:
    key = f"tokenizer.ggml.{name}_token_id"
    index, tokens = file.metadata.get(key), file.metadata["tokenizer.ggml.tokens"]
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(tokens):
        raise UserError(
            f"tokenizer: {file.path} has {key} {index!r}, not one of {len(tokens)} tokens"
        )
    return str(tokens[index])


def _adds(file: GgufFile, name: str) -> bool:
    """Whether `name`, "bos" or "eos", surrounds a raw text. Older files do not say."""
    default = False
    if name == "bos":
        meta = file.metadata
        sentencepiece = meta.get("tokenizer.ggml.model") == "llama"
        default = sentencepiece or meta.get("tokenizer.ggml.pre") in _TAKES_WORDS
    return bool(file.metadata.get(f"tokenizer.ggml.add_{name}_token", default))


def _post_processor(file: GgufFile) -> dict[str, Any]:
    found = {name: _token(file, name) for name in ("bos", "eos") if _adds(file, name)}
    around = {name: token for name, token in found.items() if token is not None}

    def piece(name: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": around[name], "type_id": kind}}] if name in around else []

    def text(sequence: str, kind: int) -> list[dict[str, Any]]:
        own = [{"Sequence": {"id": sequence, "type_id": kind}}]
        return piece("bos", kind) + own + piece("eos", kind)

    ids = {name: file.metadata[f"tokenizer.ggml.{name}_token_id"] for name in around}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [ids[name]], "tokens": [token]}
            for name, token in around.items()
        },
    }


def _bpe(
    vocabulary: dict[str, int], merges: Sequence[Sequence[str]], **flags: Any
) -> dict[str, Any]:
    defaults = {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False},
        "ignore_merges": False,
    }
    return defaults | flags | {"vocab": vocabulary, "merges": merges}


def _byte_level(file: GgufFile, tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    meta = file.metadata
    pre = meta.get("tokenizer.ggml.pre", "gpt-2")
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps: list[dict[str, Any]]
    if pre == "gpt-2":
        steps = [whole | {"use_regex": True}]
    elif pre == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        steps = [digits, whole | {"use_regex": True}]
    elif pre in _SPLITS:
        split = {"type": "Split", "pattern": {"Regex": _SPLITS[pre]}, "behavior": "Isolated"}
        steps = [split | {"invert": False}, whole | {"use_regex": False}]
    else:
        known = ", ".join(["gpt-2", "smollm", *_SPLITS])
        raise UserError(f"tokenizer: {file.path} has the pre-tokenizer {pre!r}; supported: {known}")
    spelling = _byte_spelling()
    alphabet = set(spelling)
    vocabulary = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in (_CONTROL, _USER_DEFINED) and not alphabet.issuperset(token):
            token = "".join(spelling[byte] for byte in token.encode())  # written as plain text
        vocabulary[token] = index
    merges = [merge.split(" ") for merge in meta.get("tokenizer.ggml.merges", [])]
    for merge in merges:
        if len(merge) != 2:
            raise UserError(f"tokenizer: {file.path} has the merge {' '.join(merge)!r}, not a pair")
    flags = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    sequence = {"type": "Sequence", "pretokenizers": steps}
    return {
        "pre_tokenizer": steps[0] if len(steps) == 1 else sequence,
        "decoder": whole | {"add_prefix_space": True, "use_regex": True},
        "model": _bpe(vocabulary, merges, ignore_merges=pre in _TAKES_WORDS, **flags),
    }


def _sentencepiece(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    scores = [float(score) for score in file.metadata.get("tokenizer.ggml.scores", ())]
    if len(scores) != len(tokens):
        raise UserError(
            f"tokenizer: {file.path} has {len(tokens)} tokens but {len(scores)} "
            "tokenizer.ggml.scores"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "first" if prefix else "never",
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary, _merges(vocabulary, scores), fuse_unk=True, byte_fallback=True),
    }


def _merges(vocabulary: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs that make up tokens, those of the best token first.

    SentencePiece merges the two neighbours that give the token with the best score.
    """
    found = []
    for token, index in vocabulary.items():
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[index], *pair) for pair in known]
    found.sort(key=lambda one: (one[0], len(one[1]), len(one[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _byte_spelling() -> list[str]:
    """GPT-2's character for each byte: itself if it is printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelling, others = [], 0
    for byte in range(256):
        spelling.append(chr(byte if byte in printable else 0x100 + others))
        others += byte not in printable
    return spelling
