"""The dashboard, the alerts and their page name existing metrics, in PromQL that parses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from judge_decoding.serving.metrics import FAMILIES, PREFIX

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "operations"
ALERTS = FOLDER / "alerts.yaml"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus itself adds to everything it reads."""
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL), with the dashboard's variables filled in."""
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            filled = target["expr"].replace("$__rate_interval", "1m").replace("$deployment", ".*")
            yield panel["title"], filled


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"judge_decoding[:_][a-z0-9_:]+", expression))


def used() -> set[str]:
    """Every metric that the alerts and the dashboard read, without the prefix."""
    names = set().union(*(metric_names(expression) for _, expression in expressions()))
    assert names >= RECORDED
    return {name.removeprefix(PREFIX) for name in names - RECORDED}


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_an_expression_parses_and_reads_what_exists(where: str, expression: str) -> None:
    promql_parser.parse(expression)
    names = metric_names(expression)
    assert names, where
    families = [FAMILIES[name.removeprefix(PREFIX)] for name in names - RECORDED]
    labels = {"deployment", *SCRAPED}.union(*(family.labels for family in families))
    for group in re.findall(r"\b(?:by|on|ignoring) ?\(([^)]*)\)", expression):
        assert set(re.split(r", *", group)) <= labels, where
    for selector in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+) ?(?:=|!=|=~)", selector)) <= labels, where
    # Counters are read as rates, gauges never are.
    for kind, name in re.findall(rf"(rate|increase)\(({PREFIX}\w+)", expression):
        assert FAMILIES[name.removeprefix(PREFIX)].kind == "counter", (kind, name)
    for family in families:
        if family.kind == "counter":
            assert re.search(rf"(rate|increase)\({PREFIX}{family.name}\b", expression), where


def test_the_five_alarms_of_an_operator_are_there() -> None:
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    wanted = {"AcceptanceCollapsed", "JudgedShareJumped", "RankSilent", "QueueGrows"}
    assert wanted | {"RequestErrors"} <= alerts
    # The number of servers is not part of the deployment.
    for name, expression in expressions():
        if "timestamp_seconds" in expression and "absent" not in expression:
            assert re.search(r"by \([^)]*\binstance\b", expression), name
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"]


def test_the_page_describes_every_metric_and_no_other() -> None:
    page = (FOLDER / "metrics.md").read_text()
    rows = dict[str, str]()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[2] in ("counter", "gauge"):
            names = re.findall(r"`(\w+)(?:\{[\w,]*\})?`", cells[1])
            for name in names:
                whole = re.sub(r"_bucket$", "", names[0]) + name if name[0] == "_" else name
                rows[whole] = cells[2]
    assert rows == {family.name: family.kind for family in FAMILIES.values()}
    for family in FAMILIES.values():
        if family.labels:
            assert f"`{family.name}{{{','.join(family.labels)}}}`" in page


PROMTOOL = shutil.which("promtool") or shutil.which(
    "promtool", path=ROOT / ".venv/share/prometheus/usr/bin"
)


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool; `make promtool` installs it")
@pytest.mark.parametrize(
    "arguments", [["check", "rules", ALERTS], ["test", "rules", "tests/alerts.test.yaml"]]
)
def test_promtool_accepts_the_rules_and_they_fire(arguments: list[str]) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
