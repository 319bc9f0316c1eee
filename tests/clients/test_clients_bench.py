"""The arithmetic of the server benchmark and the soak test, and a real in-process run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from clients import server
from clients.load import bench_server, mixed_requests, soak
from clients.load.bench_server import InProcess, Sample
from clients.load.command import run
from clients.load.memory import growth
from judge_client.metrics import parse_metrics
from judge_client.wire import Answer, Chunk, GeneratedToken, GenerateRequest
from judge_decoding.commands.main import app
from judge_decoding.config import load_deployment
from judge_decoding.pipeline import load_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_draft: Path
) -> Path:
    path = tmp_path_factory.mktemp("deployment") / "tiny.yaml"
    values = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "limits": {"max_sequences": 2, "max_context": 256, "max_tokens": 64},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_in_process_side_answers_block_by_block(deployment: Path) -> None:
    """The same text as `judge-decoding generate`, in order, from one process."""
    with closing(load_pipeline(load_deployment(deployment))) as pipeline:
        local = InProcess(pipeline)
        assert local.provenance["rule"] == "strict"
        assert local.provenance["deployment"] == "tiny"
        samples = local.answers(["two", "one"], 9) + local.answers(["one"], 9)
    asked = ["generate", "--config", str(deployment), "--max-tokens", "9", "--json"]
    done = CliRunner().invoke(app, [*asked, "--prompt", "two", "--prompt", "one"])
    expected = json.loads(done.stdout.splitlines()[-1])["results"]
    texts = [row["text"] for row in expected]
    assert [one.text for one in samples] == [*texts, texts[1]]
    assert [one.tokens for one in samples[:2]] == [len(row["token_ids"]) for row in expected]
    assert all(0 < one.first_s <= one.seconds for one in samples)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config", "/nowhere.yaml"], "config: no file /nowhere.yaml"),
        (["--config", "x", "--prompts", "/nowhere"], "prompts: /nowhere: it cannot be read ("),
    ],
)
def test_the_librarys_complaint_is_one_line(
    arguments: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_server", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(bench_server.bench, "bench_server")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"bench_server: {complaint}")


def test_the_figures_of_a_benchmark() -> None:
    ours = [Sample(2.0, 0.1, 20, "a"), Sample(2.0, 0.2, 20, "b"), Sample(1.0, 0.3, 10, "c")]
    theirs = [Sample(2.5, 0.11, 20, "a"), Sample(2.5, 0.22, 20, "b"), Sample(1.25, 0.33, 10, "x")]
    single = [[Sample(1.0, 0.1, 10, ""), Sample(1.0, 0.1, 10, "")]]
    together = [(1.0, [Sample(1.0, 0.1, 15, ""), Sample(0.5, 0.1, 15, "")])]
    results = bench_server.summarize(ours, theirs, single, together)
    assert results == pytest.approx(
        {
            "in_process_tokens_per_s": 10.0,
            "served_tokens_per_s": 8.0,
            "one_stream_ratio": 0.8,
            "in_process_first_token_ms": 200.0,
            "served_first_token_ms": 220.0,
            "first_token_extra_ms": 20.0,
            "first_token_extra_ms_max": 30.0,
            "same_text": 2 / 3,
            "one_stream_tokens_per_s": 10.0,
            "streams_tokens_per_s": 30.0,
            "streams_ratio": 3.0,
            "fairness": 0.5,
        }
    )
    assert [(row["goal"], row["met"]) for row in bench_server.goals(results)] == [
        (">= 0.9", False),
        ("<= 15", False),
        (">= 2", True),
        (">= 0.5", True),
    ]


def test_both_sides_answer_every_prompt_and_take_turns_to_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_server, "PAUSE_S", 0.0)
    turns: list[tuple[str, list[str]]] = []

    class Side:
        def __init__(self, name: str) -> None:
            self.name = name

        def answers(self, prompts: list[str], max_tokens: int) -> list[Sample]:
            turns.append((self.name, list(prompts)))
            return [Sample(1.0, 0.1, max_tokens, self.name + text) for text in prompts]

    prompts, local, served = list("abcdef"), Side("L"), Side("S")
    ours, theirs = bench_server.compare(local, served, prompts, 7, lambda line: None)  # type: ignore[arg-type]
    assert turns == [
        ("L", ["a", "b", "c", "d"]),
        ("S", ["a", "b", "c", "d"]),
        ("S", ["e", "f"]),
        ("L", ["e", "f"]),
    ]
    assert [one.text for one in ours] == ["L" + text for text in prompts]
    assert [one.text for one in theirs] == ["S" + text for text in prompts]


def test_the_first_token_is_the_first_response_with_tokens() -> None:
    watch = bench_server.Watch()
    watch.add(Chunk("", [], 3, 0, None, None))
    watch.add(Chunk("ab", [], 3, 2, None, None))
    watch.add(Chunk("c", [], 3, 5, "length", None))
    sample = watch.sample()
    assert (sample.tokens, sample.text) == (5, "abc")
    assert 0 < sample.first_s < sample.seconds


def memory(at: float, **sizes: int) -> tuple[float, dict[str, int]]:
    return at, {name: size * 1_000_000 for name, size in sizes.items()}


def test_memory_growth_is_measured_after_warm_up() -> None:
    """100 s: warm-up until 20, windows 20..28 and 92..100."""
    samples = [
        memory(0, a=10, b=100),
        memory(20, a=50, b=100),
        memory(28, a=50, b=150),
        memory(60, a=400, b=100),
        memory(92, a=51, b=125),
        memory(100, a=51, b=125),
    ]
    grown = growth(samples)
    assert grown["warm_up_s"] == 20
    assert (grown["warm_mb"], grown["end_mb"]) == (175, 176)
    assert grown["growth_percent"] == pytest.approx(100 / 175)
    assert grown["processes"]["a"] == {"warm_mb": 50, "end_mb": 51, "growth_percent": 2.0}
    assert grown["changed"] == []
    assert grown["series_s_mb"] == [
        [0, 110],
        [20, 150],
        [28, 200],
        [60, 500],
        [92, 176],
        [100, 176],
    ]


def test_a_process_that_came_or_went_is_named() -> None:
    samples = [memory(0, a=1), memory(25, a=1, b=1), memory(100, b=1)]
    assert growth(samples)["changed"] == ["a", "b"]


def test_each_bound_is_judged_for_itself() -> None:
    def held(failures: int, stuck: float, percent: float) -> list[bool]:
        results = {"failures": failures, "stuck": stuck, "memory": {"growth_percent": percent}}
        return [bound["held"] for bound in soak.bounds(results)]

    assert held(0, 0, 2.0) == [True, True, True]
    assert held(1, 1, 2.01) == [False, False, False]
    assert held(0, 0, -5.0) == [True, True, True]


ASKED = GenerateRequest("x", max_tokens=3, provenance=True, record=True)
GOOD: dict[str, Any] = {
    "text": "ab",
    "tokens": [GeneratedToken(1, "a", "target", None), GeneratedToken(2, "b", "target", None)],
    "num_output_tokens": 2,
    "finish_reason": "stop",
    "record": {"num_spec_steps": 0},
}


def test_a_good_answer_passes() -> None:
    mixed_requests.check(ASKED, Answer(**GOOD))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"finish_reason": "cancelled"}, "finish_reason 'cancelled'"),
        ({"finish_reason": None}, "finish_reason None"),
        ({"num_output_tokens": 0}, "0 tokens of at most 3"),
        ({"num_output_tokens": 4}, "4 tokens of at most 3"),
        ({"num_output_tokens": 3}, "provenance of 2 tokens of 3"),
        ({"text": "abc"}, "the tokens' texts are not the answer's"),
        ({"record": None}, "no acceptance record"),
    ],
)
def test_a_wrong_answer_is_found(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(mixed_requests.Wrong, match=complaint):
        mixed_requests.check(ASKED, Answer(**(GOOD | change)))


def test_the_load_is_good_and_repeatable() -> None:
    rules = ["none", "strict", "rejection"]
    drawn = [mixed_requests.draw(Random(5), rules) for _ in range(2)]
    assert drawn[0] == drawn[1]
    random = Random(1)
    many = [mixed_requests.draw(random, rules) for _ in range(300)]
    assert {request.rule for request in many} == set(rules)
    assert all(request.temperature == 0.0 for request in many if request.rule == "strict")
    assert {request.messages is None for request in many} == {True, False}
    assert all(bool(request.prompt) != bool(request.messages) for request in many)


def test_metrics_are_summed_over_their_labels() -> None:
    text = (
        "# HELP a_total things\n# TYPE a_total counter\n"
        'a_total{x="1",y="} z"} 2\na_total{x="2"} 3.5\nb 1e3\n\n'
    )
    assert parse_metrics(text) == {"a_total": 5.5, "b": 1000.0}


def test_a_process_tree_is_found_whole(tmp_path: Path) -> None:
    """A child and its child, whose name has a parenthesis in it."""
    odd = tmp_path / "o) (d"
    odd.symlink_to(sys.executable)
    inner = "print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.argv[1], '-c', {inner!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(odd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        found = server.descendants(child.pid)
        assert child.pid in found
        assert "o) (d" in {name for name, _ in found.values()}
        assert len(found) == 2
        assert os.getpid() not in found
        assert all(rss > 1_000_000 for _, rss in found.values())
        child.communicate("\n")


def test_free_ports_differ() -> None:
    assert len(set(server.free_ports(5))) == 5


def test_a_server_that_does_not_start_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clients.load.soak", "--config", "/nowhere.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("soak: serve: it exited with 2: ")
    assert "/nowhere.yaml" in last
