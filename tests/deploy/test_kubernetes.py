"""The Kubernetes manifest, checked by Kubernetes' own schema; its probes on a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from typer.core import TyperGroup

from judge_decoding.commands import main as cli
from judge_decoding.config import ServerConfig
from tests.faults.processes import braked
from tests.triton_world import Serving, Stream, wait_for

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """Kind -> object."""
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def container(objects: dict[str, Any]) -> dict[str, Any]:
    (found,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("kind", ["Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"])
def test_every_object_is_one_of_kubernetes(objects: dict[str, Any], kind: str) -> None:
    kubernetes_validate.validate(objects[kind], "1.33", strict=True)


def test_the_schema_would_find_a_mistake(objects: dict[str, Any]) -> None:
    wrong = {**objects["Service"], "spec": {"portz": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


def test_the_parts_fit_each_other(objects: dict[str, Any], container: dict[str, Any]) -> None:
    spec = objects["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    selectors = [
        spec["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ]
    assert selectors == [labels] * 4
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    server = ServerConfig()
    assert ports == {"grpc": server.grpc_port, "metrics": server.metrics_port}
    pod = spec["template"]["spec"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    # Draining, its two margins (judge_decoding.serving.launcher), and some spare time.
    assert pod["terminationGracePeriodSeconds"] >= server.drain_s + 2 * 15 + 10
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] < spec["replicas"]


def test_the_command_exists(container: dict[str, Any]) -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    known = {o for p in group.commands[container["command"][1]].params for o in p.opts}
    assert {word for word in container["args"] if word.startswith("--")} <= known
    ready = container["args"][container["args"].index("--ready-file") + 1]
    assert container["startupProbe"]["exec"]["command"][-1] == ready


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_has_time_to_say_what_it_found(container: dict[str, Any], probe: str) -> None:
    found = container[probe]
    command = found["exec"]["command"]
    if "--timeout" in command:
        own = float(command[command.index("--timeout") + 1])
        assert own + 5 < found["timeoutSeconds"] <= found["periodSeconds"]


@pytest.fixture(scope="module")
def server(
    tiny_target: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """A server with one slot and no queue, so that a single request makes it busy."""
    document = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "max_draft_len": 4,
        "limits": {"max_sequences": 1, "max_context": 1024, "max_tokens": 1000},
        "server": {"max_queue": 0, "drain_s": 5},
    }
    folder = tmp_path_factory.mktemp("probed")
    config = folder / "deployment.yaml"
    config.write_text(yaml.safe_dump(document))
    with Serving(config, folder) as running:
        yield running


def probe(server: Serving, container: dict[str, Any], name: str) -> tuple[int, str]:
    """Runs the manifest's own command, with this server's addresses, within the time it gives."""
    found = container[name]
    words = [sys.executable, *found["exec"]["command"][1:]]
    words[words.index("-u") + 1] = server.url
    done = subprocess.run(
        [*words, "-m", f"127.0.0.1:{server.ports[2]}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_probes_of_a_server_that_is_well_busy_and_hanging(
    server: Serving, container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order, since the server does not survive the last state."""
    code, said = probe(server, container, "readinessProbe")
    assert code == 0 and said.startswith("ready: a round in ")
    # A secret made from a file has this newline, and the manifest gives it to the container.
    monkeypatch.setenv("JUDGE_TOKEN", "0123456789abcdef\n")
    assert probe(server, container, "livenessProbe")[0] == 0

    core = server.processes()["the judge_decoding model"]
    with Stream(server) as stream, braked(core):
        busy = {"max_tokens": 1000, "stream": True, "ignore_eos": True, "acceptance_rule": "none"}
        stream.send(text_input="Hi", request_id="long", **busy)
        stream.next()
        wait_for(lambda: server.metric("num_requests_running") == 1, "the metric")
        code, said = probe(server, container, "readinessProbe")
        assert code == 1 and "not well: " in said and "RESOURCE_EXHAUSTED" in said
        code, said = probe(server, container, "livenessProbe")
        assert code == 0 and said.startswith("alive: busy with others")
        stream.send(text_input="", stop=True, request_id="long")
    wait_for(lambda: server.metric("num_requests_running") == 0, "the end of it")

    os.kill(core, signal.SIGSTOP)
    for name in ("readinessProbe", "livenessProbe"):
        code, said = probe(server, container, name)
        # The probe's own limit, or Triton's message about a stub that does not answer.
        assert code == 1 and re.search("no answer within|is not healthy", said), said

    os.kill(server.processes()["tritonserver"], signal.SIGKILL)
    code, said = probe(server, container, "livenessProbe")
    assert code == 1 and "no server answers there" in said
    assert server.wait() == 1
