"""Where files are: those that come with the project, and those of its cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from judge_decoding.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """A file or folder that comes with the project, such as `configs/demo.yaml` or `triton_repo`.

    A source checkout has it at its top. A wheel carries a copy inside the package, in `shipped`.
    UserError where neither is there.
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
    """The folder where prepared models are kept between runs."""
    path = os.environ.get("JUDGE_DECODING_CACHE") or "~/.cache/judge-decoding"
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"cache: {path} has no home folder; set JUDGE_DECODING_CACHE to a full path"
        ) from None


def resolve(path: str) -> Path:
    """The path of a file as commands take it: `cache:NAME` is NAME in the cache folder."""
    if path.startswith("cache:"):
        return cache_folder() / path.removeprefix("cache:")
    return Path(path).expanduser()
