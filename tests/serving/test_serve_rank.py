"""deploy/rank.sh with a real server: rank 0 of a world that the launcher has not started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError, ServerStopping
from judge_client.wire import GenerateRequest
from judge_decoding.ranks import mpiexec
from tests.triton_world import LIMIT_S, free_ports, wait_for

pytestmark = pytest.mark.servers

RANK = Path(__file__).parents[2] / "deploy" / "rank.sh"
LONG = GenerateRequest("On and on", max_tokens=900, ignore_eos=True, rule="none")
FAILING = """
import runpy
from pathlib import Path
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.config import shipped

step = SpeculativeDecoder.step

def failing(self):
    if Path("{trigger}").exists():
        raise RuntimeError("out of memory")
    return step(self)

SpeculativeDecoder.step = failing
metrics = runpy.run_path(str(shipped("triton_repo/judge_decoding/1/metrics.py")))
MetricsEndpoint = metrics["MetricsEndpoint"]
"""
"""A metrics.py for the core model, which looks for modules in the working folder first. With it the
engine fails on request."""


class Rank:
    """The process of rank 0 or of the whole world, and its output."""

    def __init__(self, folder: Path, target: Path, draft: Path, ranks: dict[str, object]) -> None:
        http, grpc, metrics = free_ports(3)
        self.url = f"127.0.0.1:{grpc}"
        document = {
            "name": "tiny",
            "dtype": "float32",
            "target": {"model": str(target)},
            "draft": {"model": str(draft)},
            "max_draft_len": 4,
            "limits": {"max_sequences": 2, "max_context": 1024, "max_tokens": 1000},
            "server": {"http_port": http, "grpc_port": grpc, "metrics_port": metrics},
        }
        self.folder = folder
        self.log = folder / "log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        config = folder / "deployment.yaml"
        config.write_text(yaml.safe_dump(document | ranks))
        self.variables = os.environ | {
            **mpiexec.LOOPBACK,
            "CONFIG": str(config),
            "TMPDIR": str(self.temporary),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    @contextmanager
    def run(self, *words: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """Starts the processes, waits until they are ready, and ends them afterwards."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.variables | variables,
                cwd=self.folder,
            )
        try:
            wait_for(lambda: "ready: tiny" in self.said() or process.poll() is not None, "ready")
            assert process.poll() is None, self.said()
            yield process
        finally:
            process.terminate()
            try:
                process.wait(LIMIT_S)
            finally:
                process.kill()

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def test_an_engine_that_fails_ends_the_server(
    tiny_target: Path, tiny_draft: Path, tmp_path: Path
) -> None:
    """Regression: the server stayed, "ready", and answered "engine: it failed" for ever."""
    rank = Rank(tmp_path, tiny_target, tiny_draft, {})
    (tmp_path / "metrics.py").write_text(FAILING.format(trigger=tmp_path / "fail"))
    with rank.run("bash", str(RANK), SLURM_PROCID="0") as process:
        with JudgeClient(rank.url, timeout=LIMIT_S) as client:
            assert client.generate(GenerateRequest("Hi", max_tokens=4, ignore_eos=True)).text
            (tmp_path / "fail").touch()
            failure = r"^engine: it failed \(RuntimeError: out of memory\)$"
            with pytest.raises(JudgeClientError, match=failure):
                client.generate(LONG)
        assert process.wait(LIMIT_S) == 1
    last = rank.said().splitlines()[-1]
    assert last == (
        "judge-decoding: engine: it failed (RuntimeError: out of memory); everything is stopped"
    )
    assert not list(rank.temporary.iterdir())


def test_a_world_of_ranks_that_mpiexec_started_drains(
    tiny_target: Path, tiny_draft: Path, tmp_path: Path
) -> None:
    """Regression: SIGTERM cut running answers, since the loop was not asked to finish them. A new
    request is told that another server may take it."""
    one = {"tp": 1, "threads": 1}
    rank = Rank(tmp_path, tiny_target, tiny_draft, {"ranks": {"draft": one, "target": one}})
    # As srun would do: the rank's number is in the environment.
    each = f'SLURM_PROCID=$PMI_RANK; export SLURM_PROCID; exec bash "{RANK}"'
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    with (
        rank.run(mpiexec, "-n", "3", "sh", "-c", each) as world,
        JudgeClient(rank.url, timeout=LIMIT_S) as client,
    ):
        chunks = client.stream(LONG)
        next(chunks)
        os.kill(rank_0(world.pid), signal.SIGTERM)
        wait_for(lambda: list(rank.temporary.glob("*/drain")), "the drain")
        with pytest.raises(ServerStopping) as refused:
            wait_for(
                lambda: client.generate(GenerateRequest("Hi", max_tokens=1)) is None, "the refusal"
            )
        assert (refused.value.status, str(refused.value)) == (
            "UNAVAILABLE",
            "server: it is shutting down",
        )
        *_, last = chunks
        assert (last.finish_reason, last.num_output_tokens) == ("length", 900)
        assert world.wait(LIMIT_S) == 0, rank.said()
    assert not list(rank.temporary.iterdir())


def rank_0(world: int) -> int:
    """The launcher's pid, found among the processes below mpiexec."""
    from clients.server import descendants

    for pid in descendants(world):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"judge_decoding.serving.rank" in words:
            return pid
    raise AssertionError("no rank 0")
