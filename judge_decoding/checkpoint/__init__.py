"""A Llama in a Hugging Face folder or a GGUF file: configuration, tensors, identity."""

from judge_decoding.checkpoint.config_json import LlamaConfig, RopeScaling
from judge_decoding.checkpoint.folder import Checkpoint
from judge_decoding.checkpoint.tensors import (
    EMBEDDING,
    HEAD,
    Blocks,
    Tensors,
    check_header,
    save_tensors,
)

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Blocks",
    "Checkpoint",
    "LlamaConfig",
    "RopeScaling",
    "Tensors",
    "check_header",
    "save_tensors",
]
