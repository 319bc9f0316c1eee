"""The tensors of a model by name; those of a folder lie in one `.safetensors` file or in shards."""

from __future__ import annotations

import builtins
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from judge_client.echo import shown
from judge_decoding.checkpoint.config_json import LlamaConfig
from judge_decoding.errors import UserError, shorten
from judge_decoding.files import read_object

if TYPE_CHECKING:
    import torch

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
HEADER_BYTES = 16 << 20
"""The most that the header of a `.safetensors` file may have; 405B's have 0.3 MB."""


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file atomically, with the default permissions of a new file.

    safetensors itself gives its files mode 0600, so that no other user can read them.
    """
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    part.touch()  # creates it with the mode that the umask allows
    mode = part.stat().st_mode
    save_file(dict(tensors), str(part), metadata=None if metadata is None else dict(metadata))
    part.chmod(mode)
    os.replace(part, path)


def check_header(file: Path) -> None:
    """Raise OSError unless it is a regular file with a header that is read in a moment.

    safetensors itself checks the rest: names, shapes, offsets, and that they cover the file. It
    would read a header of 100 MB, which takes a minute and gigabytes, and wait for a pipe.
    """
    if not file.is_file():
        raise OSError("it is not a regular file")
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > HEADER_BYTES:
        raise OSError(f"its header says that it has {size:,} bytes, at most {HEADER_BYTES:,}")


def _shards(index: Path) -> set[str]:
    """Names of the files that an index lists."""
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"model: {index} has a weight_map that does not map names to files")
    return set(files.values())


class Blocks(NamedTuple):
    """A matrix as a GGUF file stores it, its rows in the order of the model's own weight."""

    kind: str
    """"Q4_1", "Q4_K" and so on: `gguf_file.KINDS` has their sizes, `gguf_blocks` their formulas."""
    data: npt.NDArray[np.uint8]
    """uint8 [rows, bytes of a row], row after row of blocks: a view of the file, or for the query
    and key projections, whose rows llama.cpp reorders, a copy."""
    columns: int


class Tensors(ABC):
    """The tensors of a model by name, read on demand; `folder` is for messages."""

    folder: Path

    @abstractmethod
    def names(self) -> list[str]:
        """Every tensor's name, sorted."""

    @abstractmethod
    def slice(self, name: str) -> Any:
        """The tensor, not read yet: `get_shape()`, `get_dtype()`, and `[rows]` or `[rows, columns]`
        reads a part. UserError if there is none of this name."""

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def blocks(self, name: str) -> Blocks | None:
        """A matrix in the quantized blocks of its file; None if it is not stored in any."""
        return None

    def get(self, name: str) -> torch.Tensor:
        """The whole tensor. Like `part`, refuses a weight that is quantized or not finite."""
        return self._sound(name, self.slice(name)[:])

    def part(self, name: str, dim: int, part: builtins.slice) -> torch.Tensor:
        """Rows (`dim` 0) or columns (1) of a matrix; the rest of it is not loaded."""
        matrix = self.slice(name)
        return self._sound(name, matrix[part] if dim == 0 else matrix[:, part])

    def _sound(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        import torch  # a process that only reads configurations never loads it

        if not name.endswith((".weight", ".bias")):  # the draft's list of ids is no weight
            return tensor
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(
                f"model: {self.folder} has {name} as {str(tensor.dtype).removeprefix('torch.')}; "
                "re-save it as plain bf16 or fp32"
            )
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):  # one NaN or infinity is enough
            raise UserError(f"model: {self.folder} has values in {name} that are not finite")
        return tensor

    def check_shapes(self, config: LlamaConfig) -> None:
        """Raise UserError if a weight or bias is missing, has another shape than `config` says, or
        if there is a bias that `config` does not know.

        Tensors named in `config.shared_with_target` are not checked.
        """
        hidden, inner = config.hidden_size, config.intermediate_size
        query, key = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        layer = {
            "input_layernorm": [hidden],
            "self_attn.q_proj": [query, hidden],
            "self_attn.k_proj": [key, hidden],
            "self_attn.v_proj": [key, hidden],
            "self_attn.o_proj": [hidden, query],
            "post_attention_layernorm": [hidden],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }
        wanted = {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(config.num_layers)
            for name, shape in layer.items()
        }
        wanted |= {
            f"model.layers.{i}.{name}.bias": layer[name][:1]
            for i in range(config.num_layers)
            for name in config.biased
        }
        wanted["model.norm.weight"] = [hidden]
        for name in self.names():
            if name.startswith("model.layers.") and name.endswith(".bias") and name not in wanted:
                raise UserError(
                    f"model: {self.folder} has {shown(name)}, a bias that its config does not "
                    "mention; correct attention_bias and mlp_bias there"
                )
        for name, shape in wanted.items():
            if name not in config.shared_with_target:
                found = list(self.slice(name).get_shape())
                if found != shape:
                    raise UserError(
                        f"model: {self.folder} has {name} of shape {shown(found)}, its config says "
                        f"{shape}"
                    )

    def check_tied(self, config: LlamaConfig) -> None:
        """Raise UserError if embedding and head are tied by `config` but have different values."""
        import torch  # a process that only reads configurations never loads it

        if not config.tie_word_embeddings or EMBEDDING not in self or HEAD not in self:
            return
        if not torch.equal(self.slice(EMBEDDING)[:], self.slice(HEAD)[:]):
            raise UserError(
                f"model: {self.folder} has tie_word_embeddings true, but {HEAD} and {EMBEDDING} "
                "differ; set it to false, or remove the one that is not the model's"
            )


class SafeTensors(Tensors):
    """The tensors of a folder's `.safetensors` files."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"model: no .safetensors file in {folder}")
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            named = _shards(index)
            if missing := sorted(named - {file.name for file in files}):
                raise UserError(f"model: {folder} lacks the shard {shown(missing[0])}")
            files = [file for file in files if file.name in named]
        self._where: dict[str, Any] = {}
        for file in files:
            try:
                check_header(file)
                handle: Any = safe_open(str(file), framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"model: {file} is damaged ({shorten(error)})") from None
            names = handle.keys()
            if twice := sorted(self._where.keys() & set(names)):
                raise UserError(f"model: {folder} has {shown(twice[0])} in two files; keep one")
            self._where.update((name, handle) for name in names)

    def names(self) -> list[str]:
        return sorted(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> torch.Tensor:
        return self._sound(name, self._file(name).get_tensor(name))

    def slice(self, name: str) -> Any:
        return self._file(name).get_slice(name)

    def _file(self, name: str) -> Any:
        if name not in self._where:
            raise UserError(f"model: {self.folder} has no tensor {name}")
        return self._where[name]
