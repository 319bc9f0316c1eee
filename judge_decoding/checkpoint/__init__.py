"""A Hugging Face Llama folder: its configuration, tensors, fingerprint and tokenizer identity."""

from judge_decoding.checkpoint.config_json import LlamaConfig, RopeScaling, read_json
from judge_decoding.checkpoint.folder import Checkpoint
from judge_decoding.checkpoint.tensors import EMBEDDING, HEAD, Tensors, save_tensors

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Checkpoint",
    "LlamaConfig",
    "RopeScaling",
    "Tensors",
    "read_json",
    "save_tensors",
]
