"""The whole of a deployment, and what holds between its sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from judge_decoding.config.fields import Dtype, Strict
from judge_decoding.config.sections import (
    AcceptanceConfig,
    AuditConfig,
    JudgeConfig,
    Limits,
    ModelConfig,
    RanksConfig,
    ServerConfig,
)
from judge_decoding.config.trtllm import TrtLlmConfig, check_trtllm
from judge_decoding.engine.base import Acceptance
from judge_decoding.errors import UserError


def scheduled(schedule: Mapping[int, int], active: int, longest: int) -> int:
    """At most `longest` tokens, by a schedule {active sequences up to: draft length}.

    The smallest key that `active` does not exceed counts, above all of them it is 0; an empty
    schedule leaves `longest`.
    """
    if not schedule:
        return longest
    limits = [limit for limit in schedule if active <= limit]
    return min(longest, schedule[min(limits)]) if limits else 0


class Deployment(Strict):
    """The whole of a deployment."""

    name: str = Field(min_length=1)
    engine: Literal["torch", "trtllm"] = "torch"
    dtype: Dtype = "bfloat16"
    target: ModelConfig
    draft: ModelConfig | None = None
    judge: JudgeConfig | None = None
    acceptance: AcceptanceConfig = AcceptanceConfig()
    max_draft_len: int = Field(default=8, ge=0, le=128)
    draft_len_schedule: dict[int, int] = Field(default_factory=dict)
    limits: Limits = Limits()
    ranks: RanksConfig | None = None
    """None: one process runs both models."""
    server: ServerConfig = ServerConfig()
    audit: AuditConfig | None = None
    trtllm: TrtLlmConfig | None = None
    """Read by engine `trtllm` alone, which needs it."""

    @model_validator(mode="after")
    def _consistent(self) -> Deployment:
        for active, length in self.draft_len_schedule.items():
            if active < 1 or not 0 <= length <= self.max_draft_len:
                raise ValueError(
                    f"draft_len_schedule {active}: {length} must map at least 1 active sequence "
                    f"to a draft length in 0..{self.max_draft_len} (max_draft_len)"
                )
        if self.acceptance.rule != "none" and self.draft is None:
            raise ValueError(f"acceptance.rule {self.acceptance.rule} needs a draft")
        if self.acceptance.rule == "judge" and self.judge is None:
            raise ValueError("acceptance.rule judge needs a judge")
        if self.acceptance.rule == "fly":
            self._check_fly()
        if self.ranks is not None and self.ranks.colocate_draft and self.draft is None:
            raise ValueError("ranks.colocate_draft needs a draft")
        if self.engine == "trtllm":
            check_trtllm(self)
        return self

    def _check_fly(self) -> None:
        """ValueError where the rule could accept nothing that `strict` does not."""
        window = self.acceptance.fly_window
        if window >= self.max_draft_len:
            raise ValueError(
                f"rule fly waits for acceptance.fly_window = {window} tokens after the one it "
                f"accepts, and a draft has max_draft_len = {self.max_draft_len} in all; "
                "give a smaller window"
            )

    def draft_len(self, active: int) -> int:
        """Tokens drafted a round where so many sequences are active."""
        return scheduled(self.draft_len_schedule, active, self.max_draft_len)

    def default_acceptance(self, **changes: Any) -> Acceptance:
        """The deployment's acceptance parameters, with a request's changes that are not None.

        UserError for a rule that cannot act in this deployment.
        """
        values = self.acceptance.model_dump()
        if self.judge is not None:
            values["threshold"] = self.judge.threshold
        values.update({key: value for key, value in changes.items() if value is not None})
        acceptance = Acceptance(**values)
        if acceptance.rule == "fly":
            try:
                self._check_fly()
            except ValueError as error:
                raise UserError(str(error)) from None
        return acceptance

    def override(self, **changes: Any) -> Deployment:
        """A copy with top-level fields replaced, validated again; None leaves a field as it is."""
        from judge_decoding.config.loading import validate

        values = self.model_dump() | {k: v for k, v in changes.items() if v is not None}
        return validate(values, Path(), "the command line")
