"""A small `make demo`: a real server with ranks on the tiny pair, three prompts, Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clients.demo import PROMPTS, RULES
from judge_client.connection import DIRECT
from tests.conftest import write_judge

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_streams_compares_stays_and_stops(
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
    # A shell's background job ignores SIGINT, and the demo would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    errors = tmp_path / "stderr"
    with errors.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "clients.demo", "--config", str(config), "--stay"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
        )
    with process:
        try:
            assert process.stdout is not None
            shown = ""
            for line in process.stdout:
                shown += line
                if found := re.fullmatch(
                    r"Serving at (http://127\.0\.0\.1:\d+/) until Ctrl-C\.\n", line
                ):
                    with DIRECT.open(found[1], timeout=60) as page:
                        assert b"<h1>Judge decoding</h1>" in page.read()
                    process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, errors.read_text()
        finally:
            process.terminate()  # it stops its server
    pages = re.findall(r"^(?:Playground, in a browser:|Serving at) (http://\S+)", shown, re.M)
    assert len(pages) == 2 and pages[0] == pages[1]
    assert shown.count("\n> ") >= len(PROMPTS)
    rows = {m[1]: m for m in re.finditer(r"^ *(\w+) +[\d.]+ +([\d.]+) +(\d+) +\d+", shown, re.M)}
    assert set(rows) == set(RULES.split(","))
    assert float(rows["none"][2]) == 1.0 and float(rows["strict"][2]) > 1.0
    assert rows["strict"][3] == "0" and int(rows["judge"][3]) > 0
    assert "⟦judged⟧" in shown
    assert shown.rstrip().endswith("The server drained and stopped.")
