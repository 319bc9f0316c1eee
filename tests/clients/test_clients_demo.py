"""A small `make demo`: a real server with ranks on the tiny pair, three prompts by three rules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clients.demo import PROMPTS, RULES
from tests.conftest import write_judge

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_streams_compares_and_stops(
    tiny_target: Path, tiny_draft: Path, tmp_path: Path
) -> None:
    write_judge(tmp_path / "judge.safetensors", tiny_target)
    values = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "judge": {"path": "judge.safetensors"},
        "acceptance": {"rule": "judge"},
        "limits": {"max_sequences": 2, "max_context": 512, "max_tokens": 200},
        "ranks": {"draft": {"tp": 1}, "target": {"tp": 2}},
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-m", "clients.demo", "--config", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n> ") >= len(PROMPTS)
    rows = {
        m[1]: m for m in re.finditer(r"^ *(\w+) +[\d.]+ +([\d.]+) +(\d+) +\d+", done.stdout, re.M)
    }
    assert set(rows) == set(RULES.split(","))
    assert float(rows["none"][2]) == 1.0 and float(rows["strict"][2]) > 1.0
    assert rows["strict"][3] == "0" and int(rows["judge"][3]) > 0
    assert "⟦judged⟧" in done.stdout
    assert done.stdout.rstrip().endswith("The server drained and stopped.")
