"""Building blocks of the sections: paths, dtypes, a base model that refuses unknown keys, and its
errors as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from judge_client.echo import cut, shown
from judge_decoding.config.paths import in_cache
from judge_decoding.cpu import fast_dtype

MOST_PROBLEMS = 5
"""Problems of one file or request that a message describes."""


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value:
        return value
    if (cached := in_cache(value)) is not None:
        return cached
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
"""`auto` means bfloat16, or float32 on a CPU that is faster with it (`cpu.fast_dtype`)."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def describe(error: ValidationError, root: str = "deployment") -> str:
    """A pydantic error on one line: `where: what (got value)`; `root` names the whole.

    The first MOST_PROBLEMS are described, the others counted.
    """
    parts = []
    for item in error.errors(include_url=False)[:MOST_PROBLEMS]:
        where = cut(".".join(str(key) for key in item["loc"])) or root
        got = item["input"]
        seen = isinstance(got, (str, int, float, bool, type(None)))
        what = cut(item["msg"].removeprefix("Value error, "), 1000)
        if item["type"] == "extra_forbidden":
            what = "unknown key"
        parts.append(f"{where}: {what}{f' (got {shown(got)})' if seen else ''}")
    if (more := error.error_count() - MOST_PROBLEMS) > 0:
        parts.append(f"and {more} more")
    return "; ".join(parts)
