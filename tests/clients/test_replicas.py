"""Two real servers behind a real nginx: whole streams, cancels that arrive, a dying replica."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2, service_pb2_grpc

from clients.load.replicas import balancing, find_nginx
from judge_client.client import JudgeClient
from judge_client.wire import GenerateRequest
from tests.faults.bench import Watched
from tests.triton_world import Serving, wait_for

pytestmark = [
    pytest.mark.skipif(find_nginx() is None, reason="no nginx; `make nginx` installs it"),
    pytest.mark.servers,
]

LONG = GenerateRequest("A long one", max_tokens=900, ignore_eos=True, rule="none")
PROMPTS = [f"Prompt number {i}" for i in range(16)]


@pytest.fixture(scope="module")
def replicas(
    tiny_target: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Serving]]:
    folder = tmp_path_factory.mktemp("replicas")
    document = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "max_draft_len": 4,
        "limits": {"max_sequences": 12, "max_context": 1024, "max_tokens": 900},
        "server": {"drain_s": 5},
    }
    config = folder / "deployment.yaml"
    config.write_text(yaml.safe_dump(document))
    with ExitStack() as stack:
        made = [Serving(config, folder / name) for name in ("one", "two")]  # both start
        yield [stack.enter_context(one) for one in made]


@pytest.fixture
def balancer(replicas: list[Serving]) -> Iterator[str]:
    """HOST:PORT"""
    with balancing([one.url for one in replicas]) as url:
        yield url


def finished(server: Serving, reason: str) -> float:
    return server.metric("request_success_total", finished_reason=reason)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answer(url: str, prompt: str) -> str:
    with JudgeClient(url, timeout=180) as client:
        request = GenerateRequest(prompt, max_tokens=60, ignore_eos=True)
        return "".join(chunk.text for chunk in client.stream(request))


def test_streams_through_the_balancer_are_whole_and_both_replicas_write_them(
    replicas: list[Serving], balancer: str
) -> None:
    before = [finished(one, "length") for one in replicas]
    expected = [answer(replicas[0].url, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda prompt: answer(balancer, prompt), PROMPTS))
    assert got == expected
    shares = [finished(one, "length") - old for one, old in zip(replicas, before, strict=True)]
    assert sum(shares) == 2 * len(PROMPTS) and shares[1] > 0 and shares[0] > len(PROMPTS)


def test_a_cancellation_reaches_the_replica_that_runs_the_request(
    replicas: list[Serving], balancer: str
) -> None:
    before = sum(finished(one, "cancelled") for one in replicas)
    with JudgeClient(balancer, timeout=180) as client:
        for _ in range(8):
            stream = client.stream(LONG)
            next(stream)
            stream.close()  # a second request, which the balancer sends on by its header
    wait_for(
        lambda: sum(finished(one, "cancelled") for one in replicas) == before + 8, "the cancels"
    )
    assert sum(one.metric("kv_slots_used") for one in replicas) == 0


def test_only_health_and_streams_pass(balancer: str) -> None:
    calls = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(balancer))
    assert calls.ModelReady(service_pb2.ModelReadyRequest(name="ensemble"), timeout=60).ready
    for ask in (
        lambda: calls.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=60),
        lambda: calls.SystemSharedMemoryStatus(
            service_pb2.SystemSharedMemoryStatusRequest(), timeout=60
        ),
        lambda: calls.ModelConfig(service_pb2.ModelConfigRequest(name="ensemble"), timeout=60),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            ask()
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_killed_replica_loses_its_own_streams_and_no_other(
    replicas: list[Serving], balancer: str
) -> None:
    """This is the last test of the file, since one replica is dead afterwards."""
    kept, lost = replicas
    text = answer(kept.url, PROMPTS[0])
    with JudgeClient(kept.url, timeout=180) as client:
        whole = client.generate(LONG).text
    # Slow rounds (four at once on each server), so that all run when the replica dies.
    streams: list[Watched] = []
    running = [0.0, 0.0]
    while min(running) == 0:  # the balancer goes by the requests' ids, which are random
        streams += [Watched(balancer, LONG) for _ in range(2 if streams else 10)]
        for stream in streams:
            stream.running()
        with ThreadPoolExecutor() as pool:
            running = list(pool.map(lambda one: one.metric("num_requests_running"), replicas))
    assert sum(running) == len(streams)
    os.kill(lost.processes()["tritonserver"], signal.SIGKILL)
    wait_for(lambda: not listens(lost.ports[1]), "its port to close")
    after = [answer(balancer, PROMPTS[0]) for _ in range(10)]  # at once, beside the others
    assert after == [text] * 10
    for stream in streams:
        stream.seen()
    failed = [stream for stream in streams if stream.error is not None]
    assert len(failed) == running[1]
    assert all(s.answer.text == whole for s in streams if s.error is None)
    assert lost.wait() == 1
    assert kept.process.poll() is None and kept.metric("kv_slots_used") == 0
