"""Open MPI's own launcher, which NVIDIA's containers have: the flags that we give it, for real.

It is Debian's, unpacked by `make openmpi` beside the environment. All other tests of ranks run on
MPICH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from judge_decoding.config import load_deployment
from judge_decoding.ranks import mpiexec
from judge_decoding.trtllm.build.steps import MPIRUN

ROOT = Path(__file__).parents[2]
FOLDER = Path(sys.prefix) / "share" / "openmpi" / "usr"
CORES = len(os.sched_getaffinity(0))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "bin" / "orterun").is_file(), reason="run `make openmpi`"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Open MPI is first on PATH, as `mpirun` and `mpiexec`, and finds its parts where they are."""
    bin = tmp_path_factory.mktemp("open-mpi")
    for name in ("mpirun", "mpiexec"):
        (bin / name).symlink_to(FOLDER / "bin" / "orterun")
    (library,) = (FOLDER / "lib").glob("*-linux-gnu")
    return os.environ | {
        "PATH": f"{bin}:{FOLDER / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{library}:{library / 'openmpi' / 'lib'}",
        "OPAL_PREFIX": str(FOLDER),
        "OPAL_LIBDIR": str(library),
        "OPAL_PKGLIBDIR": str(library / "openmpi" / "lib" / "openmpi3"),
        "OPAL_PKGDATADIR": str(FOLDER / "share" / "openmpi"),
        "PMIX_INSTALL_PREFIX": str(library / "pmix2"),
        "OMPI_MCA_mca_base_component_show_load_errors": "0",
        "MPI4PY_LIBMPI": str(library / "libmpi.so.40"),
    }


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cores(command: list[str], environment: dict[str, str]) -> list[int]:
    """Number of cores that each process of the command, which prints it, may use."""
    # One write each: `print` makes two of it, which mpirun may mix with another process's.
    code = "import os; os.write(1, b'%d\\n' % len(os.sched_getaffinity(0)))"
    return [int(line) for line in run([*command, sys.executable, "-c", code], environment).split()]


@pytest.mark.skipif(CORES < 2, reason="one core: nothing to bind to")
def test_only_our_flags_leave_every_core_to_every_process(environment: dict[str, str]) -> None:
    """Regression (line-by-line review, 2): Triton, its models and the runtime shared one core."""
    assert cores(["mpirun", "--allow-run-as-root", "-n", "2"], environment) == [1, 1]
    assert cores([*MPIRUN, "-n", "2"], environment) == [CORES, CORES]


def test_more_processes_than_cores_start(environment: dict[str, str]) -> None:
    assert cores([*MPIRUN, "-n", str(CORES + 1)], environment) == [CORES] * (CORES + 1)


def test_a_models_process_starts_mpi_and_spawns_ranks_that_have_the_plugin(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `serve` with trtllm.mode orchestrator: the line's own shell starts a program that
    is not an MPI program (Triton), whose child (a Python model) starts MPI and spawns."""
    config = ROOT / "configs" / "llama-8b-70b-h100x2.yaml"
    here = [sys.executable, "-m", "tests.rank_scripts.open_mpi_spawn"]
    server = [sys.executable, "-c", f"import subprocess; subprocess.run({here!r}, check=True)"]
    variables = environment | {
        "JUDGE_ACCEPT_THRESHOLD": "1",
        "LD_PRELOAD": "libanl.so.1",  # glibc's, which nothing uses: in the plugin's place
        "JUDGE_DECODING_RUN_DIR": str(tmp_path),
        "JUDGE_DECODING_CONFIG": str(config),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = mpiexec.command(load_deployment(config), config, server, environment["PATH"])
    # Regression: version 4's mpiexec was taken for MPICH's, and got no flag.
    assert "--bind-to" in line
    answer: dict[str, Any] = json.loads(run(line, variables).splitlines()[-1])
    alone = {
        "size": 1,
        "threads": True,
        "threshold": "1",
        "preloaded": True,
        "cores": CORES,
    }
    assert answer == {"own": alone, "workers": [alone | {"size": 2}] * 2}
