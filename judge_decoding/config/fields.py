"""What the sections' fields are made of: paths, dtypes, and a model that knows no other key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from judge_decoding.cpu import fast_dtype
from judge_decoding.errors import UserError


def cache_folder() -> Path:
    """Where prepared models are kept between runs."""
    path = os.environ.get("JUDGE_DECODING_CACHE") or "~/.cache/judge-decoding"
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"cache: {path} has no home folder; set JUDGE_DECODING_CACHE to a full path"
        ) from None


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value:
        return value
    if value.startswith("cache:"):
        return cache_folder() / value.removeprefix("cache:")
    folder = (info.context or {}).get("folder", Path())
    try:
        return (folder / Path(value).expanduser()).resolve()
    except RuntimeError:
        raise ValueError(f"no home folder for {value.split('/')[0]}; give a full path") from None


ModelPath = Annotated[Path, BeforeValidator(_resolve)]


def _dtype(value: Any, info: ValidationInfo) -> Any:
    if value != "auto":
        return value
    if info.data.get("engine") == "trtllm":
        return "bfloat16"
    return fast_dtype()


Dtype = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_dtype)]
"""`auto` is bfloat16, but float32 on a CPU that is faster with it (`cpu.fast_dtype`)."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
