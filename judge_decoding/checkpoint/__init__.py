"""A Llama in a Hugging Face folder or a GGUF file: configuration, tensors, identity."""

from judge_decoding.checkpoint.config_json import LlamaConfig, RopeScaling, read_json
from judge_decoding.checkpoint.folder import Checkpoint
from judge_decoding.checkpoint.tensors import EMBEDDING, HEAD, Blocks, Tensors, save_tensors

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Blocks",
    "Checkpoint",
    "LlamaConfig",
    "RopeScaling",
    "Tensors",
    "read_json",
    "save_tensors",
]
