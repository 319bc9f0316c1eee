"""The client as a distribution: what it needs, what it imports, where it runs."""

from __future__ import annotations

import os
import pkgutil
import runpy
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import clients.load
import judge_client
import judge_decoding

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "clients" / "judge_client"
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(judge_client.__path__, "judge_client.")
)


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process in another folder that finds the client and nothing else from here."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PACKAGE / "src")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def barred(*names: str) -> str:
    """Code that makes imports of these packages fail."""
    return f"import sys\nfor name in {names!r}: sys.modules[name] = None\n"


def test_the_client_needs_numpy_and_tritonclient_alone(tmp_path: Path) -> None:
    """Everything except the commands imports without the library, its packages, rich and typer."""
    assert "judge_client.aio" in MODULES and "judge_client.commands.generate" in MODULES
    assert "soak" in {module.name for module in pkgutil.iter_modules(clients.load.__path__)}
    names = [name for name in MODULES if "commands" not in name]
    code = barred("judge_decoding", "clients", "torch", "pydantic", "yaml", "rich", "typer")
    code += f"""
import importlib
for name in {names!r}:
    importlib.import_module(name)
from judge_client import GenerateRequest, JudgeClient
from judge_client.aio import AsyncJudgeClient
JudgeClient("127.0.0.1:1").close()
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_commands_need_rich_and_typer_besides(tmp_path: Path) -> None:
    code = barred(
        "judge_decoding", "clients", "torch", "transformers", "pydantic", "yaml", "mpi4py"
    )
    code += f"import importlib\nfor name in {MODULES!r}: importlib.import_module(name)"
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_it_loads_no_grpc_so_that_the_library_may(tmp_path: Path) -> None:
    """`judge-decoding generate` works where tritonclient is not installed."""
    code = barred("tritonclient", "grpc")
    code += "import judge_client.aio, judge_client.terminal, judge_client.metrics"
    assert python(code, tmp_path).returncode == 0
    code = barred("tritonclient", "grpc") + (
        "import judge_decoding.commands.main, judge_decoding.commands.console, "
        "judge_decoding.serving.launcher, judge_decoding.evaluation.audit_server"
    )
    done = python(code, tmp_path, PYTHONPATH=os.pathsep.join([str(PACKAGE / "src"), str(ROOT)]))
    assert done.returncode == 0, done.stderr


def test_what_pip_would_install(tmp_path: Path) -> None:
    """The wheel's metadata, made by its own backend; nothing is downloaded."""
    copy = shutil.copytree(PACKAGE, tmp_path / "judge_client")
    code = (
        "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('.'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
    )
    folder = copy / done.stdout.splitlines()[-1]
    metadata = message_from_string((folder / "METADATA").read_text())
    assert (metadata["Name"], metadata["Version"]) == ("judge-client", judge_decoding.__version__)
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert sorted(needed) == ["numpy>=1.26", "tritonclient[grpc]>=2.51"]
    assert "judge-client = judge_client.__main__:main" in (folder / "entry_points.txt").read_text()
    assert (folder / "top_level.txt").read_text() == "judge_client\n"


def test_the_whole_distribution_has_the_clients_command_too() -> None:
    """Its packages: tests/test_wheel.py."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    entry = EntryPoint("judge-client", scripts["judge-client"], "console_scripts")
    assert callable(entry.load())
    assert judge_client.__version__ == judge_decoding.__version__


@pytest.fixture
def sigterm() -> Iterator[None]:
    """A command sets its own handler, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("command", ["generate", "chat", "probe"])
def test_a_command_runs_in_any_folder(tmp_path: Path, command: str) -> None:
    """Regression: `python -m clients.generate` did not run outside the checkout."""
    prompt = ["--prompt", "x"] if command == "generate" else []
    done = subprocess.run(
        [sys.executable, "-m", "judge_client", command, "-u", "127.0.0.1:1", *prompt],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PACKAGE / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout if command == "probe" else done.stderr
    assert "127.0.0.1:1: no server answers there" in said and said.count("\n") == 1
    assert done.returncode == (1 if command == "probe" else 2)


def test_without_the_extra_a_command_names_it(tmp_path: Path) -> None:
    code = barred("typer") + "from judge_client.__main__ import main; main()"
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "judge-client: the commands need typer; pip install 'judge-client[cli]'\n"
    )


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("generate", ["--prompt", "x", "-u", "localhost"]),
        ("chat", ["-u", "localhost"]),
        ("probe", ["--nonsense"]),
        ("demo", ["--config", "/nowhere.yaml"]),
        ("load.bench_server", ["--config", "/nowhere.yaml"]),
        ("load.soak", ["--config", "/nowhere.yaml", "--rules", ","]),
        ("load.overload", ["--config", "/nowhere.yaml", "--minutes", "0"]),
        ("load.replicas", ["--config", "/nowhere.yaml", "--streams", "1"]),
        ("load.perf", ["tune", "--config", "/nowhere.yaml"]),
    ],
)
def test_a_users_mistake_is_exit_code_2(
    module: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    sigterm: None,
) -> None:
    """The complaint is the last line, whatever was printed before."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"clients.{module}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    complaint = capfd.readouterr().err.splitlines()[-1]
    assert complaint.startswith(f"{module.removeprefix('load.')}: ")
