"""The values that the judge's layer is built with.

trtllm-build passes no arguments to a model class, so `engines` writes the values to a JSON file, an
environment variable names it, and `judge_llama` reads it.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_decoding.errors import UserError, shorten
from judge_decoding.files import read_object

VARIABLE = "JUDGE_DECODING_BUILD"


class JudgeBuild(BaseModel):
    """The plugin's fields (plugins/judge_accept/README.md) that are not the judge's own.

    boost          added to the row's largest logit (at least 0) for a judged token
    vocab_size     tokens of the vocabulary; the logits are padded to a multiple of tp
    max_draft_len  columns of the engine's output `judge_scores`
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: Path
    plugin: Path
    threshold: float = Field(ge=0, le=1)
    boost: float = Field(gt=0)
    vocab_size: int = Field(gt=0)
    end_ids: tuple[int, ...] = Field(max_length=16)
    protect_end_ids: bool
    max_draft_len: int = Field(gt=0)


def read_build() -> JudgeBuild:
    """Read the file that $JUDGE_DECODING_BUILD names."""
    name = os.environ.get(VARIABLE)
    if not name:
        raise UserError(f"judge_llama: {VARIABLE} is not set; build with build/build_engines.py")
    try:
        return JudgeBuild.model_validate(read_object(Path(name), "judge_llama"))
    except (UserError, ValidationError) as error:
        raise UserError(f"judge_llama: {name} is no judge build ({shorten(error)})") from None
