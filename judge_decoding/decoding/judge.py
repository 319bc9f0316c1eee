"""The judge: a linear head on the target's last hidden state that recognises correct tokens.

    score_i = sigmoid(w . h_i + b)

h_i is the hidden state at the drafted token's own position, where the token is the *input*: the
target's reaction to having read it. The verify pass computes it anyway. One judge is one
`.safetensors` file: `weight` [H] float32, `bias` [1] float32, and metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_client.echo import shown
from judge_decoding.checkpoint import Checkpoint, check_header, save_tensors
from judge_decoding.errors import UserError, shorten
from judge_decoding.files import JsonError, parse_json

FORMAT = "judge-decoding/1"


class JudgeMetadata(BaseModel):
    """What a judge is for and where it comes from; stored as JSON in the file's header."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: Literal["pre_norm", "post_norm"]
    hidden_size: int = Field(gt=0)
    target_fingerprint: str = Field(min_length=1)
    tokenizer_hash: str = Field(min_length=1)
    threshold: float = Field(ge=0.0, le=1.0)
    threshold_method: str | None = None
    """How the threshold was chosen, and on which data; None in files older than this field."""
    training_data_hash: str
    weights: str | None = None
    """The format of the target's matrices whose states it learned (the deployment's
    `target.weights`); None in files older than this field: the target's own values."""
    metrics: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """A judge head: weight float32 [H], bias and metadata."""

    weight: torch.Tensor
    bias: float
    metadata: JudgeMetadata

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, H], any float dtype -> float32 [n] in [0, 1]. The product is in float32."""
        return torch.sigmoid(hidden.float() @ self.weight + self.bias)

    def check_target(self, target: Checkpoint) -> None:
        """Raise UserError unless this judge was trained on exactly this target."""
        meta, hidden_size = self.metadata, target.config.hidden_size
        if meta.hidden_size != hidden_size:
            raise UserError(
                f"judge: trained for hidden size {meta.hidden_size}, but the target's is "
                f"{hidden_size}; give the judge trained on this target (build/train_judge.py)"
            )
        if meta.target_fingerprint != target.fingerprint:
            raise UserError(
                f"judge: trained on target {meta.target_fingerprint}, but this one is "
                f"{target.fingerprint}; train one on this target (build/train_judge.py)"
            )
        if meta.tokenizer_hash != target.tokenizer_hash:
            raise UserError(
                f"judge: trained with tokenizer {meta.tokenizer_hash}, but the target's is "
                f"{target.tokenizer_hash}; train one with this tokenizer (build/train_judge.py)"
            )

    def save(self, path: Path | str) -> None:
        _check_weights(self.weight, self.bias, self.metadata, str(path))
        tensors = {
            "weight": self.weight.float().contiguous(),
            "bias": torch.tensor([self.bias], dtype=torch.float32),
        }
        header = {"format": FORMAT, "judge": self.metadata.model_dump_json()}
        save_tensors(Path(path), tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> Judge:
        from safetensors import SafetensorError, safe_open

        if not Path(path).exists():
            raise UserError(f"judge: no file {path}; train one with build/train_judge.py")
        try:
            check_header(Path(path))
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                names = set(file.keys())
                tensors = {n: file.get_tensor(n) for n in names & {"weight", "bias"}}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"judge: {path} is not a readable .safetensors file ({shorten(error)})"
            ) from None
        if header.get("format") != FORMAT or "judge" not in header:
            raise UserError(
                f"judge: {path} has format {shown(header.get('format'))}, this version reads "
                f"{FORMAT!r}"
            )
        try:
            metadata = JudgeMetadata.model_validate(parse_json(header["judge"]))
        except (ValidationError, JsonError) as error:
            raise UserError(f"judge: {path} has bad metadata: {shorten(error)}") from None
        if names != {"weight", "bias"} or tensors["bias"].numel() != 1:
            raise UserError(f"judge: {path} must hold weight [H] and bias [1], not {shown(names)}")
        weight, bias = tensors["weight"], float(tensors["bias"])
        _check_weights(weight, bias, metadata, str(path))
        return cls(weight, bias, metadata)


def _check_weights(weight: torch.Tensor, bias: float, meta: JudgeMetadata, path: str) -> None:
    if weight.dtype != torch.float32 or tuple(weight.shape) != (meta.hidden_size,):
        raise UserError(
            f"judge: {path} has weight {weight.dtype} {shown(list(weight.shape))}, "
            f"its metadata says float32 {shown([meta.hidden_size])}"
        )
    if not bool(torch.isfinite(weight).all()) or not torch.isfinite(torch.tensor(bias)):
        raise UserError(f"judge: {path} holds NaN or infinite weights; train it again")
