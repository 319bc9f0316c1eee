"""Where the scripts' files are: cache:NAME is NAME in the project's cache folder."""

from __future__ import annotations

from pathlib import Path

from judge_decoding.config import cache_folder


def resolve(path: str) -> Path:
    if path.startswith("cache:"):
        return cache_folder() / path.removeprefix("cache:")
    return Path(path).expanduser()
