"""The model folders and the judge that a deployment names, read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config.deployment import Deployment
from judge_decoding.config.layout import Model
from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError


@dataclass(frozen=True)
class Checkpoints:
    """Both models of a deployment, and its judge. Drop the object after loading (`Checkpoint`)."""

    target: Checkpoint
    draft: Checkpoint | None
    judge_file: Path | None

    @classmethod
    def of(cls, deployment: Deployment) -> Checkpoints:
        draft, judge = deployment.draft, deployment.judge
        return cls(
            Checkpoint(deployment.target.model, deployment.end_ids),
            None if draft is None else Checkpoint(draft.model),
            None if judge is None else judge.path,
        )

    def __getitem__(self, model: Model) -> Checkpoint:
        """The checkpoint of a model that the deployment has."""
        found = self.target if model == "target" else self.draft
        assert found is not None
        return found

    @cached_property
    def judge(self) -> Judge | None:
        """The judge, read on first use and not yet compared with the target."""
        return None if self.judge_file is None else Judge.load(self.judge_file)

    def checked_judge(self) -> Judge | None:
        """The judge; UserError unless it was trained on the target."""
        if self.judge is not None:
            self.judge.check_target(self.target)
        return self.judge

    def vocabulary(self, model: Model) -> str:
        """Hash of the tokenizer that `model` uses: a draft without one uses its target's."""
        own = self[model]
        return (own if own.has_tokenizer else self.target).tokenizer_hash

    def check_vocabulary(self) -> None:
        """Raise UserError unless every token id means the same to the draft and the target."""
        draft, target = self.draft, self.target
        if draft is None:
            return
        sizes = draft.config.vocab_size, target.config.vocab_size
        if sizes[0] != sizes[1]:
            padded = draft.has_tokenizer and target.has_tokenizer and draft.same_tokenizer(target)
            reason = (
                "their tokenizers agree, but embeddings padded to different sizes are not run"
                if padded
                else "draft and target must share one tokenizer"
            )
            raise UserError(
                f"draft: {draft.folder} has a vocabulary of {sizes[0]} tokens, the target's is "
                f"{sizes[1]}; {reason}"
            )
        if draft.has_tokenizer and not draft.same_tokenizer(target):
            raise UserError(
                f"draft: {draft.folder} has another tokenizer than the target {target.folder}; "
                "draft and target must share one"
            )
