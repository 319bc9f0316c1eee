"""Makes the folder that TensorRT-LLM's PyTorch backend loads as the judged target.

It holds links to the target's files, a `config.json` with the judged architecture, the judge, and
`serve.yaml`; with Triton's `llmapi` model given, also the model repository `triton`. The manifest
is written last, so a folder without one is unfinished.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from judge_client.echo import shown
from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.errors import UserError
from judge_decoding.files import write_whole
from judge_decoding.trtllm.manifest import judge_hash, wanted_threshold
from judge_decoding.trtllm.pytorch.compat import Generation
from judge_decoding.trtllm.pytorch.judged_target import (
    ARCHITECTURE,
    CONFIG_KEY,
    JUDGE,
    MANIFEST,
    JudgedTarget,
)
from judge_decoding.trtllm.pytorch.options import llm_options

STOCK = "LlamaForCausalLM"
REGISTER = Path(__file__).resolve().parent / "register"
MODULE = REGISTER / "judge_llama"
SERVE, TRITON = "serve.yaml", "triton"


def prepare(
    deployment: Deployment,
    out: Path,
    generation: Generation,
    *,
    served: Path | None = None,
    llmapi: Path | None = None,
) -> JudgedTarget:
    """Make the folder `out`, and return its manifest.

    served  the folder with the weights to serve if they are not `target.model`: the same model,
            quantized. The judge is compared with `target.model`.
    llmapi  the folder `all_models/llmapi/tensorrt_llm` of a Triton container

    UserError if the deployment, a model or the judge does not fit, or `out` is something else.
    """
    options = llm_options(deployment, generation)
    if deployment.acceptance.rule != "judge" or deployment.judge is None:
        raise UserError(
            f"config: deployment {deployment.name} has acceptance.rule "
            f"{deployment.acceptance.rule}; without a judge, serve the target as it is"
        )
    checkpoints = Checkpoints.of(deployment)
    checkpoints.check_vocabulary()
    judge = checkpoints.checked_judge()
    assert judge is not None
    source = (served or deployment.target.model).resolve()
    if not source.is_dir():
        raise UserError(f"target: {source} is not a model folder; give a Hugging Face folder")
    config = _judged_config(checkpoints.target, Checkpoint(source), out.resolve())
    if llmapi is not None:
        _check_llmapi(llmapi)
    _clear(out, source)
    out = out.resolve()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in ("config.json", MANIFEST, JUDGE, SERVE):
            (out / path.name).symlink_to(path)
    write_whole(out / "config.json", json.dumps(config, indent=2) + "\n", "target")
    shutil.copyfile(deployment.judge.path, out / JUDGE)
    _write_yaml(out / SERVE, options)
    if llmapi is not None:
        _write_triton(out, llmapi.resolve(), options)
    manifest = JudgedTarget(
        folder=out,
        judge=judge_hash(out / JUDGE),
        threshold=wanted_threshold(deployment, judge),
        vocab_size=checkpoints.target.config.vocab_size,
        hidden_size=checkpoints.target.config.hidden_size,
        end_ids=checkpoints.target.config.end_ids,
        protect_end_ids=deployment.acceptance.protect_end_ids,
        max_draft_len=deployment.max_draft_len,
        target_fingerprint=judge.metadata.target_fingerprint,
    )
    manifest.save()
    return manifest


def serve_command(out: Path) -> str:
    """The command that serves the folder; `trtllm-serve` takes the rest from its YAML file."""
    return (
        f"trtllm-serve {out} --backend pytorch --custom_module_dirs {MODULE} "
        f"--extra_llm_api_options {out / SERVE}"
    )


def _judged_config(target: Checkpoint, served: Checkpoint, out: Path) -> dict[str, Any]:
    """The served folder's config.json with the judged architecture."""
    raw = dict(served.config_json)
    if raw.get("architectures") != [STOCK]:
        raise UserError(
            f"target: {served.folder} has architectures {shown(raw.get('architectures'))}, the "
            f"judged model is made for [{STOCK!r}]"
        )
    for name in ("vocab_size", "hidden_size", "num_layers", "end_ids"):
        has, needs = getattr(served.config, name), getattr(target.config, name)
        if has != needs:
            raise UserError(
                f"target: {served.folder} has {name} {shown(has)}, target.model has "
                f"{shown(needs)}; give the same model, quantized"
            )
    if served.tokenizer_hash != target.tokenizer_hash:
        raise UserError(
            f"target: {served.folder} has another tokenizer than target.model {target.folder}; "
            "give the same model, quantized"
        )
    return raw | {"architectures": [ARCHITECTURE], CONFIG_KEY: {"folder": str(out)}}


def _check_llmapi(llmapi: Path) -> None:
    for name in ("config.pbtxt", "1/model.py"):
        if not (llmapi / name).is_file():
            raise UserError(
                f"--llmapi: no {llmapi / name}; give the folder all_models/llmapi/tensorrt_llm of "
                "the Triton container"
            )


def _clear(out: Path, source: Path) -> None:
    """An empty folder `out`; only what an earlier call made is removed."""
    if out.resolve() == source:
        raise UserError(f"--out: {out} is the target itself; name a new folder")
    if out.exists():
        if not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out: {out} exists and was not made by this command; name another")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out: cannot make {out} ({error.strerror})") from None


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    import yaml

    write_whole(path, yaml.safe_dump(content, sort_keys=False), "target")


def _write_triton(out: Path, llmapi: Path, options: dict[str, Any]) -> None:
    """The repository `triton` with the model `tensorrt_llm`: the container's, and our start."""
    version = out / TRITON / "tensorrt_llm" / "1"
    version.mkdir(parents=True)
    shutil.copyfile(llmapi / "config.pbtxt", version.parent / "config.pbtxt")
    (version / "llmapi").symlink_to(llmapi / "1")
    shutil.copyfile(REGISTER / "triton_model.py", version / "model.py")
    settings = {"model": str(out), **options}
    triton = {"triton_config": {"max_batch_size": 0, "decoupled": True}}
    _write_yaml(version / "model.yaml", settings | triton)
