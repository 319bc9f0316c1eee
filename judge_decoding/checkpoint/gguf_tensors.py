"""The tensors of a GGUF file, under the names and in the layout of a Hugging Face model."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from judge_decoding.checkpoint import gguf_config
from judge_decoding.checkpoint.config_json import LlamaConfig
from judge_decoding.checkpoint.gguf_file import GgufFile, StoredTensor
from judge_decoding.checkpoint.tensors import EMBEDDING, HEAD, Blocks, Tensors
from judge_decoding.errors import UserError

if TYPE_CHECKING:
    import torch

_TOP = {
    gguf_config.EMBEDDING: EMBEDDING,
    gguf_config.HEAD: HEAD,
    "output_norm.weight": "model.norm.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PLAIN = {"F32", "F16", "BF16"}


class GgufTensors(Tensors):
    """A GGUF file's tensors, de-quantized as they are read.

    Quantized matrices are read as bf16, others in their own type. llama.cpp writes every norm and
    bias as float32. One that fits the type of the embeddings without loss is read in that type:
    tensors, and so the fingerprint, are then those of the folder that the file was made from.
    """

    def __init__(self, file: GgufFile, config: LlamaConfig) -> None:
        self.folder = file.path
        self._file, self._config = file, config
        self._where: dict[str, str] = {}
        for stored in file.tensors:
            if stored == gguf_config.ROPE_FACTORS:  # it is in the configuration
                continue
            name = _name(stored)
            if name is None:
                raise UserError(
                    f"model: {file.path} has the tensor {stored}, which this engine does not know"
                )
            self._where[name] = stored

    def names(self) -> list[str]:
        return sorted(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def slice(self, name: str) -> GgufSlice:
        stored = self._stored(name)
        dtype = "BF16" if stored.kind.name not in _PLAIN else stored.kind.name
        found = GgufSlice(self._raw(name), stored, self._order(name), dtype)
        if len(stored.shape) == 1 and dtype == "F32" and name != EMBEDDING:
            narrow = GgufSlice(self._raw(name), stored, self._order(name), self._narrow)
            if bool((found[:] == narrow[:].to(found[:].dtype)).all()):
                return narrow
        return found

    def blocks(self, name: str) -> Blocks | None:
        stored = self._stored(name)
        if stored.kind.name in _PLAIN or len(stored.shape) != 2:
            return None
        order, data = self._order(name), self._raw(name)
        return Blocks(
            stored.kind.name, data if order is None else data[order], columns=stored.shape[1]
        )

    @cached_property
    def _narrow(self) -> str:
        """The type of the embeddings."""
        kind = self._stored(EMBEDDING).kind.name
        return kind if kind in _PLAIN else "BF16"

    def _stored(self, name: str) -> StoredTensor:
        if name not in self._where:
            raise UserError(f"model: {self.folder} has no tensor {name}")
        return self._file.tensors[self._where[name]]

    def _raw(self, name: str) -> npt.NDArray[np.uint8]:
        return self._file.bytes_of(self._where[name])

    def _order(self, name: str) -> npt.NDArray[np.int64] | None:
        """The file's row for each row of a query or key projection, or for each value of its bias;
        None for all others.

        Rotary positions turn pairs of a head's values. llama.cpp has a pair's two rows side by
        side in a Llama, Hugging Face half a head apart, as llama.cpp has it too in a Qwen2.
        """
        config = self._config
        if config.model_type != "llama":
            return None
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(
            name.rpartition(".")[0].rpartition(".")[2]
        )
        rows = self._stored(name).shape[0]
        if heads is None or rows % (2 * heads):
            return None  # a wrong number of rows is named by `check_shapes`
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


class GgufSlice:
    """One tensor, read and de-quantized when it is indexed (as safetensors' slices are)."""

    def __init__(
        self,
        raw: npt.NDArray[np.uint8],
        stored: StoredTensor,
        order: npt.NDArray[np.int64] | None,
        dtype: str,
    ) -> None:
        self._raw, self._stored, self._order, self._dtype = raw, stored, order, dtype

    def get_shape(self) -> list[int]:
        return list(self._stored.shape)

    def get_dtype(self) -> str:
        """As safetensors names it: "BF16", "F16" or "F32"."""
        return self._dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        import torch  # a process that only reads configurations never loads it

        from judge_decoding.checkpoint.gguf_blocks import dequantize

        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        kind, shape = self._stored.kind, self._stored.shape
        if len(shape) == 1:  # stored as one row
            if self._order is not None:
                whole = GgufSlice(self._raw, self._stored, None, self._dtype)[:]
                return whole[torch.from_numpy(self._order[rows])]
            rows, columns = slice(None), rows
        raw = self._raw[rows] if self._order is None else self._raw[self._order[rows]]
        first, last, step = columns.indices(shape[-1])
        assert step == 1
        # Whole blocks are read, and what is too much is cut off.
        blocks = slice(first // kind.block * kind.size, -(-last // kind.block) * kind.size)
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[self._dtype]
        values = dequantize(torch.from_numpy(raw[:, blocks]), kind, dtype)
        before = first % kind.block
        values = values[:, before : before + last - first]
        return values.reshape(-1) if len(shape) == 1 else values


def _name(stored: str) -> str | None:
    """The Hugging Face name of a tensor; None if neither Llama nor Qwen2 has such a tensor."""
    if stored in _TOP:
        return _TOP[stored]
    parts = stored.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _LAYER:
        return None
    if parts[3] != "weight" and (parts[3] != "bias" or parts[2].endswith("norm")):
        return None
    return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
