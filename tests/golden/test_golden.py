"""The answers of an earlier version, compared token by token: in process, batched, and served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from judge_decoding.decoding.contracts import RuleName
from judge_decoding.pipeline import load_pipeline
from tests.golden.asked import groups
from tests.golden.replay import (
    AT_ONCE,
    ROOT,
    Values,
    deployment_of,
    differences,
    in_process,
    prompt_ids,
    read_groups,
    served,
)
from tests.triton_world import Serving

GROUPS = {group["name"]: group for group in read_groups()}


def slow(name: str, way: str = "") -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if name == "demo" or way == "alone" else []


def cases(*ways: str) -> list[Any]:
    """(group's name, way) for every group that is answered in one of these ways."""
    return [
        pytest.param(name, way, marks=slow(name, way), id=f"{name}-{way}")
        for name, group in GROUPS.items()
        for way in ways
        if way in group["ways"]
    ]


def assert_golden(group: Values, found: list[Values]) -> None:
    """Every answer of the group, in order, or a list of the requests whose answers changed."""
    changed = [
        f"{entry['request']}: {', '.join(fields)}"
        for entry, answer in zip(group["requests"], found, strict=True)
        if (fields := differences(answer, entry["answer"]))
    ]
    assert changed == []


def asked(group: Values) -> list[Values]:
    return [entry["request"] for entry in group["requests"]]


@pytest.mark.parametrize(("name", "way"), cases("alone", "together"))
def test_in_process(name: str, way: str) -> None:
    group = GROUPS[name]
    at_once = 1 if way == "alone" else AT_ONCE
    assert_golden(group, in_process(deployment_of(group), asked(group), at_once))


@pytest.mark.servers
def test_served(tmp_path: Path) -> None:
    """One server with its models in two MPI ranks answers eight requests at a time."""
    wanted = [group for group in GROUPS.values() if "served" in group["ways"]]
    assert {(group["config"], len(group["settings"])) for group in wanted} == {
        ("configs/controlled.yaml", 0)
    }
    with Serving(ROOT / "configs" / "controlled.yaml", tmp_path) as server:
        assert sum(role.startswith("rank ") for role in server.processes()) == 2
        for group in wanted:
            assert_golden(group, served(server, asked(group)))
        assert server.stop() == 0, server.output


@pytest.mark.parametrize("name", [pytest.param(n, marks=slow(n)) for n in GROUPS])
def test_prompts_are_the_same_tokens(name: str) -> None:
    group = GROUPS[name]
    pipeline = load_pipeline(deployment_of(group))
    found = [prompt_ids(pipeline, values) for values in asked(group)]
    pipeline.close()
    assert found == [entry["prompt_ids"] for entry in group["requests"]]


def test_the_file_has_the_requests_of_its_generator() -> None:
    made = json.loads(json.dumps(groups()))  # JSON keys are strings
    assert made == [group | {"requests": asked(group)} for group in GROUPS.values()]


def test_every_rule_is_served_and_batched() -> None:
    shared = [group for group in GROUPS.values() if {"together", "served"} <= {*group["ways"]}]
    rules = {values.get("acceptance_rule") for group in shared for values in asked(group)}
    assert rules == {*get_args(RuleName), None}
    assert sum(len(group["requests"]) for group in shared) >= 72


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token_ids", [5, 7]),
        ("provenance", "tj"),
        ("judge_scores", [None, 0.502]),
        ("judge_scores", [0.5, None]),
        ("judge_scores", [None]),
        ("text", "a B"),
        ("finish_reason", "length"),
        ("drafted", 3),
        ("histogram", [0, 1, 0, 0]),
    ],
)
def test_a_changed_field_is_a_difference(field: str, value: Any) -> None:
    answer = {
        "token_ids": [5, 6],
        "provenance": "ta",
        "judge_scores": [None, 0.5],
        "text": "a b",
        "finish_reason": "stop",
        "drafted": 4,
        "histogram": [0, 1, 0],
    }
    assert differences(answer | {"judge_scores": [None, 0.5004]}, answer) == []
    assert differences(answer | {field: value}, answer) == [field]
