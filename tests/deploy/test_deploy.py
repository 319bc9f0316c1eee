"""The deployment files agree with the library, and the scripts start what they say.

`scontrol`, `srun` and `python3` are RECORDING FAKES here: no node, no container. A real rank 0 is
in tests/serving/test_serve_rank.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from judge_decoding.commands import main as cli
from judge_decoding.commands import registry
from judge_decoding.config import TrtLlmConfig, load_deployment
from judge_decoding.config.layout import Layout
from judge_decoding.ranks import mpiexec
from judge_decoding.trtllm.stack import CONTAINER

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    fakes = {
        "scontrol": 'echo "node-a"; echo "node-b"',
        "srun": f'printf "%s\\n" "$@" > {tmp_path}/srun; cp "$SLURM_HOSTFILE" {tmp_path}/hosts\n'
        f'echo "$CONFIG" > {tmp_path}/config',
        "python3": 'echo "python3 $@"',
        "mpiexec": 'echo "mpiexec (Open MPI) 5.0.9"',
    }
    for name, body in fakes.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def run(script: str, bin: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{bin}:/usr/bin:/bin", **variables}
    return subprocess.run(
        ["bash", str(DEPLOY / script)],
        env=environment,
        cwd=bin.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_image_is_the_pinned_container_with_the_plugin_where_the_config_looks() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert f"ARG BASE={CONTAINER}\n" in text
    library = Path(TrtLlmConfig.model_fields["plugin"].default)
    assert f"COPY --from=plugin /build/{library.name} {library.parent}/" in text
    assert f"patchelf --add-needed {library.name} " in text
    target = re.search(
        r"add_library\((\w+) SHARED", (ROOT / "plugins/judge_accept/CMakeLists.txt").read_text()
    )
    assert target is not None
    assert library.name == f"lib{target[1]}.so"


def test_two_nodes(bin: Path, tmp_path: Path) -> None:
    done = run(
        "two_nodes.slurm",
        bin,
        IMAGE="image",
        MODELS="/m",
        ENGINES="/e",
        SLURM_JOB_NODELIST="node-[a-b]",
        SLURM_JOB_ID="7",
    )
    assert done.returncode == 0, done.stderr
    config = Path((tmp_path / "config").read_text().strip())
    deployment = load_deployment(ROOT / config.relative_to("/opt/judge-decoding"))
    layout = Layout.of(deployment)
    hosts = (tmp_path / "hosts").read_text().split()
    tasks = re.search(r"#SBATCH --ntasks=(\d+)", (DEPLOY / "two_nodes.slurm").read_text())
    assert tasks is not None
    assert len(hosts) == int(tasks[1]) == layout.size
    # Leader and draft on the first node; the target's ranks where their GPU numbers say.
    assert deployment.ranks is not None and deployment.trtllm is not None
    assert {hosts[rank] for rank in (0, *layout.draft)} == {"node-a"}
    for rank, gpu in zip(layout.target, deployment.ranks.target.devices, strict=True):
        assert hosts[rank] == ["node-a", "node-b"][int(gpu) // deployment.trtllm.gpus_per_node]
    arguments = (tmp_path / "srun").read_text().splitlines()
    assert arguments == [
        "--mpi=pmix",
        "--distribution=arbitrary",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
        "--container-image=image",
        "--container-mounts=/m:/models,/e:/engines",
        "--no-container-mount-home",
        "bash",
        "/opt/judge-decoding/deploy/rank.sh",
    ]
    assert not list(tmp_path.glob("hosts-*"))  # its host file is gone


@pytest.mark.parametrize("missing", ["IMAGE", "MODELS", "ENGINES"])
def test_two_nodes_says_what_is_missing(bin: Path, missing: str) -> None:
    given = {"IMAGE": "i", "MODELS": "m", "ENGINES": "e"}
    del given[missing]
    done = run("two_nodes.slurm", bin, **given)
    assert done.returncode != 0
    assert f"{missing}: the " in done.stderr


@pytest.mark.parametrize("variable", ["SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_a_rank_is_what_its_number_says(bin: Path, variable: str) -> None:
    leader = run("rank.sh", bin, CONFIG="/c.yaml", **{variable: "0"})
    assert leader.stdout == "python3 -m judge_decoding.serving.rank --config /c.yaml\n"
    worker = run("rank.sh", bin, CONFIG="/c.yaml", **{variable: "3"})
    assert worker.stdout == "python3 -m judge_decoding.ranks.launch --config /c.yaml\n"


def test_serve_starts_one_rank_where_tensorrt_llm_spawns_the_others(bin: Path) -> None:
    """Where it does not spawn them, all ranks are started."""
    ranks = {}
    for name in ("llama-8b-70b-h100x2", "llama-8b-405b-bf16-h100x16"):
        config = ROOT / "configs" / f"{name}.yaml"
        line = mpiexec.command(load_deployment(config), config, ["tritonserver"], str(bin))
        ranks[name] = [line[i + 1] for i, word in enumerate(line) if word == "-n"]
    assert ranks == {
        "llama-8b-70b-h100x2": ["1"],
        "llama-8b-405b-bf16-h100x16": ["1", "8", "16"],
    }


def test_a_rank_outside_a_world(bin: Path) -> None:
    done = run("rank.sh", bin, CONFIG="/c.yaml")
    assert done.returncode != 0
    assert "not started by srun or mpirun" in done.stderr


def test_scripts_are_executable() -> None:
    assert os.access(DEPLOY / "rank.sh", os.X_OK)


def documented() -> list[list[str]]:
    """The commands of the H100 pages that are ours, as lists of words."""
    pages = ("h100.md", "h100-pytorch.md")
    text = "".join((ROOT / "docs" / page).read_text() for page in pages)
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    ours = ("judge-decoding", "build/")
    return [w for w in lines if "docker" not in w and any(x.startswith(ours) for x in w)]


@pytest.mark.parametrize("words", documented(), ids=lambda words: " ".join(words)[:60])
def test_documented_commands_and_their_options_exist(words: list[str]) -> None:
    given = {w.partition("=")[0] for w in words if w.startswith("--") and "root" not in w}
    if "judge-decoding" in words:
        group = typer.main.get_command(cli.app)
        assert isinstance(group, TyperGroup)
        command = group.commands[words[words.index("judge-decoding") + 1]]
    else:
        script = next(word for word in words if word.startswith("build/"))
        command = registry.load(Path(script).stem.replace("_", "-"))
    known = {option for parameter in command.params for option in parameter.opts}
    assert given - {"--help"} <= known


def test_the_documented_commands_are_found() -> None:
    scripts = {w for words in documented() for w in words if w.startswith("build/")}
    assert {
        "build/convert_checkpoint.py",
        "build/build_engines.py",
        "build/prepare_pytorch_target.py",
    } <= scripts
    assert {"plan", "generate", "serve"} <= {w for words in documented() for w in words}
