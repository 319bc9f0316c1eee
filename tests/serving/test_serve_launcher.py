"""What `serve` would start, and how it finds the cause of a job's end. Real runs:
test_serve_faults."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from judge_decoding.config import Deployment, ServerConfig, load_deployment, shipped
from judge_decoding.errors import UserError
from judge_decoding.ranks import mpiexec, run_folder
from judge_decoding.serving import access, launcher, triton
from judge_decoding.serving.front import Front
from judge_decoding.serving.processes import is_running
from judge_decoding.serving.ready_file import ReadyFile
from judge_decoding.serving.warmup import must_draft
from tests.triton_world import COMMAND, free_ports, wait_for

pytestmark = pytest.mark.servers

PORTS = ["--http-port", "7001", "--grpc-port", "7002", "--metrics-port", "7003"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    document = {
        "name": "two",
        "target": {"model": "target"},
        "draft": {"model": "draft"},
        "ranks": {"draft": {"tp": 1}, "target": {"tp": 2}},
    }
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def serve(config: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "serve", "--config", config, *options],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
    )


def test_a_dry_run_prints_the_whole_command_and_leaves_nothing(
    config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    done = serve(config, *PORTS, "--dry-run", TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    line = words[next(i for i, word in enumerate(words) if "=" not in word) :]
    server, draft, target = " ".join(line).split(" : ")
    assert "mpiexec -n 1 sh -c " in server
    assert "bin/tritonserver --model-repository=" in server
    assert "--grpc-address=127.0.0.1 --grpc-port=7002 " in server
    for option in ("http", "metrics"):  # the ports are the front's
        assert re.search(
            rf"--{option}-address=unix:/dev/shm/judge-decoding-\w+-{option}.sock", server
        )
    worker = f"{sys.executable} -m judge_decoding.ranks.launch --config {config}"
    assert draft.startswith("-n 1 sh -c ") and draft.endswith(worker)
    assert target.startswith("-n 2 sh -c ") and target.endswith(worker)
    assert f"JUDGE_DECODING_CONFIG={config}" in words
    assert not list(folder.iterdir())


def test_a_colocated_draft_starts_no_rank(config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["ranks"] = {"colocate_draft": True, "target": {"tp": 2}}
    config.write_text(yaml.safe_dump(values))
    done = serve(config, *PORTS, "--dry-run")
    assert done.returncode == 0, done.stderr
    server, target = done.stdout.split(" : ")
    assert "mpiexec -n 1 " in server
    assert target.startswith("-n 2 ")


def test_without_ranks_there_is_no_mpiexec(config: Path) -> None:
    document = yaml.safe_load(config.read_text())
    del document["ranks"]
    config.write_text(yaml.safe_dump(document))
    done = serve(config, "--dry-run")
    assert done.returncode == 0
    assert "mpiexec" not in done.stdout and "ranks.launch" not in done.stdout


def test_a_server_on_path_is_taken_with_its_own_backends(config: Path, tmp_path: Path) -> None:
    found = program(tmp_path / "bin", "tritonserver", "exit 0")
    path = f"{found.parent}{os.pathsep}{os.environ['PATH']}"
    done = serve(config, "--dry-run", PATH=path)
    assert f" {found} --model-repository=" in done.stdout
    assert "--backend-directory" not in done.stdout


def test_the_server_leaves_the_engines_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression (line-by-line review, 10): its pools and contexts came before the caches."""

    def options(name: str) -> list[str]:
        gpus = triton.engine_gpus(load_deployment(shipped(f"configs/{name}.yaml")))
        server = triton.Triton(Path("tritonserver"), None, {})
        line = server.command(ServerConfig(), name="x", engine_gpus=gpus)
        return [word for word in line if "pool" in word or "peer" in word]

    assert options("demo") == []
    assert options("llama-8b-70b-h100x2") == [
        "--pinned-memory-pool-byte-size=0",
        "--enable-peer-access=false",
        "--cuda-memory-pool-byte-size=0:0",
        "--cuda-memory-pool-byte-size=1:0",
    ]
    pools = [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(8)]
    assert (
        options("llama-8b-405b-bf16-h100x16")[2:] == pools
    )  # GPUs 8 to 23 by their node's numbers


def test_the_judges_variables_reach_the_ranks(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = program(tmp_path / "bin", "mpiexec", "echo 'mpiexec (Open MPI) 5.0.8'")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("JUDGE_ACCEPT_THRESHOLD", "1")
    line = mpiexec.command(load_deployment(config), config, ["tritonserver"], str(fake.parent))
    exported = {line[i + 1] for i, flag in enumerate(line) if flag == "-x"}
    assert "JUDGE_ACCEPT_THRESHOLD" in exported
    assert "LD_PRELOAD" not in exported  # mpiexec warns of what is not set


def test_open_mpi_is_told_what_hydra_knows(config: Path, tmp_path: Path) -> None:
    fake = program(tmp_path / "bin", "mpiexec", "echo 'mpiexec (Open MPI) 5.0.8'")
    line = mpiexec.command(load_deployment(config), config, ["tritonserver"], str(fake.parent))
    assert line[0] == str(fake)
    flags = line[1 : line.index("-n")]
    # The line-by-line review, 2: it binds each of two ranks to one core unless told not to.
    assert flags[flags.index("--bind-to") + 1] == "none"
    assert "--oversubscribe" in flags
    assert ("--allow-run-as-root" in flags) == (os.geteuid() == 0)
    exported = [flags[i + 1] for i, flag in enumerate(flags) if flag == "-x"]
    assert {"JUDGE_DECODING_CONFIG", "JUDGE_DECODING_RUN_DIR", "PATH"} <= set(exported)


RANK_0 = [sys.executable, "-m", "judge_decoding.serving.rank", "--config"]
FAKE = """
exec > "$OUT"
[ -e "$READY" ] && echo "ready already"
echo "$1"
ls -ld "$JUDGE_DECODING_RUN_DIR" | cut -c1-10
echo '{"message": "engine: it failed"}' > "$JUDGE_DECODING_RUN_DIR/part"
mv "$JUDGE_DECODING_RUN_DIR/part" "$JUDGE_DECODING_RUN_DIR/x.failure"
exec sleep 100
"""


def test_the_ready_file_of_a_run_that_was_killed_is_removed_first(
    config: Path, tmp_path: Path
) -> None:
    """Regression: a pod's volume outlives its containers, and the start-up probe found an old file.

    `tritonserver` is a FAKE here, which looks for the file.
    """
    document = yaml.safe_load(config.read_text())
    del document["ranks"]
    config.write_text(yaml.safe_dump(document))
    ready = tmp_path / "ready.json"
    ready.write_text("{}")
    found = program(tmp_path / "bin", "tritonserver", FAKE)
    variables = {
        "PATH": f"{found.parent}{os.pathsep}{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "READY": str(ready),
    }
    done = serve(config, *ports(), "--ready-file", str(ready), **variables)
    assert done.returncode == 1
    assert "ready already" not in (tmp_path / "out").read_text()
    assert done.stderr == "judge-decoding: engine: it failed; everything is stopped\n"
    assert not ready.exists()
    (ready / "in the way").mkdir(parents=True)
    done = serve(config, *ports(), "--ready-file", str(ready), **variables)
    assert done.returncode == 2
    assert done.stderr == (
        f"judge-decoding: serve: cannot remove the old ready file {ready} (Is a directory)\n"
    )


def ports() -> list[str]:
    names = ("--http-port", "--grpc-port", "--metrics-port")
    return [part for pair in zip(names, map(str, free_ports(3)), strict=True) for part in pair]


def test_rank_0_of_a_foreign_world_is_watched_as_any_server(config: Path, tmp_path: Path) -> None:
    """Regression: deploy/rank.sh started Triton directly, and after a failure the server stayed
    ready.

    `tritonserver` is a FAKE here, which reports a failure in the run folder.
    """
    document = yaml.safe_load(config.read_text())
    http, grpc, metrics = free_ports(3)
    document["server"] = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    config.write_text(yaml.safe_dump(document))
    found = program(tmp_path / "bin", "tritonserver", FAKE)
    done = subprocess.run(
        [*RANK_0, config],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PATH": f"{found.parent}{os.pathsep}{os.environ['PATH']}",
            "OUT": str(tmp_path / "out"),
            "READY": "",
            "TMPDIR": str(tmp_path),
        },
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "judge-decoding: engine: it failed; everything is stopped\n"
    first, mode = (tmp_path / "out").read_text().splitlines()
    assert first == f"--model-repository={shipped('triton_repo')}"  # no nested mpiexec
    assert mode == "drwx------"
    assert not list(tmp_path.glob("judge-decoding-*"))
    done = subprocess.run([*RANK_0, "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "judge-decoding: config: no file nowhere\n")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"acceptance": {"rule": "none"}}, False),
        ({"max_draft_len": 0}, False),
        ({"draft_len_schedule": {1: 0, 8: 4}}, False),
        ({"draft_len_schedule": {8: 4, 1: 0}}, False),
        ({"draft_len_schedule": {4: 2, 8: 0}}, True),
    ],
)
def test_the_warm_up_asks_for_drafts_where_one_request_gets_some(
    changes: dict[str, object], expected: bool
) -> None:
    """Regression: with a schedule that drafts nothing for one sequence, serving never got ready."""
    models = {"name": "x", "target": {"model": "t"}, "draft": {"model": "d"}}
    assert must_draft(Deployment.model_validate(models | changes)) is expected


def test_the_launchers_own_calls_take_no_proxy(tmp_path: Path) -> None:
    """Regression: with http_proxy set no server got ready, or the proxy got the token. The same
    test on a real server: tests/serving/test_security.py, tests/serving/test_triton_server.py."""
    tls = {"certificate": tmp_path / "c", "key": tmp_path / "k", "ca": tmp_path / "a"}
    tls["ca"].write_text("")
    made: list[Any] = []
    recorder = SimpleNamespace(
        insecure_channel=lambda url, options: made.append(options),
        secure_channel=lambda url, credentials, options: made.append(options),
    )
    for server in (ServerConfig(), ServerConfig(tls=tls)):
        access.client_access(server).channel(recorder, "127.0.0.1:1")
    assert all(("grpc.enable_http_proxy", 0) in options for options in made)
    assert made[1][-1] == ("grpc.ssl_target_name_override", "localhost")


def chosen_ports() -> dict[str, int]:
    return dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--http-port", "7002", "--grpc-port", "7002"], "the ports must differ"),
        (["--http-port", "0"], "server.http_port: Input should be greater than or equal to 1"),
        (["--http-port", "70000"], "server.http_port: Input should be less than or equal to 65535"),
        (["--grpc-port", "0"], "grpc-port"),
    ],
)
def test_bad_ports_are_one_line(config: Path, options: list[str], message: str) -> None:
    done = serve(config, *options)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


def test_no_server_anywhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no tritonserver on PATH .* pip install"):
        triton.find_triton(tmp_path)


NO_DELAY = (
    "[WARN]  [33mevhtp.c:4050     [39m[94mNODELAY NOT SUPPORTED[39m :: [35m(errno: "
    "Operation not supported)[39m"
)
NO_GPU = [
    'W pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, pinned memory pool '
    'will not be available: CUDA driver version is insufficient for CUDA runtime version"',
    'E server.cc:241] "CudaDriverHelper has not been initialized."',
    'E ensemble_scheduler.cc:1468] "unable to create stream for ensemble: CUDA driver version is '
    'insufficient for CUDA runtime version"',
    'W pinned_memory_manager.cc:170] "failed to allocate pinned system memory: no pinned memory '
    'pool, falling back to non-pinned system memory"',
]
OTHER = 'E model_lifecycle.cc:642] "failed to load"'


@pytest.mark.parametrize("gpu", [True, False])
def test_without_a_gpu_the_server_does_not_complain_of_it(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    gpu: bool,
) -> None:
    """An option keeps Triton from asking NVML, and the remaining lines are not passed on. Nor is
    what its HTTP server says about Unix sockets."""
    (tmp_path / "nvidiactl").touch()
    devices = (str(tmp_path / ("nvidiactl" if gpu else "none")),)
    monkeypatch.setattr(triton, "GPU_DEVICES", devices)
    command = triton.Triton(Path("tritonserver"), None, {}).command(ServerConfig(), name="x")
    assert ("--allow-gpu-metrics=false" in command) is not gpu

    monkeypatch.setattr(launcher.signal, "signal", lambda *_: None)
    monkeypatch.setattr(launcher, "warm_up", lambda *_, **__: threading.Event().wait())
    script = [f"echo '{line}'" for line in (*NO_GPU, OTHER)]
    script.insert(0, f'echo "{NO_DELAY}"')
    lines = program(tmp_path / "bin", "lines", "\n".join([*script, "exit 7"]))
    deployment = load_deployment(config)
    with Front(deployment.override(server=chosen_ports()), "none") as front:
        job = launcher.ServerJob(deployment, tmp_path, [str(lines)], {}, launcher.Stops(), [front])
        assert job.run(ReadyFile(None)) == 1
    shown = [OTHER, "judge-decoding: lines ended with exit code 7; everything is stopped"]
    # gRPC's threads of other tests have a word too.
    said = [line for line in capfd.readouterr().err.splitlines() if "fork_posix.cc" not in line]
    assert said == ([*NO_GPU, *shown] if gpu else shown)


def test_a_missing_libpython_is_said_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.sysconfig, "get_config_var", lambda name: "/nowhere")
    monkeypatch.setattr(triton.sys, "base_prefix", "/nowhere")
    with pytest.raises(UserError, match="built with --enable-shared"):
        triton.find_libpython()

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(triton.sys, "base_prefix", "/usr")
    monkeypatch.setattr(triton.ctypes, "CDLL", missing)
    with pytest.raises(UserError, match=r"apt-get install libpython3\.\d+"):
        triton.find_libpython()


STOPPED_AT_ONCE = """
import os, signal, sys
from pathlib import Path
from judge_decoding.config import load_deployment
from judge_decoding.serving import launcher
from judge_decoding.serving.triton import Triton

def find_triton(folder):
    os.kill(os.getpid(), int(sys.argv[3]))
    return Triton(Path(sys.argv[2]), None, {})

launcher.find_triton = find_triton
config = Path(sys.argv[1])
sys.exit(launcher.serve(load_deployment(config), config))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_stop_in_the_middle_of_the_start_cleans_up_as_well(
    config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Regression: a SIGTERM before the handlers were set left the run folder, with exit code -15;
    SIGHUP and SIGQUIT (issue 16) always left it."""
    document = yaml.safe_load(config.read_text())
    http, grpc, metrics = free_ports(3)
    document["server"] = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    del document["ranks"]
    config.write_text(yaml.safe_dump(document))
    (tmp_path / "tmp").mkdir()
    server = program(tmp_path / "bin", "tritonserver", "exec sleep 60")
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_ONCE, config, server, str(int(number))],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        check=False,
    )
    assert done.returncode == 0
    assert not list((tmp_path / "tmp").iterdir())


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stops = launcher.Stops()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stops.count == 0
        os.kill(os.getpid(), signal.SIGQUIT)
        assert stops.count == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_of_two_servers_started_at_once_on_the_same_ports_one_starts(
    config: Path, tmp_path: Path
) -> None:
    """Regression (issue 16): both found the ports free and both said that they were ready; the one
    that then ended removed the other's ready file.

    `tritonserver` is a FAKE here, which never gets ready.
    """
    document = yaml.safe_load(config.read_text())
    del document["ranks"]
    config.write_text(yaml.safe_dump(document))
    found = program(tmp_path / "bin", "tritonserver", "exec sleep 100")
    path = f"{found.parent}{os.pathsep}{os.environ['PATH']}"
    command = [COMMAND, "serve", "--config", config, *ports()]
    both = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PATH": path}
        )
        for _ in range(2)
    ]
    wait_for(lambda: any(one.poll() is not None for one in both), "one to give up")
    loser, winner = sorted(both, key=lambda one: one.poll() is None)
    assert winner.poll() is None
    winner.terminate()
    assert loser.returncode == 2
    assert loser.communicate()[1] == (
        f"judge-decoding: serve: cannot listen on 127.0.0.1:{command[5]} "
        f"(the server of process {winner.pid} has it); choose another --http-port\n"
    )
    winner.communicate()
    assert winner.returncode == 0


def test_a_watched_rank_writes_its_end_down_and_the_first_bad_one_counts(
    config: Path, tmp_path: Path
) -> None:
    fake = program(tmp_path / "bin", "mpiexec", "echo HYDRA")
    line = mpiexec.command(load_deployment(config), config, ["tritonserver"], str(fake.parent))
    watched = line[line.index("1") + 1 : line.index("tritonserver")]
    assert mpiexec.first_death(tmp_path) is None
    for i, (rank, command) in enumerate((("2", "exit 0"), ("3", "kill -9 $$"), ("1", "exit 7"))):
        subprocess.run(
            [*watched, "sh", "-c", command],
            env=os.environ | {run_folder.FOLDER_VARIABLE: str(tmp_path), "PMI_RANK": rank},
            stderr=subprocess.DEVNULL,
            check=False,
        )
        os.utime(tmp_path / f"{rank}.ended", (i, i))  # a file system's clock is coarse
    assert mpiexec.first_death(tmp_path) == (3, 137)


def test_the_launcher_sees_gone_what_it_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it removed its folder while the shell of a killed rank still wrote there, so the
    folder stayed. Here every killed process takes a while to die."""
    launched = []

    def kill_later(pid: int, number: int) -> None:
        launched.append(pid)
        threading.Timer(0.3, kill, (pid, number)).start()

    def kill(pid: int, number: int) -> None:
        with suppress(ProcessLookupError):
            real(pid, number)

    real = os.kill
    monkeypatch.setattr(launcher.signal, "signal", lambda *_: None)
    stops = launcher.Stops()
    document = {"name": "x", "target": {"model": "t"}, "acceptance": {"rule": "none"}}
    line = ["/bin/sh", "-c", "sleep 60 > /dev/null 2>&1 & exit 7"]
    never = threading.Event()
    monkeypatch.setattr(launcher, "warm_up", lambda *_, **__: never.wait())
    deployment = Deployment.model_validate(document | {"server": chosen_ports()})
    with Front(deployment, "none") as front:
        server = launcher.ServerJob(deployment, tmp_path, line, {}, stops, [front])
        monkeypatch.setattr(launcher.os, "kill", kill_later)
        assert server.run(ReadyFile(None)) == 1
    assert launched and not any(map(is_running, launched))
