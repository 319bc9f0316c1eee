"""A whole deployment, and the checks that concern several of its sections."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.checkpoint.gguf_file import SUFFIX
from judge_decoding.config.fields import Dtype, Strict, describe
from judge_decoding.config.sections import (
    AcceptanceConfig,
    AuditConfig,
    JudgeConfig,
    Limits,
    ModelConfig,
    RanksConfig,
    ServerConfig,
)
from judge_decoding.config.trtllm import TRTLLM_RULES, TrtLlmConfig
from judge_decoding.decoding.contracts import Acceptance, scheduled
from judge_decoding.errors import UserError
from judge_decoding.text import ChatTemplate


class Deployment(Strict):
    """A whole deployment.

    engine              `torch` runs on this machine's CPU; `trtllm` needs a trtllm section
    chat_template       `own`: prompts are put in the chat template of the target's folder; `none`:
                        the target has none, and a prompt is raw text everywhere
    end_ids             end tokens of the target that its own files do not name
    max_draft_len       tokens drafted per round
    draft_len_schedule  {active sequences up to: tokens drafted per round}, if the number depends
                        on the load (`decoding.contracts.scheduled`)
    ranks               None: one process runs both models
    trtllm              read by engine `trtllm` only
    """

    name: str = Field(min_length=1)
    engine: Literal["torch", "trtllm"] = "torch"
    dtype: Dtype = "bfloat16"
    target: ModelConfig
    draft: ModelConfig | None = None
    chat_template: ChatTemplate = "own"
    end_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list, max_length=16)
    judge: JudgeConfig | None = None
    acceptance: AcceptanceConfig = AcceptanceConfig()
    max_draft_len: int = Field(default=8, ge=0, le=128)
    draft_len_schedule: dict[int, int] = Field(default_factory=dict)
    limits: Limits = Limits()
    ranks: RanksConfig | None = None
    server: ServerConfig = ServerConfig()
    audit: AuditConfig | None = None
    trtllm: TrtLlmConfig | None = None

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
            self._check_trtllm()
        return self

    def _check_fly(self) -> None:
        """Raise ValueError if the rule could accept nothing that `strict` does not."""
        window = self.acceptance.fly_window
        if window >= self.max_draft_len:
            raise ValueError(
                f"rule fly waits for acceptance.fly_window = {window} tokens after the one it "
                f"accepts, and a draft has max_draft_len = {self.max_draft_len} in all; "
                "give a smaller window"
            )

    def _check_trtllm(self) -> None:
        """Raise ValueError if TensorRT-LLM cannot run the deployment."""
        build, ranks = self.trtllm, self.ranks
        if build is None:
            raise ValueError("engine trtllm needs a trtllm section")
        if ranks is None:
            raise ValueError("engine trtllm needs ranks: tp and devices of draft and target")
        if self.draft is None:
            raise ValueError("engine trtllm needs a draft")
        if self.end_ids:
            raise ValueError(
                "engine trtllm compiles in the end tokens of the target's files; name end_ids in "
                "its generation_config.json instead"
            )
        if ranks.colocate_draft:
            raise ValueError(
                "engine trtllm has no ranks.colocate_draft: an executor holds one model; give both "
                "models the same ranks.*.devices and say trtllm.shared_gpus: true"
            )
        for name, model in (("target", self.target), ("draft", self.draft)):
            if model.model.suffix == SUFFIX:
                raise ValueError(
                    f"engine trtllm needs Hugging Face folders, and {model.model} is a GGUF file"
                )
            if model.weights is not None:
                raise ValueError(
                    f"{name}.weights {model.weights} is for engine torch; engine trtllm takes "
                    f"trtllm.{name}.quantization"
                )
        if self.dtype != "bfloat16":
            raise ValueError(f"engine trtllm runs dtype bfloat16, not {self.dtype}")
        if self.max_draft_len < 1:
            raise ValueError("engine trtllm needs max_draft_len of at least 1")
        if self.acceptance.rule not in TRTLLM_RULES:
            raise ValueError(
                f"engine trtllm has no acceptance.rule {self.acceptance.rule}; "
                f"it has {', '.join(TRTLLM_RULES)}"
            )
        build.check_num_tokens(self.limits, self.max_draft_len)
        build.check_devices(ranks)

    def draft_len(self, active: int) -> int:
        """Tokens drafted per round while `active` sequences are active."""
        return scheduled(self.draft_len_schedule, active, self.max_draft_len)

    def default_acceptance(self, **changes: Any) -> Acceptance:
        """The deployment's acceptance parameters with a request's changes; None changes nothing.

        UserError for a rule that cannot work in this deployment.
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
        values = self.model_dump() | {k: v for k, v in changes.items() if v is not None}
        return self.read(values, Path(), "the command line")

    @classmethod
    def read(cls, raw: Mapping[str, Any], folder: Path, source: str) -> Deployment:
        """The deployment that `raw` describes; UserError with one line that names `source`.

        folder  the folder that relative paths start from
        """
        try:
            deployment = cls.model_validate(raw, context={"folder": folder})
        except ValidationError as error:
            raise UserError(f"config: {source}: {describe(error)}") from None
        return deployment._fitted_to_models()

    def _fitted_to_models(self) -> Deployment:
        """Lower the default of `limits.max_context` to the context of both models.

        Only `config.json` is read. A folder without a readable one changes nothing here: loading
        the model reports what is wrong with it, and planning needs no folder.
        """
        if "max_context" in self.limits.model_fields_set:
            return self
        context = self.limits.max_context
        for model in (self.target, self.draft):
            with suppress(UserError):
                if model is not None:
                    context = min(context, Checkpoint(model.model).config.max_position_embeddings)
        limits = self.limits.model_copy(update={"max_context": context})
        return self.model_copy(update={"limits": limits})
