"""A model as one value, and what identifies its weights and its vocabulary."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from judge_decoding.checkpoint.config_json import LlamaConfig, checked_config, read_config
from judge_decoding.checkpoint.gguf_config import config_json
from judge_decoding.checkpoint.gguf_file import SUFFIX, GgufFile
from judge_decoding.checkpoint.gguf_tensors import GgufTensors
from judge_decoding.checkpoint.gguf_tokenizer import tokenizer_json
from judge_decoding.checkpoint.tensors import SafeTensors, Tensors
from judge_decoding.errors import UserError
from judge_decoding.files import read_object

TOKENIZER_BYTES = 64 << 20
"""The most that a `tokenizer.json` may have; Llama-3's has 17 MB."""
_SAMPLE_BYTES = 4096


class Checkpoint:
    """A Llama: a Hugging Face folder, or a GGUF file (`folder` is then the file).

    Each part is read once, on first use, so that a process that needs only the configuration reads
    no weights. A property raises UserError if the files do not hold what it needs. Drop the object
    after loading, because it keeps the weight files open.
    """

    def __init__(self, folder: Path, more_end_ids: Sequence[int] = ()) -> None:
        """more_end_ids  end tokens that the model's own files do not name"""
        self.folder = folder
        self._more_end_ids = more_end_ids

    @cached_property
    def gguf(self) -> GgufFile | None:
        """The opened GGUF file; None for a folder."""
        return GgufFile(self.folder) if self.folder.suffix == SUFFIX else None

    @cached_property
    def config(self) -> LlamaConfig:
        if self.gguf is None:
            config = read_config(self.folder)
        else:
            config = checked_config(self.folder, self.folder, self.config_json)
        outside = [i for i in self._more_end_ids if i >= config.vocab_size]
        if outside:
            raise UserError(
                f"end_ids: {outside[0]} is outside the vocabulary [0, {config.vocab_size}) of "
                f"{self.folder}"
            )
        # Some files write -1 for none, which would be an index from the end.
        own = (i for i in config.end_ids if 0 <= i < config.vocab_size)
        return replace(config, end_ids=tuple(dict.fromkeys((*own, *self._more_end_ids))))

    @cached_property
    def config_json(self) -> dict[str, Any]:
        """The contents of `config.json`, not yet checked."""
        if self.gguf is not None:
            return config_json(self.gguf)
        return read_object(self.folder / "config.json")

    @cached_property
    def tensors(self) -> Tensors:
        """The opened weight files; each tensor is read only when it is requested."""
        if self.gguf is None:
            return SafeTensors(self.folder)
        return GgufTensors(self.gguf, self.config)

    @property
    def has_weights(self) -> bool:
        """Whether there are weights; a machine that serves compiled engines may lack them."""
        return self.folder.suffix == SUFFIX or any(self.folder.glob("*.safetensors"))

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a tokenizer; a draft without one uses its target's."""
        if self.gguf is not None:
            return "tokenizer.ggml.tokens" in self.gguf.metadata
        return (self.folder / "tokenizer.json").is_file()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the weights, however they are sharded.

        Hashes the name, dtype, shape and a sample of the first rows of every tensor, not all bytes:
        fine-tuning changes every tensor, and checking a judge must not read all of a 405B model.
        """
        import torch  # a process that only reads configurations never loads it

        digest = hashlib.sha256()
        for name in self.tensors.names():
            part = self.tensors.slice(name)
            shape = part.get_shape()
            row_bytes = 2 * max(1, math.prod(shape[1:]))
            rows = part[: max(1, min(shape[0], _SAMPLE_BYTES // row_bytes))] if shape else part[:]
            sample = rows.contiguous().flatten().view(torch.uint8)[:_SAMPLE_BYTES]
            digest.update(f"{name} {part.get_dtype()} {shape}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """The contents of `tokenizer.json`."""
        if self.gguf is not None:
            return tokenizer_json(self.gguf)
        return read_object(self.folder / "tokenizer.json", most=TOKENIZER_BYTES)

    def same_tokenizer(self, other: Checkpoint) -> bool:
        """Whether every token id means the same to both models.

        A GGUF file does not hold all that is in a `tokenizer.json`. Beside one, only the tokens of
        the ids that both have are compared.
        """
        if self.gguf is None is other.gguf:
            return self.tokenizer_hash == other.tokenizer_hash
        ours, theirs = self._tokens, other._tokens
        return all(ours[index] == theirs[index] for index in ours.keys() & theirs.keys())

    @property
    def _tokens(self) -> dict[int, str]:
        raw = self.tokenizer_json
        tokens = {index: token for token, index in raw["model"]["vocab"].items()}
        return tokens | {token["id"]: token["content"] for token in raw["added_tokens"]}

    @cached_property
    def tokenizer_hash(self) -> str:
        """16 hex digits that identify the vocabulary: a hash of the model and the added tokens of
        the tokenizer."""
        raw = self.tokenizer_json
        core = json.dumps([raw.get("model"), raw.get("added_tokens")], sort_keys=True)
        return hashlib.sha256(core.encode()).hexdigest()[:16]
