"""A model folder as one value, and what identifies its weights and its vocabulary."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path

from judge_decoding.checkpoint.config_json import LlamaConfig, read_config, read_json
from judge_decoding.checkpoint.tensors import Tensors

_SAMPLE_BYTES = 4096


class Checkpoint:
    """A Hugging Face Llama folder.

    Each part is read when it is first asked for, and once: a process that needs the configuration
    alone reads no weights. Every property raises a UserError where the files do not hold what it
    needs. Drop the value after loading: it keeps the files of the weights open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> LlamaConfig:
        return read_config(self.folder)

    @cached_property
    def tensors(self) -> Tensors:
        """Opened here, but each tensor is read only when it is taken."""
        return Tensors(self.folder)

    @property
    def has_weights(self) -> bool:
        """A machine that serves compiled engines may lack them."""
        return any(self.folder.glob("*.safetensors"))

    @property
    def has_tokenizer(self) -> bool:
        """The folder of a draft may lack one: the draft then has its target's."""
        return (self.folder / "tokenizer.json").is_file()

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the weights, the same however they are sharded: 16 hex digits.

        Hashes the name, dtype, shape and a sample of the first rows of every tensor, not all bytes:
        fine-tuning changes every tensor, and checking a judge must not read all of a 405B model.
        """
        import torch  # a process that reads configurations alone never loads it

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
    def tokenizer_hash(self) -> str:
        """Identity of the vocabulary: 16 hex digits over the model and the added tokens of
        `tokenizer.json`."""
        raw = read_json(self.folder / "tokenizer.json")
        core = json.dumps([raw.get("model"), raw.get("added_tokens")], sort_keys=True)
        return hashlib.sha256(core.encode()).hexdigest()[:16]
