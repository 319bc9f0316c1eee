"""Model folders and judges that were made to harm: refused in one short line, in no time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_judge
from safetensors.torch import load_file, save_file

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.checkpoint.tensors import SafeTensors
from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError

BODY = b"\0" * 64


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def named(name: str, entry: dict[str, Any]) -> bytes:
    return json.dumps(name).encode() + b":" + json.dumps(entry).encode()


WHOLE = tensor([16], 0, 64)
HEADERS: dict[str, bytes | dict[str, Any]] = {
    "offsets overlap": {"a": WHOLE, "b": tensor([8], 32, 64)},
    "offsets past the end": {"a": tensor([32], 0, 128)},
    "offsets reversed": {"a": tensor([16], 64, 0)},
    "bytes of no tensor": {"a": tensor([8], 0, 32)},
    "a name twice": b"{" + named("a", WHOLE) + b"," + named("a", tensor([8], 32, 64)) + b"}",
    "negative shape": {"a": tensor([-16], 0, 64)},
    "shape overflows": {"a": tensor([2**40, 2**40], 0, 64)},
    "shape overflows to 0": {"a": tensor([2**32, 2**32], 0, 0)},
    "shape of 10,000 digits": b'{"a":{"dtype":"F32","shape":[1%b],"data_offsets":[0,64]}}'
    % (b"0" * 10_000),
    "nested JSON": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested JSON in the metadata": b'{"__metadata__":{"a":' + b"[" * 9999 + b"]" * 9999 + b"}}",
    "no UTF-8": b'{"\xff":1}',
    "unknown dtype": {"a": tensor([16], 0, 64, "X9")},
}


def write(path: Path, header: bytes | dict[str, Any], body: bytes = BODY) -> None:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + body)


def refused(read: Callable[[], object]) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert len(message) < 500 and "\n" not in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    return message


def short(value: object) -> str:
    """A parameter's part of a test's name."""
    return str(value)[:30]


@pytest.mark.parametrize("name", HEADERS)
def test_a_malicious_header_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    write(path, HEADERS[name])
    assert "is damaged" in refused(lambda: SafeTensors(tmp_path))
    assert "not a readable .safetensors file" in refused(lambda: Judge.load(path))


def test_a_header_of_100_mb_is_not_read(tmp_path: Path) -> None:
    """Regression, issue 16 item 9: safetensors reads it, for 40 s and in 1.2 GB."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000) + b"{" + b" " * 10)
        file.truncate(99_000_008)  # sparse
    assert "its header says that it has 99,000,000 bytes" in refused(lambda: SafeTensors(tmp_path))
    assert "99,000,000" in refused(lambda: Judge.load(path))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        write(tmp_path / name, {"a": WHOLE})
    assert "has 'a' in two files" in refused(lambda: SafeTensors(tmp_path))


def test_symlinks_are_followed_to_regular_files_only(tmp_path: Path, tiny_target: Path) -> None:
    """A hub's cache consists of links to blobs outside of the model's folder."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in tiny_target.iterdir():
        (folder / file.name).symlink_to(file)
    assert Checkpoint(folder).fingerprint == Checkpoint(tiny_target).fingerprint
    weights = folder / "model.safetensors"
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        weights.unlink()
        weights.symlink_to(odd)
        assert "it is not a regular file" in refused(lambda: SafeTensors(folder))
        assert "it is not a regular file" in refused(lambda: Judge.load(weights))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[" * 5000, "nested deeper"),
        ('{"weight_map": [1]}', "weight_map that does not map names to files"),
        ('{"weight_map": {"a": ["b"]}}', "weight_map that does not map names to files"),
        ("{}", "weight_map that does not map names to files"),
        (
            '{"weight_map": {"a": "../other.safetensors"}}',
            r"lacks the shard '../other.safetensors'",
        ),
        ('{"weight_map": {"a": "%s"}}' % ("x" * 10_000), "lacks the shard"),
    ],
    ids=short,
)
def test_a_malicious_index_is_refused(tmp_path: Path, index: str, message: str) -> None:
    write(tmp_path / "model.safetensors", {"a": WHOLE})
    write(tmp_path.parent / "other.safetensors", {"a": WHOLE})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert message in refused(lambda: SafeTensors(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"a":' * 5000, "nested deeper"),
        ("config.json", '{"vocab_size": 1%s}' % ("0" * 10_000), "more than 4,300 digits"),
        ("config.json", {"vocab_size": 10**4000}, "has vocab_size an integer of "),
        ("config.json", {"num_hidden_layers": 10**9}, "has num_layers 1000000000, not a size"),
        ("config.json", {"rms_norm_eps": 10**400}, "has rms_norm_eps an integer of "),
        ("config.json", {"model_type": "x" * 10_000}, "this engine runs 'llama'"),
        ("generation_config.json", '{"a":' * 5000, "nested deeper"),
        ("generation_config.json", {"eos_token_id": 2**64}, "not an id or a list of ids"),
        ("tokenizer.json", '{"a":' * 5000, "nested deeper"),
    ],
    ids=short,
)
def test_json_of_a_model_is_read_within_bounds(
    tiny_target: Path, tmp_path: Path, name: str, text: str | dict[str, Any], message: str
) -> None:
    """Regression, issue 16 item 9: RecursionError, ValueError, OverflowError or MemoryError."""
    folder = shutil.copytree(tiny_target, tmp_path / "model")
    path = folder / name
    if isinstance(text, dict):
        before = json.loads(path.read_text()) if path.is_file() else {}
        text = json.dumps(before | text)
    path.write_text(text)

    def read() -> None:
        checkpoint = Checkpoint(folder)
        _ = (checkpoint.config, checkpoint.tokenizer_hash)

    assert message in refused(read)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[" * 5000, "bad metadata: it is nested deeper"),
        ('{"hidden_size": 1%s}' % ("0" * 10_000), "bad metadata: it holds an integer"),
        ("{}", "bad metadata: "),
    ],
    ids=short,
)
def test_metadata_of_a_judge_is_read_within_bounds(
    tiny_target: Path, tmp_path: Path, metadata: str, message: str
) -> None:
    path = tmp_path / "judge.safetensors"
    write_judge(path, tiny_target)
    header = {"format": "judge-decoding/1", "judge": metadata}
    save_file(load_file(path), path, metadata=header)
    assert message in refused(lambda: Judge.load(path))
