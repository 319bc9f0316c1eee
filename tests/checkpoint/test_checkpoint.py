"""A model folder as one value: what is read, when, and how often it is read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.errors import UserError


def test_each_part_is_read_once(tmp_path: Path, tiny_target: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_target, folder)
    checkpoint, same = Checkpoint(folder), Checkpoint(tiny_target)
    assert (checkpoint.has_weights, checkpoint.has_tokenizer) == (True, True)
    parts = (checkpoint.config, checkpoint.fingerprint, checkpoint.tokenizer_hash)
    names = checkpoint.tensors.names()
    shutil.rmtree(folder)
    assert (checkpoint.has_weights, checkpoint.has_tokenizer) == (False, False)
    assert (checkpoint.config, checkpoint.fingerprint, checkpoint.tokenizer_hash) == parts
    assert checkpoint.tensors.names() == names
    assert (same.config, same.fingerprint, same.tokenizer_hash) == parts


def test_a_part_needs_its_own_files_alone(tmp_path: Path, tiny_target: Path) -> None:
    shutil.copy(tiny_target / "config.json", tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.config == Checkpoint(tiny_target).config
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        assert checkpoint.fingerprint
    with pytest.raises(UserError, match=r"no file .*tokenizer.json"):
        assert checkpoint.tokenizer_hash


def test_a_configuration_is_read_without_pytorch(tiny_target: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.modules["torch"] = None
from judge_decoding.checkpoint import Checkpoint
print(Checkpoint(Path({str(tiny_target)!r})).config.hidden_size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "64"), done.stderr
