"""The real perf_analyzer against a real server with tiny models: `run` and `tune`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients import server
from tests.conftest import write_judge

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_draft: Path
) -> Path:
    folder = tmp_path_factory.mktemp("loaded")
    write_judge(folder / "judge.safetensors", tiny_target)
    values = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "judge": {"path": "judge.safetensors"},
        "acceptance": {"rule": "judge"},
        "max_draft_len": 3,
        "limits": {"max_sequences": 2, "max_context": 512, "max_tokens": 64},
        "server": {"max_queue": 8},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def running(deployment: Path) -> Iterator[server.ServerProcess]:
    with server.serving(deployment) as started:
        yield started


def perf(*arguments: str | Path, fails: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "clients.load.perf", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == fails, done.stderr
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def test_a_run_counts_what_the_server_counts(running: server.ServerProcess, tmp_path: Path) -> None:
    """Every token and every draft; a refused request is a row, not the end of the run."""
    done = perf(
        *("run", "-u", running.url, "--metrics", running.metrics_url, "--json"),
        *("--rules", "none,judge,nonsense", "--concurrency", "3", "--request-rate", "8"),
        *("--seconds", "0.1", "--max-tokens", "9", "--out", tmp_path / "report"),
    )
    made = last_line(done)
    assert made == json.loads((tmp_path / "report.json").read_text())
    assert made["provenance"]["perf_analyzer"] == "2.51.0"
    rows = {(row["rule"], row["mode"]): row for row in made["results"]}
    assert len(rows) == 6
    for mode, least in (("concurrency", 9), ("request_rate", 8)):
        assert "acceptance_rule" in rows["nonsense", mode]["error"]
        none, judge = rows["none", mode], rows["judge", mode]
        assert none["answers"] == judge["answers"] >= least
        for row in (none, judge):
            assert row["tokens"] == row["server"]["tokens"] <= 9 * row["answers"]
            assert sum(row["finish_reasons"].values()) == row["answers"]
            assert set(row["finish_reasons"]) <= {"length", "stop"}
            times = row["ttft_ms"], row["itl_ms"], row["tpot_ms"], row["latency_ms"]
            assert all(0 < one["p50"] <= one["p90"] <= one["p99"] for one in times)
        assert none["tokens_per_response"] == 1.0
        assert none["server"]["drafts"] == 0
        counted = judge["server"]
        assert judge["tokens_per_response"] > 1.0
        assert counted["acceptance_length"] == 1 + counted["accepted"] / counted["drafts"]
        assert counted["accepted"] < counted["tokens"]
    perf("compare", tmp_path / "report.json", tmp_path / "report.json")


def test_tuning_serves_without_the_schedule_and_writes_one(deployment: Path) -> None:
    """At 2 sequences the deployment's own schedule would not draft."""
    before = yaml.safe_load(deployment.read_text())
    with deployment.open("a") as file:
        file.write("draft_len_schedule: {1: 3}\n")
    done = perf(
        *("tune", "--config", deployment, "--max-draft-len", "1", "--active", "2", "--json"),
        *("--seconds", "0.2", "--repeats", "1", "--max-tokens", "8", "--write"),
    )
    made = last_line(done)
    assert list(made["curves"]["2"]) == ["none", "0", "1"]
    pace = {str(row["draft_len"]): row["tokens_per_response"] for row in made["results"]}
    assert pace["None"] == pace["0"] == 1.0
    assert 1.0 < pace["1"] <= 2.0
    best = made["choices"]["2"]
    assert made["draft_len_schedule"] == {"2": best}
    assert yaml.safe_load(deployment.read_text()) == before | {"draft_len_schedule": {2: best}}
