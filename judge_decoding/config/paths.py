"""The paths of files that come with the project, and of those in its cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from judge_decoding.checkpoint.gguf_file import DEMO_FILE
from judge_decoding.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_CACHE = "cache:"
DEMO_TARGET = f"{_CACHE}{DEMO_FILE}"
"""The file that `build/demo_target.py` copies."""


def shipped(name: str) -> Path:
    """A file or folder that comes with the project, such as `configs/demo.yaml` or `triton_repo`.

    A source checkout has it at its top. A wheel carries a copy inside the package, in `shipped`.
    UserError if neither exists.
    """
    checkout = _PACKAGE.parent
    places = [_PACKAGE / "shipped" / name]
    if (checkout / "pyproject.toml").is_file():
        places.insert(0, checkout / name)
    for place in places:
        if place.exists():
            return place
    raise UserError(f"no file {places[0]}, and nothing of the name {name} is shipped")


def cache_folder() -> Path:
    """Where prepared models are kept between runs: $JUDGE_DECODING_CACHE if it is set."""
    path = os.environ.get("JUDGE_DECODING_CACHE") or "~/.cache/judge-decoding"
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"cache: {path} has no home folder; set JUDGE_DECODING_CACHE to a full path"
        ) from None


def in_cache(path: str) -> Path | None:
    """The path that `cache:NAME` stands for; None for any other path."""
    return cache_folder() / path.removeprefix(_CACHE) if path.startswith(_CACHE) else None


def resolve(path: str) -> Path:
    """A path from the command line: `cache:NAME`, or one relative to the working folder."""
    return in_cache(path) or Path(path).expanduser()
