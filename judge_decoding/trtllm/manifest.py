"""The manifest beside an engine: what it was built from and for, checked before it is loaded.

TensorRT refuses an engine of another version with an opaque message, and runs one of another model
or judge without any message. `build/build_engines.py` writes `manifest.json` last, so an engine
folder without one is unfinished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_decoding.config import Deployment, EngineConfig, RankGroup, TrtLlmConfig
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Model
from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError, shorten
from judge_decoding.files import parse_json, read_bounded, write_whole
from judge_decoding.files.json_text import SETTINGS_BYTES
from judge_decoding.trtllm.stack import (
    CONTAINER,
    PLUGIN_ABI,
    PLUGIN_NAME,
    PLUGIN_VERSION,
    Runtime,
)

MANIFEST = "manifest.json"


class EngineManifest(BaseModel):
    """What an engine was built from and for.

    sm                 compute capability times ten
    vocabulary         hash of the tokenizer
    max_draft_len      0 for a draft
    model_fingerprint  of the engine's own model
    judge              hash of the judge's file; None for an engine without a judge, for which
                       plugin, plugin_abi, threshold and protect_end_ids are None too
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["judge-decoding-engine/1"] = "judge-decoding-engine/1"
    role: Model
    tensorrt: str = Field(min_length=1)
    tensorrt_llm: str = Field(min_length=1)
    sm: int = Field(gt=0)
    plugin: str | None = None
    plugin_abi: int | None = None
    vocabulary: str = Field(min_length=1)
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    tp: int = Field(gt=0)
    quantization: Literal["none", "fp8"]
    kv_cache_dtype: Literal["auto", "fp8"]
    logits_dtype: Literal["float32", "float16"]
    max_draft_len: int = Field(ge=0)
    max_sequences: int = Field(gt=0)
    max_context: int = Field(gt=0)
    max_num_tokens: int = Field(gt=0)
    model_fingerprint: str = Field(min_length=1)
    judge: str | None = None
    threshold: float | None = None
    protect_end_ids: bool | None = None

    def save(self, folder: Path) -> None:
        write_whole(folder / MANIFEST, self.model_dump_json(indent=2) + "\n", "engine")

    @classmethod
    def load(cls, folder: Path) -> EngineManifest:
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"engine: no {path}; build it with build/build_engines.py")
        try:
            return cls.model_validate(parse_json(read_bounded(path, SETTINGS_BYTES)))
        except (OSError, ValueError, ValidationError) as error:
            raise UserError(
                f"engine: {path} is not readable ({shorten(error)}); build the engine again"
            ) from None


def judge_hash(path: Path) -> str:
    """Identity of a judge file: 16 hex digits."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        raise UserError(f"judge: no file {path}; train one with build/train_judge.py") from None


def sections(deployment: Deployment) -> TrtLlmConfig:
    """The deployment's trtllm section, or a UserError."""
    if deployment.engine != "trtllm" or deployment.trtllm is None:
        raise UserError(
            f"config: deployment {deployment.name} has engine {deployment.engine}; "
            "engines are for engine trtllm"
        )
    return deployment.trtllm


def engine_config(deployment: Deployment, model: Model) -> EngineConfig:
    build = sections(deployment)
    return build.target if model == "target" else build.draft


def rank_group(deployment: Deployment, model: Model) -> RankGroup:
    ranks = deployment.ranks
    assert ranks is not None  # the deployment's validation requires them for engine trtllm
    return ranks.target if model == "target" else ranks.draft


def engine_folder(deployment: Deployment, model: Model) -> Path:
    return sections(deployment).engines / model


def manifest_for(
    deployment: Deployment, model: Model, checkpoints: Checkpoints, runtime: Runtime
) -> EngineManifest:
    """The manifest of this deployment's engine if it is built on this machine.

    Reads the model's checkpoint (weights included) and the judge. UserError if the judge was
    trained for another target.
    """
    build, part = sections(deployment), engine_config(deployment, model)
    checkpoint = checkpoints[model]
    config = checkpoint.config
    judge: dict[str, object] = {}
    if model == "target" and deployment.acceptance.rule == "judge":
        loaded = checkpoints.checked_judge()
        assert loaded is not None and deployment.judge is not None
        judge = {
            "plugin": f"{PLUGIN_NAME}/{PLUGIN_VERSION}",
            "plugin_abi": PLUGIN_ABI,
            "judge": judge_hash(deployment.judge.path),
            "threshold": wanted_threshold(deployment, loaded),
            "protect_end_ids": deployment.acceptance.protect_end_ids,
        }
    return EngineManifest.model_validate(
        {
            "role": model,
            "tensorrt": runtime.tensorrt,
            "tensorrt_llm": runtime.tensorrt_llm,
            "sm": runtime.sm,
            "vocabulary": checkpoints.vocabulary(model),
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "tp": rank_group(deployment, model).tp,
            "quantization": part.quantization,
            "kv_cache_dtype": part.kv_cache_dtype,
            "logits_dtype": build.logits_dtype,
            "max_draft_len": deployment.max_draft_len if model == "target" else 0,
            "max_sequences": deployment.limits.max_sequences,
            "max_context": deployment.limits.max_context,
            "max_num_tokens": build.max_num_tokens,
            "model_fingerprint": checkpoint.fingerprint,
            **judge,
        }
    )


def wanted_threshold(deployment: Deployment, judge: Judge) -> float:
    """The deployment's threshold, or the judge's own if the deployment has none."""
    assert deployment.judge is not None
    own = judge.metadata.threshold
    return own if deployment.judge.threshold is None else deployment.judge.threshold


def engine_files(tp: int) -> list[str]:
    """Names of the files that trtllm-build writes into an engine's folder."""
    return ["config.json", *(f"rank{rank}.engine" for rank in range(tp))]


class Mismatch(NamedTuple):
    """One field that does not fit: the engine has `has`, the deployment needs `needs`; `fix` names
    the remedy."""

    field: str
    has: object
    needs: object
    fix: str


def check_engine(
    deployment: Deployment,
    model: Model,
    checkpoints: Checkpoints,
    runtime: Runtime,
    folder: Path | None = None,
) -> EngineManifest:
    """The engine's manifest; UserError naming the first mismatch and its fix.

    The model's checkpoint must have config.json and tokenizer.json. If its weights are missing (on
    a serving machine), the judge's own record of its target replaces them.
    """
    folder = folder or engine_folder(deployment, model)
    manifest = EngineManifest.load(folder)
    if manifest.role != model:
        raise UserError(
            f"engine: {folder} holds a {manifest.role} engine, not a {model}'s; put each "
            "into the folder of its name (trtllm.engines)"
        )
    for name in engine_files(manifest.tp):
        if not (folder / name).is_file():
            raise UserError(f"engine: {folder} lacks {name}; {_again(model)}")
    for wrong in mismatches(manifest, deployment, checkpoints, runtime):
        raise UserError(
            f"engine: {folder} has {wrong.field} {wrong.has}, but {wrong.needs} is needed here; "
            f"{wrong.fix}"
        )
    return manifest


def mismatches(
    manifest: EngineManifest, deployment: Deployment, checkpoints: Checkpoints, runtime: Runtime
) -> Iterator[Mismatch]:
    """Yields everything that forbids loading the engine, in the order in which one would fix it."""
    model, build = manifest.role, sections(deployment)
    part = engine_config(deployment, model)
    checkpoint = checkpoints[model]
    config = checkpoint.config
    again = _again(model)
    container = f"build and serve in one container ({CONTAINER}), or {again}"
    exact = [
        ("tensorrt", runtime.tensorrt, container),
        ("tensorrt_llm", runtime.tensorrt_llm, container),
        ("sm", runtime.sm, f"serve on the GPU kind it was built for, or {again}"),
        ("vocabulary", checkpoints.vocabulary(model), again),
        ("vocab_size", config.vocab_size, again),
        ("hidden_size", config.hidden_size, again),
        (
            "tp",
            rank_group(deployment, model).tp,
            f"set ranks.{model}.tp to {manifest.tp}, or {again}",
        ),
        ("quantization", part.quantization, again),
        ("kv_cache_dtype", part.kv_cache_dtype, again),
        ("logits_dtype", build.logits_dtype, again),
    ]
    if checkpoint.has_weights:
        exact.append(("model_fingerprint", checkpoint.fingerprint, again))
    for name, needs, fix in exact:
        if (has := getattr(manifest, name)) != needs:
            yield Mismatch(name, has, needs, fix)
    least = [
        ("max_sequences", deployment.limits.max_sequences, "limits.max_sequences"),
        ("max_context", deployment.limits.max_context, "limits.max_context"),
        ("max_num_tokens", build.max_num_tokens, "trtllm.max_num_tokens"),
    ]
    if model == "target":
        key = "max_draft_len (and its schedule)"
        least.append(("max_draft_len", deployment.max_draft_len, key))
    for name, needs, key in least:
        if (has := getattr(manifest, name)) < needs:
            yield Mismatch(name, has, needs, f"lower {key} to {has}, or {again}")
    if model == "target":
        yield from _judge_mismatches(manifest, deployment, checkpoints, again)


def _judge_mismatches(
    manifest: EngineManifest, deployment: Deployment, checkpoints: Checkpoints, again: str
) -> Iterator[Mismatch]:
    rule = deployment.acceptance.rule
    if rule != "judge":
        # The plugin judges every draft, so rule and engine must agree.
        if manifest.judge is not None and (manifest.threshold or 0.0) < 1.0:
            yield Mismatch(
                "judge",
                manifest.judge,
                f"none (acceptance.rule {rule})",
                f"set acceptance.rule judge, or {again}",
            )
        return
    judge = checkpoints.judge
    assert judge is not None and deployment.judge is not None
    meta = judge.metadata
    wanted = [
        ("plugin", f"{PLUGIN_NAME}/{PLUGIN_VERSION}", again),
        ("plugin_abi", PLUGIN_ABI, again),
        ("judge", judge_hash(deployment.judge.path), again),
        (
            "threshold",
            wanted_threshold(deployment, judge),
            f"set judge.threshold to {manifest.threshold}, or {again}",
        ),
        ("protect_end_ids", deployment.acceptance.protect_end_ids, again),
        (
            "model_fingerprint",
            meta.target_fingerprint,
            f"give the judge that was trained on this target, or {again}",
        ),
    ]
    for name, needs, fix in wanted:
        if (has := getattr(manifest, name)) != needs:
            yield Mismatch(name, has, needs, fix)


def _again(model: Model) -> str:
    return f"build it again: python3 build/build_engines.py --config CONFIG --only {model} --again"
