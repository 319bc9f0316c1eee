"""Manifests: every field that does not fit is refused before the engine loads, with the fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment, load_deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError
from judge_decoding.trtllm.manifest import (
    EngineManifest,
    check_engine,
    engine_folder,
    judge_hash,
    manifest_for,
    mismatches,
)
from judge_decoding.trtllm.stack import Runtime

RUNTIME = Runtime("10.14.1.48", "1.2.1", 90)


def write_judge(path: Path, target: Path, **changes: Any) -> Path:
    values = {
        "feature": "pre_norm",
        "hidden_size": 64,
        "target_fingerprint": Checkpoint(target).fingerprint,
        "tokenizer_hash": Checkpoint(target).tokenizer_hash,
        "threshold": 0.6,
        "training_data_hash": "d",
    }
    metadata = JudgeMetadata.model_validate(values | changes)
    Judge(torch.linspace(-1, 1, metadata.hidden_size), 0.5, metadata).save(path)
    return path


@pytest.fixture
def deploy(tmp_path: Path, tiny_target: Path, tiny_draft: Path) -> Callable[..., Deployment]:
    """deploy(**top-level fields) makes a judged two-GPU deployment of the tiny pair."""
    judge = write_judge(tmp_path / "judge.safetensors", tiny_target)
    path = tmp_path / "deployment.yaml"
    path.write_text(
        f"""
name: test
engine: trtllm
target: {{model: {tiny_target}}}
draft: {{model: {tiny_draft}}}
judge: {{path: {judge}}}
acceptance: {{rule: judge}}
max_draft_len: 6
limits: {{max_sequences: 2, max_context: 512}}
ranks:
  draft: {{tp: 1, devices: [0]}}
  target: {{tp: 2, devices: [1, 2]}}
trtllm: {{engines: engines, gpu: h100, max_num_tokens: 1024}}
"""
    )
    base = load_deployment(path)
    return lambda **changes: base.override(**changes)


def build(deployment: Deployment, role: Any, **changes: Any) -> Path:
    """An engine's folder as build_engines.py leaves it, except for the engine's content."""
    manifest = manifest_for(deployment, role, Checkpoints.of(deployment), RUNTIME).model_copy(
        update=changes
    )
    folder = engine_folder(deployment, role)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *(f"rank{rank}.engine" for rank in range(manifest.tp))):
        (folder / name).write_text("")
    manifest.save(folder)
    return folder


def test_what_is_built_fits(deploy: Callable[..., Deployment], tiny_target: Path) -> None:
    deployment = deploy()
    build(deployment, "draft")
    build(deployment, "target")
    draft = check_engine(deployment, "draft", Checkpoints.of(deployment), RUNTIME)
    target = check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)
    assert (draft.tp, draft.max_draft_len, draft.judge, draft.plugin) == (1, 0, None, None)
    assert target == EngineManifest(
        role="target",
        tensorrt="10.14.1.48",
        tensorrt_llm="1.2.1",
        sm=90,
        plugin="JudgeAccept/1",
        plugin_abi=1,
        vocabulary=Checkpoint(tiny_target).tokenizer_hash,
        vocab_size=256,
        hidden_size=64,
        tp=2,
        quantization="none",
        kv_cache_dtype="auto",
        logits_dtype="float32",
        max_draft_len=6,
        max_sequences=2,
        max_context=512,
        max_num_tokens=1024,
        model_fingerprint=Checkpoint(tiny_target).fingerprint,
        judge=judge_hash(deployment.judge.path),
        threshold=0.6,
        protect_end_ids=True,
    )


REFUSED: list[tuple[str, Any, str]] = [
    ("tensorrt", "10.13.3.9", r"tensorrt 10\.13\.3\.9, but 10\.14\.1\.48 .*in one container"),
    ("tensorrt_llm", "1.1.0", r"tensorrt_llm 1\.1\.0, but 1\.2\.1 .*in one container"),
    ("sm", 100, "sm 100, but 90 .*on the GPU kind it was built for"),
    ("vocabulary", "x", "vocabulary x, but .*--only target --again"),
    ("vocab_size", 300, "vocab_size 300, but 256 .*--only target --again"),
    ("hidden_size", 128, "hidden_size 128, but 64 .*--only target --again"),
    ("quantization", "fp8", "quantization fp8, but none .*--only target --again"),
    ("kv_cache_dtype", "fp8", "kv_cache_dtype fp8, but auto .*--only target --again"),
    ("logits_dtype", "float16", "logits_dtype float16, but float32 .*--only target --again"),
    ("model_fingerprint", "x", "model_fingerprint x, but .*--only target --again"),
    ("max_draft_len", 5, r"max_draft_len 5, but 6 .*lower max_draft_len .*to 5"),
    ("max_sequences", 1, r"max_sequences 1, but 2 .*lower limits\.max_sequences to 1"),
    ("max_context", 256, r"max_context 256, but 512 .*lower limits\.max_context to 256"),
    ("max_num_tokens", 512, r"max_num_tokens 512, but 1024 .*trtllm\.max_num_tokens to 512"),
    ("plugin", "JudgeAccept/2", "plugin JudgeAccept/2, but JudgeAccept/1 .*--again"),
    ("plugin_abi", 2, "plugin_abi 2, but 1 .*--only target --again"),
    ("judge", "x", "judge x, but .*--only target --again"),
    ("threshold", 0.7, r"threshold 0\.7, but 0\.6 .*set judge\.threshold to 0\.7"),
    ("protect_end_ids", False, "protect_end_ids False, but True .*--again"),
]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED)
def test_every_field_is_checked(
    deploy: Callable[..., Deployment], field: str, value: Any, message: str
) -> None:
    deployment = deploy()
    build(deployment, "target", **{field: value})
    with pytest.raises(UserError, match=message) as error:
        check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)
    assert "\n" not in str(error.value)


def test_the_tensor_parallel_size(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    build(deployment, "target", tp=1)
    with pytest.raises(UserError, match=r"tp 1, but 2 .*set ranks\.target\.tp to 1"):
        check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)


def test_no_field_is_left_out() -> None:
    checked = {field for field, _, _ in REFUSED} | {"tp"}  # above
    assert checked | {"format", "role"} == set(EngineManifest.model_fields)  # below


def test_a_larger_engine_serves_a_smaller_deployment(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    larger = {"max_draft_len": 25, "max_sequences": 8, "max_context": 4096, "max_num_tokens": 8192}
    build(deployment, "target", **larger)
    check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)


def test_an_unfinished_foreign_or_incomplete_folder(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    with pytest.raises(UserError, match=r"no .*manifest\.json; build it with build/build_engines"):
        check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)
    folder = build(deployment, "target")
    EngineManifest.load(folder).model_copy(update={"role": "draft"}).save(folder)
    with pytest.raises(UserError, match="holds a draft engine, not a target's"):
        check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)
    folder = build(deployment, "target")
    (folder / "rank1.engine").unlink()
    with pytest.raises(UserError, match=r"lacks rank1\.engine; build it again"):
        check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)
    text = (folder / "manifest.json").read_text()
    for broken in ("{", text.replace("judge-decoding-engine/1", "judge-decoding-engine/0")):
        (folder / "manifest.json").write_text(broken)
        with pytest.raises(UserError, match=r"is not readable .*build the engine again"):
            check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)


def test_rule_and_engine_must_agree(deploy: Callable[..., Deployment]) -> None:
    """The plugin judges every draft, so with another rule quality would be lost silently."""
    judged, strict = deploy(), deploy(acceptance={"rule": "strict"})
    build(judged, "target")
    with pytest.raises(UserError, match=r"judge \w+, but none \(acceptance\.rule strict\)"):
        check_engine(strict, "target", Checkpoints.of(strict), RUNTIME)
    build(judged, "target", threshold=1.0)  # never accepts, so this is exact speculative decoding
    check_engine(strict, "target", Checkpoints.of(strict), RUNTIME)
    build(strict, "target")
    check_engine(strict, "target", Checkpoints.of(strict), RUNTIME)
    with pytest.raises(UserError, match="plugin None, but JudgeAccept/1"):
        check_engine(judged, "target", Checkpoints.of(judged), RUNTIME)


def test_the_deployments_threshold_overrules_the_judges(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    changed = deploy(judge=deployment.judge.model_dump() | {"threshold": 0.9})
    build(changed, "target")
    assert check_engine(changed, "target", Checkpoints.of(changed), RUNTIME).threshold == 0.9
    with pytest.raises(UserError, match=r"threshold 0\.9, but 0\.6"):
        check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)


def test_another_targets_judge_is_refused(
    deploy: Callable[..., Deployment], tmp_path: Path, tiny_target: Path
) -> None:
    build(deploy(), "target")
    other = write_judge(tmp_path / "other.safetensors", tiny_target, target_fingerprint="0" * 16)
    deployment = deploy(judge={"path": other})
    with pytest.raises(UserError, match="trained on target 0000000000000000, but this one is"):
        manifest_for(deployment, "target", Checkpoints.of(deployment), RUNTIME)
    found = {
        m.field: m.fix
        for m in mismatches(
            EngineManifest.load(engine_folder(deployment, "target")),
            deployment,
            Checkpoints.of(deployment),
            RUNTIME,
        )
    }
    assert set(found) == {"judge", "model_fingerprint"}
    assert "give the judge that was trained on this target" in found["model_fingerprint"]


def test_a_serving_machine_needs_no_weights(
    deploy: Callable[..., Deployment], tmp_path: Path, tiny_target: Path, tiny_draft: Path
) -> None:
    deployment = deploy()
    build(deployment, "draft")
    build(deployment, "target")
    bare = {}
    for name, source in (("target", tiny_target), ("draft", tiny_draft)):
        bare[name] = tmp_path / "bare" / name
        bare[name].mkdir(parents=True)
        (bare[name] / "config.json").write_text((source / "config.json").read_text())
    tokenizer = tiny_target / "tokenizer.json"
    (bare["target"] / "tokenizer.json").write_text(tokenizer.read_text())
    serving = deploy(target={"model": bare["target"]}, draft={"model": bare["draft"]})
    check_engine(serving, "draft", Checkpoints.of(serving), RUNTIME)
    check_engine(serving, "target", Checkpoints.of(serving), RUNTIME)
    build(deployment, "target", model_fingerprint="0" * 16)  # the judge knows its target
    with pytest.raises(UserError, match="model_fingerprint 0000000000000000, but"):
        check_engine(serving, "target", Checkpoints.of(serving), RUNTIME)


def test_engines_are_for_engine_trtllm(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="torch")
    with pytest.raises(UserError, match="has engine torch; engines are for engine trtllm"):
        check_engine(deployment, "target", Checkpoints.of(deployment), RUNTIME)
