"""Tiny random Llamas and a tiny tokenizer, written as real folders once per session."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

# One thread per process, also in processes that tests start: the models are tiny, and on two cores
# spinning threads of several processes make them a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import yaml
from hypothesis import settings

# A stall of 0.2 s on a busy machine is not a failure.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Under nohup, servers would inherit that SIGHUP is ignored, and a handler is not inherited.
signal.signal(signal.SIGHUP, lambda *_: None)

LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_llama(folder: Path, *, seed: int = 0, shard: str | None = None, **changes: Any) -> Path:
    """A random model saved by transformers itself: a Llama, or the `model_type` of `changes`. Its
    initial weights are wide, so that greedy choices are clear-cut and vary from position to
    position; its biases are as wide."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    values |= changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).float()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # initialized as 0
            torch.nn.init.normal_(parameter, std=values["initializer_range"])
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder


def perturb(source: Path, folder: Path, noise: float, *, seed: int = 1) -> Path:
    """A draft that often agrees with `source`: the same model with noise on its weights."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


def write_tokenizer(folder: Path, vocab_size: int = 256) -> None:
    """Bytes as tokens: id = byte value after byte-level mapping, plus a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:vocab_size]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    config = {"chat_template": template, "bos_token": None, "eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


TEMPLATE_OF_LINES = """{{ bos_token }}
{%- for m in messages %}
    {% if m.role == "system" %}
<<{{ m.content }}>>
    {% else %}
[{{ m.role }}]
{{ m.content }}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
[assistant]
{% endif %}
"""
"""Text of several lines: the template drops a newline after a block and blanks before one."""


@pytest.fixture(scope="session")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts a BOS before a raw text, as Llama's does, and a chat template that
    writes its own BOS."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Fast

    folder = tmp_path_factory.mktemp("llama-like")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Fast(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    fast.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "__type": "AddedToken"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE_OF_LINES)
    return folder


def write_judge(
    path: Path, target: Path, *, scale: float = 1.0, seed: int = 7, weights: str | None = None
) -> Path:
    """A judge of random direction for `target`, threshold 0.5; `scale`: its weights' deviation;
    `weights`: what it says of the target's."""
    from judge_decoding.checkpoint import Checkpoint
    from judge_decoding.decoding.judge import Judge, JudgeMetadata

    checkpoint = Checkpoint(target)
    width = checkpoint.config.hidden_size
    metadata = JudgeMetadata(
        feature="pre_norm",
        hidden_size=width,
        target_fingerprint=checkpoint.fingerprint,
        tokenizer_hash=checkpoint.tokenizer_hash,
        threshold=0.5,
        training_data_hash="none",
        weights=weights,
    )
    weight = scale * torch.randn(width, generator=torch.Generator().manual_seed(seed))
    Judge(weight, 0.0, metadata).save(path)
    return path


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup`, one worker runs all servers, since two at once would starve
    each other on two cores. A file's other tests stay together, and the longest tests come
    first."""

    def rank(item: pytest.Item) -> int:
        return 0 if item.get_closest_marker("servers") else 2 - (item.path in slow)

    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=rank)
    for item in items:
        group = item.path.stem if rank(item) else "servers"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_llama(tmp_path_factory.mktemp("models") / "target", rope_parameters=LLAMA31_ROPE)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_draft(tiny_target: Path) -> Path:
    """A draft that agrees with the target about half of the time, so runs of every length occur."""
    return perturb(tiny_target, tiny_target.parent / "draft", noise=0.05)


def write_deployment(folder: Path, target: Path, draft: Path, **changes: Any) -> Path:
    """Writes `folder`/deployment.yaml of the tiny pair with its own judge; float32, k = 4."""
    values: dict[str, Any] = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(target)},
        "draft": {"model": str(draft)},
        "judge": {"path": str(write_judge(folder / "judge.safetensors", target))},
        "max_draft_len": 4,
        "limits": {"max_sequences": 3, "max_context": 256, "max_tokens": 64},
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path
