"""What the image's recipe and its entry do that needs no image: pip's resolver, the user's home.

pip is real. The container's packages and the index are made up, of metadata alone: what
TensorRT-LLM 1.2.1 requires (requirements.txt), and what tritonclient 2.68.0 says of itself. Which
grpcio and protobuf the container has is not known, so that several are tried.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pip
import pytest
import yaml

ROOT = Path(__file__).parents[2]

CONTAINER = {
    "tensorrt_llm": "1.2.1",
    "torch": "2.10.0a0+b4e4ee81d3.nv25.12",
    "numpy": "1.26.4",
    "safetensors": "0.7.0",
    "tokenizers": "0.22.1",
    "pydantic": "2.12.5",
    "PyYAML": "6.0.3",
    "Jinja2": "3.1.6",
    "click": "8.3.1",
    "mpi4py": "3.1.5",
}
INDEX: dict[str, tuple[str, list[str]]] = {
    "rich": ("14.2.0", []),
    "msgspec": ("0.20.0", []),
    "typer": ("0.20.0", ["click>=8.0.0", "rich>=10.11.0"]),
    "python_rapidjson": ("1.22", []),
    "tritonclient": (
        "2.68.0",
        [
            "numpy>=1.19.1",
            "python-rapidjson>=0.9.1",
            "urllib3>=2.0.7",
            "grpcio<1.68,>=1.63.0; extra == 'grpc'",
            "protobuf<7.0,>=6.30.0; extra == 'grpc'",
        ],
    ),
    "grpcio": ("1.67.1", []),
    "protobuf": ("6.33.5", []),
    "urllib3": ("2.6.0", []),
}
# A newer one than tritonclient allows, and none.
RUNTIMES: list[dict[str, str]] = [{"grpcio": "1.76.0", "protobuf": "6.33.5"}, {}]


def metadata(name: str, version: str, requires: list[str]) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    extras = ["Provides-Extra: grpc"] if any("extra" in line for line in requires) else []
    return "\n".join([*lines, *extras, *(f"Requires-Dist: {line}" for line in requires), ""])


class Container:
    """A `pip` that sees only the container's packages and the index, and installs nothing."""

    def __init__(self, folder: Path, runtime: dict[str, str]) -> None:
        self.folder = folder
        installed, self.wheels, self.bin = (folder / n for n in ("installed", "wheels", "bin"))
        for made in (installed, self.wheels, self.bin):
            made.mkdir()
        for name, version in (CONTAINER | runtime).items():
            info = installed / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(metadata(name, version, []))
            (info / "INSTALLER").write_text("pip\n")
        for name, (version, requires) in INDEX.items():
            with zipfile.ZipFile(self.wheels / f"{name}-{version}-py3-none-any.whl", "w") as file:
                info_name = f"{name}-{version}.dist-info"
                file.writestr(f"{info_name}/METADATA", metadata(name, version, requires))
                file.writestr(f"{info_name}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
                file.writestr(f"{info_name}/RECORD", "")
        # -S: not this environment's packages, only pip itself.
        (installed / "pip").symlink_to(Path(pip.__file__).parent)
        (self.bin / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -S -m pip "$@"\n')
        (self.bin / "pip").chmod(0o755)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHONPATH": str(installed),
            "PIP_DRY_RUN": "1",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_BUILD_ISOLATION": "0",  # which means: without isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """The line in the project's folder, with its pins in a folder of the test's own."""
        return subprocess.run(
            ["bash", "-c", line.replace("/tmp/pins", str(self.folder / "pins"))],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment,
            timeout=120,
            check=False,
        )


def recipe() -> str:
    """The Dockerfile's line that installs Python packages, as the shell gets it."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^RUN (pip list .*)$", text, re.M)
    return line


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.get("grpcio", "none"))
def test_the_recipe_resolves_whatever_the_container_has(
    tmp_path: Path, runtime: dict[str, str]
) -> None:
    done = Container(tmp_path, runtime).run(recipe())
    assert done.returncode == 0, done.stdout + done.stderr
    ours, client = re.findall(r"^Would install (.*)$", done.stdout, re.M)
    names = {word.rpartition("-")[0].replace("_", "-") for word in ours.split()}
    new = {"judge-decoding", "msgspec", "python-rapidjson", "rich", "typer"}
    assert names == new | ({"grpcio", "protobuf"} - set(runtime))  # nothing that is pinned
    assert client == "tritonclient-2.68.0"


def test_the_clients_own_bounds_would_not(tmp_path: Path) -> None:
    """Regression (line-by-line review, 12): `tritonclient[grpc]` beside a container's grpcio."""
    line = recipe().replace("grpcio protobuf python-rapidjson", '"tritonclient[grpc]"')
    done = Container(tmp_path, RUNTIMES[0]).run(line)
    assert done.returncode != 0
    assert "ResolutionImpossible" in done.stderr and "grpcio==1.76.0" in done.stdout


# --- the entry ---


def as_user(command: list[str], home: str) -> subprocess.CompletedProcess[str]:
    """Runs as the image's user 1000, which has no home here either."""
    user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    return subprocess.run(
        [*user, *command],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": home},
        timeout=120,
        check=False,
    )


@pytest.fixture
def home() -> Iterator[str]:
    """The pod's home: a folder that user 1000 may write to (here not below pytest's own, which are
    root's alone). The manifest mounts an empty one there."""
    (pod,) = (
        one["spec"]["template"]["spec"]
        for one in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
        if one["kind"] == "Deployment"
    )
    (container,) = pod["containers"]
    (wanted,) = (one["value"] for one in container["env"] if one["name"] == "HOME")
    (mount,) = (one for one in container["volumeMounts"] if one["mountPath"] == wanted)
    assert not mount.get("readOnly")
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    assert "emptyDir" in volume
    with TemporaryDirectory() as folder:
        os.chown(folder, 1000, 1000)
        yield folder


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become user 1000")
NO_HOME = "/home/triton-server"


@needs_root
def test_the_entry_runs_as_a_user_without_a_home() -> None:
    entry = "from judge_decoding.commands.main import main; main()"
    done = as_user([sys.executable, "-c", entry, "--help"], NO_HOME)
    if "PermissionError" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("user 1000 cannot read this checkout or its Python")
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


@needs_root
def test_the_pods_home_can_hold_caches(home: str) -> None:
    """Regression (line-by-line review, 3): importing tensorrt_llm makes folders below the home."""
    cache = 'mkdir -p "$HOME/.cache/flashinfer"'
    assert "Permission denied" in as_user(["sh", "-c", cache], NO_HOME).stderr
    assert as_user(["sh", "-c", cache], home).returncode == 0
