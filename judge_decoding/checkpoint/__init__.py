"""A Hugging Face Llama folder: its configuration, tensors, fingerprint and tokenizer identity."""

from judge_decoding.checkpoint.config_json import LlamaConfig, RopeScaling
from judge_decoding.checkpoint.folder import Checkpoint
from judge_decoding.checkpoint.tensors import EMBEDDING, HEAD, Tensors, check_header, save_tensors

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Checkpoint",
    "LlamaConfig",
    "RopeScaling",
    "Tensors",
    "check_header",
    "save_tensors",
]
