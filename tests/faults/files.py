"""Damaged or wrong files: configuration, models, tokenizers, judges. One line refuses each."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from judge_decoding.config import load_deployment
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from tests.conftest import write_judge, write_llama, write_tokenizer
from tests.faults.bench import Bench, Fault, Launched, Outcome, Remains
from tests.faults.words import shorten

Document = dict[str, Any]
Damage = Callable[[Bench, Path, Document], Document | bytes]
"""(bench, an empty folder, a sound document) -> the content of the deployment file."""


@dataclass(frozen=True)
class File:
    """A fault of a file; `message` is a regular expression for what must be said.

    code  exit code; 2 means before anything was started
    """

    name: str
    damage: Damage
    message: str
    code: int = 1


def refused_by_serve(file: File, bench: Bench) -> Outcome:
    """The outcome with `judge-decoding serve`."""
    config = damaged(file, bench)
    began = time.monotonic()
    server = Launched(config, config.parent)
    try:
        code = server.wait()
        seconds = time.monotonic() - began
        lines = server.output.strip().splitlines()
        last = lines[-1].removeprefix("judge-decoding: ")
        assert code == file.code, server.output
        check(file, last)
        assert "Traceback" not in server.output
        if code == 2:
            assert len(lines) == 1
        after = f"does not start, exit {code}: `{shorten(last)}`"
        return Outcome("cannot connect", seconds, after, Remains(server).left())
    finally:
        server.stop()


def refused_by_loader(file: File, bench: Bench) -> str:
    """The UserError's message from loading without a server."""
    try:
        load_pipeline(load_deployment(damaged(file, bench)))
    except UserError as error:
        check(file, str(error))
        return str(error)
    raise AssertionError(f"{file.name}: it was loaded")


def damaged(file: File, bench: Bench) -> Path:
    folder = bench.place()
    document = bench.document(ranks=0, judge={"path": str(bench.judge)})
    made = file.damage(bench, folder, document)
    config = folder / "deployment.yaml"
    config.write_bytes(made if isinstance(made, bytes) else yaml.safe_dump(made).encode())
    return config


def check(file: File, message: str) -> None:
    assert re.search(file.message, message), message
    assert "\n" not in message


def raw(data: bytes) -> Damage:
    return lambda bench, folder, document: data


def changed(**changes: Any) -> Damage:
    return lambda bench, folder, document: document | changes


def target(edit: Callable[[Path], None]) -> Damage:
    """The target is an edited copy; the judge is left out."""

    def damage(bench: Bench, folder: Path, document: Document) -> Document:
        copy = shutil.copytree(bench.target, folder / "target")
        edit(copy)
        rest = {key: value for key, value in document.items() if key != "judge"}
        return rest | {"target": {"model": str(copy)}}

    return damage


def draft(edit: Callable[[Path], None]) -> Damage:
    def damage(bench: Bench, folder: Path, document: Document) -> Document:
        copy = shutil.copytree(bench.draft, folder / "draft")
        edit(copy)
        return document | {"draft": {"model": str(copy)}}

    return damage


def judge(make: Callable[[Bench, Path], None]) -> Damage:
    """The judge file is a new one."""

    def damage(bench: Bench, folder: Path, document: Document) -> Document:
        path = folder / "judge.safetensors"
        make(bench, path)
        return document | {"judge": {"path": str(path)}}

    return damage


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Edits the tensors of a folder in place."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def overwritten(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def judge_edited(**edits: Any) -> Callable[[Bench, Path], None]:
    """The sound judge with a changed `weight` (a function of the present one) or metadata."""

    def make(bench: Bench, path: Path) -> None:
        tensors = load_file(bench.judge)
        with safe_open(bench.judge, "pt") as file:
            metadata = dict(file.metadata())
        for name, value in edits.items():
            if name == "weight":
                tensors[name] = value(tensors[name])
            else:
                metadata["judge"] = json.dumps(json.loads(metadata["judge"]) | {name: value})
        save_file(tensors, path, metadata=metadata)

    return make


def judge_of_another(bench: Bench, path: Path) -> None:
    other = write_llama(path.parent / "other", seed=9)
    write_tokenizer(other)
    write_judge(path, other)


def judge_cut(bench: Bench, path: Path) -> None:
    path.write_bytes(bench.judge.read_bytes()[:100])


def judge_with_metadata(text: str) -> Callable[[Bench, Path], None]:
    def make(bench: Bench, path: Path) -> None:
        header = {"format": "judge-decoding/1", "judge": text}
        save_file(load_file(bench.judge), path, metadata=header)

    return make


def sparse(header_bytes: int) -> Callable[[Path], None]:
    """Weights whose header says that it has so many bytes, and that have them, as a hole."""

    def change(folder: Path) -> None:
        with (folder / "model.safetensors").open("wb") as file:
            file.write(header_bytes.to_bytes(8, "little") + b"{")
            file.truncate(8 + header_bytes)

    return change


def header(offsets: dict[str, list[int]]) -> Callable[[Path], None]:
    """Weights of 64 bytes with a float32 tensor at each of the offsets."""

    def change(folder: Path) -> None:
        entries = {
            name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
            for name, (begin, end) in offsets.items()
        }
        data = json.dumps(entries).encode()
        size = len(data).to_bytes(8, "little")
        (folder / "model.safetensors").write_bytes(size + data + bytes(64))

    return change


def linked(name: str, to: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return change


def pattern(folder: Path) -> None:
    """The tokenizer splits with a regular expression that backtracks without end."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    split["pattern"] = {"Regex": "(a+a+)+$"}
    before = document["pre_tokenizer"]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, before]}
    path.write_text(json.dumps(document))


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")


def set_infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"][7, 1] = float("inf")


def narrow(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name][:, :-8].contiguous()


def as_integers(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = (tensors[name] * 10).to(torch.int8)


def small_vocabulary(folder: Path) -> None:
    write_llama(folder, seed=3, vocab_size=128)


def large_tokenizer(folder: Path) -> None:
    """The tokenizer has more tokens than the model has rows."""
    raw_file = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = raw_file["model"]["vocab"]
    vocabulary |= {f"word{i}": 256 + i for i in range(100)}
    (folder / "tokenizer.json").write_text(json.dumps(raw_file))


PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."
FILES = [
    File("config: empty file", lambda bench, folder, document: b"", "must hold a mapping", 2),
    File(
        "config: YAML with a syntax error", raw(b"name: [tiny\ntarget: }"), "not readable YAML", 2
    ),
    File("config: binary", raw(bytes(range(256))), "not readable YAML", 2),
    File(
        "config: Python objects", raw(b"!!python/object/apply:os.system ['id']"), "not readable", 2
    ),
    File("config: YAML nested 100,000 deep", raw(b"[" * 100_000), "nested deeper than 256", 2),
    File("config: integer of 10,000 digits", raw(b"name: 1" + b"0" * 10_000), "4300 digits", 2),
    File("config: 2 MB", raw(b"#" * 2_000_000), "at most 1,048,576 are read", 2),
    File("config: unknown key", changed(max_draft_length=3), "max_draft_length: unknown key", 2),
    File("config: wrong type", changed(max_draft_len="many"), "max_draft_len: .*got 'many'", 2),
    File("config: port 0", changed(server={"grpc_port": 0}), "grpc_port: ", 2),
    File(
        "config: judge rule, no judge",
        changed(judge=None, acceptance={"rule": "judge"}),
        "needs a judge",
        2,
    ),
    File(
        "target: no such folder", changed(target={"model": "/nowhere"}), "no (folder|file) /nowhere"
    ),
    File("target: weights cut short", target(cut("model.safetensors", 0.7)), "is damaged"),
    File("target: weights of 0 bytes", target(overwritten("model.safetensors", b"")), "is damaged"),
    File(
        "target: a pickle named .safetensors",
        target(overwritten("model.safetensors", PICKLE)),
        "is damaged",
    ),
    File(
        "target: header of 2^60 bytes",
        target(overwritten("model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}")),
        "is damaged",
    ),
    File("target: header of 99 MB", target(sparse(99_000_000)), "is damaged .*at most 16,777,216"),
    File(
        "target: overlapping offsets",
        target(header({"a": [0, 64], "b": [32, 64]})),
        "is damaged .*invalid offset",
    ),
    File(
        "target: offsets past the end",
        target(header({"a": [0, 128]})),
        "is damaged .*not fully covered|is damaged .*invalid offset",
    ),
    File(
        "target: weights are a link to /dev/zero",
        target(linked("model.safetensors", "/dev/zero")),
        "not a regular file",
    ),
    File("target: NaN in a weight", target(weights(set_nan)), "down_proj.*not finite"),
    File("target: infinity in a weight", target(weights(set_infinite)), "lm_head.*not finite"),
    File("target: a weight of another shape", target(weights(narrow)), "q_proj.*shape"),
    File("target: weights of int8", target(weights(as_integers)), "q_proj.*int8"),
    File(
        "target: a tensor is missing",
        target(weights(lambda t: t.pop("model.norm.weight"))),
        "no tensor model.norm.weight",
    ),
    File("target: config.json cut short", target(cut("config.json", 0.5)), "not readable JSON"),
    File(
        "target: config.json nested 5,000 deep",
        target(overwritten("config.json", b'{"a":' * 5000)),
        "nested deeper than 64 levels",
    ),
    File(
        "target: config.json with 10,000 digits",
        target(overwritten("config.json", b'{"vocab_size": 1' + b"0" * 10_000 + b"}")),
        "more than 4,300 digits",
    ),
    File("target: 10^9 layers", target(settings(num_hidden_layers=10**9)), "not a size"),
    File(
        "target: another architecture",
        target(settings(model_type="mamba")),
        "'mamba', this engine runs 'llama'",
    ),
    File("target: hidden_size is text", target(settings(hidden_size="wide")), "hidden_size"),
    File("target: hidden_size of another model", target(settings(hidden_size=128)), "shape"),
    File("target: 0 heads", target(settings(num_attention_heads=0)), "num_heads 0"),
    File(
        "target: tokenizer cut short",
        target(cut("tokenizer.json", 0.5)),
        "tokenizer.json is not readable",
    ),
    File("target: ruinous pattern in the tokenizer", target(pattern), "never ends"),
    File(
        "target: tokenizer.json nested 5,000 deep",
        target(overwritten("tokenizer.json", b'{"a":' * 5000)),
        "tokenizer.json is not readable",
    ),
    File("target: tokenizer of another model", target(large_tokenizer), "356.*256|tokenizer"),
    File("draft: another vocabulary", draft(small_vocabulary), "vocabular"),
    File("draft: weights cut short", draft(cut("model.safetensors", 0.3)), "is damaged"),
    File("judge: cut short", judge(judge_cut), "judge: "),
    File(
        "judge: metadata nested 5,000 deep",
        judge(judge_with_metadata('{"a":' * 5000)),
        "bad metadata: it is nested deeper",
    ),
    File("judge: of another target", judge(judge_of_another), "judge: .*target"),
    File(
        "judge: NaN weights",
        judge(judge_edited(weight=lambda w: w * float("nan"))),
        "judge: .*finite",
    ),
    File(
        "judge: another width", judge(judge_edited(weight=lambda w: w[:-1].contiguous())), "judge: "
    ),
    File("judge: threshold 7", judge(judge_edited(threshold=7.0)), "threshold"),
]

QUICK = {"config: YAML with a syntax error", "target: weights cut short"}
"""The faults for which the suite starts a server; all faults go through the loader."""
GROUP = "files"
FAULTS = [
    Fault(GROUP, file.name, partial(refused_by_serve, file), quick=file.name in QUICK)
    for file in FILES
]
