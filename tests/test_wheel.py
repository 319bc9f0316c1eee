"""The wheel holds what `serve`, `generate` and the client need, and works outside a checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents; its packages come before those of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = sorted(path.name for path in (ROOT / "build").iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # setuptools would have left build/lib there.
    assert sorted(path.name for path in (ROOT / "build").iterdir()) == sources
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def command(installed: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    run = "import sys; from judge_decoding.commands.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", run, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_shipped_deployment_answers(installed: Path, tmp_path: Path) -> None:
    arguments = ("--config", "controlled", "--prompt", "Tom has 3 apples.", "--max-tokens", "4")
    done = command(installed, tmp_path, "generate", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout.splitlines()[-1])["results"]
    assert len(result["token_ids"]) == 4


def test_serve_takes_the_repository_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytriton", reason="there is no Triton server here")
    done = command(installed, tmp_path, "serve", "--config", "controlled", "--dry-run")
    assert done.returncode == 0, done.stderr
    repository = installed / "judge_decoding" / "shipped" / "triton_repo"
    assert f"--model-repository={repository}" in done.stdout
    assert (repository / "judge_decoding" / "1" / "model.py").is_file()
    assert (repository / "ensemble" / "config.pbtxt").is_file()


def test_the_packages_are_the_library_and_the_client(installed: Path) -> None:
    top = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert top == {"judge_client", "judge_decoding"}
    for file in ("judge_client/commands/chat.py", "judge_client/wire.py", "judge_client/py.typed"):
        assert (installed / file).is_file()
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    text = entries.read_text()
    assert "judge-client = judge_client.__main__:main" in text
    assert "judge-decoding = judge_decoding.commands.main:main" in text


def test_what_is_shipped_is_what_the_checkout_has(installed: Path) -> None:
    for name in ("configs", "models", "triton_repo"):
        listed = ["git", "ls-files", name]
        files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for file in files.split():
            copy = installed / "judge_decoding" / "shipped" / file
            assert copy.read_bytes() == (ROOT / file).read_bytes(), file


def test_a_name_that_is_not_shipped_is_refused(installed: Path, tmp_path: Path) -> None:
    done = command(installed, tmp_path, "plan", "--config", "nothing")
    assert done.returncode == 2
    assert done.stderr == "judge-decoding: config: no file nothing\n"
