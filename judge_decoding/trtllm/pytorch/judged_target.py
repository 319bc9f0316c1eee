"""The manifest of a prepared target folder, which the judged model reads when it is made.

`prepare` writes it. The folder's `config.json` has the key `judge_decoding` with the folder's own
path, since upstream hands a model its configuration and not its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_client.echo import shown
from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError, shorten
from judge_decoding.files import read_object, write_whole
from judge_decoding.trtllm.manifest import judge_hash
from judge_decoding.trtllm.pytorch.rows import RowRule

ARCHITECTURE = "JudgeLlamaForCausalLM"
CONFIG_KEY = "judge_decoding"
MANIFEST, JUDGE = "judge_manifest.json", "judge.safetensors"
AGAIN = "make it again with build/prepare_pytorch_target.py"


class JudgedTarget(BaseModel):
    """What a prepared folder was made from, and how the judge accepts.

    folder        where it was made; a folder that was moved is refused
    judge         hash of the judge's file, which lies beside the manifest
    floor         a judged token's least probability under the target; 0 for none
    boost         added to the row's largest logit (at least 0) for a judged token
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["judge-decoding-pytorch/1"] = "judge-decoding-pytorch/1"
    folder: Path
    judge: str = Field(min_length=1)
    threshold: float = Field(ge=0, le=1)
    floor: float = Field(default=0.0, ge=0, lt=1)
    boost: float = Field(default=1e4, gt=0)
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    end_ids: tuple[int, ...] = Field(max_length=16)
    protect_end_ids: bool
    max_draft_len: int = Field(gt=0)
    target_fingerprint: str = Field(min_length=1)

    def save(self) -> None:
        write_whole(self.folder / MANIFEST, self.model_dump_json(indent=2) + "\n", "target")

    @classmethod
    def load(cls, folder: Path) -> JudgedTarget:
        """The folder's manifest; UserError if it is missing, unreadable or of a moved folder."""
        if not (folder / MANIFEST).is_file():
            raise UserError(f"target: no {folder / MANIFEST} (was the folder moved?); {AGAIN}")
        try:
            found = cls.model_validate(read_object(folder / MANIFEST, "target"))
        except ValidationError as error:
            raise UserError(
                f"target: {folder / MANIFEST} is not a manifest of this version "
                f"({shorten(error)}); {AGAIN}"
            ) from None
        if found.folder != folder:
            raise UserError(f"target: {folder} was made as {found.folder}; {AGAIN}")
        return found

    @classmethod
    def of_config(cls, config: Any) -> JudgedTarget:
        """The manifest that a model's configuration (transformers) names, checked against it."""
        place = getattr(config, CONFIG_KEY, None)
        if not isinstance(place, dict) or not isinstance(place.get("folder"), str):
            raise UserError(f"target: its config.json has no key {CONFIG_KEY}; {AGAIN}")
        found = cls.load(Path(place["folder"]))
        for name in ("vocab_size", "hidden_size"):
            has, needs = getattr(config, name), getattr(found, name)
            if has != needs:
                raise UserError(
                    f"target: {found.folder} was made for {name} {needs}, its config.json now has "
                    f"{shown(has)}; {AGAIN}"
                )
        return found

    def load_judge(self) -> Judge:
        """The judge beside the manifest; UserError if it is another one, or for another target."""
        path = self.folder / JUDGE
        judge = Judge.load(path)
        if judge_hash(path) != self.judge:
            raise UserError(f"target: {path} is not the judge that it was made with; {AGAIN}")
        if judge.metadata.hidden_size != self.hidden_size:
            raise UserError(
                f"judge: {path} has hidden size {judge.metadata.hidden_size}, the target has "
                f"{self.hidden_size}; {AGAIN}"
            )
        return judge

    def rule(self, judge: Judge) -> RowRule:
        return RowRule(
            bias=judge.bias,
            threshold=self.threshold,
            vocab_size=self.vocab_size,
            boost=self.boost,
            floor=self.floor,
            protect_end_ids=self.protect_end_ids,
        )
