"""bench_gpu.py without a GPU: its command line, and its float64 check of the CPU kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from plugin_builds import host_library, needs_gxx
from typer.testing import CliRunner

from plugins.judge_accept import bench_gpu, kernel
from plugins.judge_accept.bench_gpu import KernelCase, KernelShape, check

SHAPE = KernelShape(hidden_size=40, columns=301, drafts=4, batch=6)


def host_case() -> KernelCase:
    return KernelCase(kernel.load(host_library()), SHAPE, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu"])
    with pytest.raises(SystemExit) as stopped:
        bench_gpu.run()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bench_gpu: gpu: torch ") and err.count("\n") == 1
    assert "--host" in err


@needs_gxx
def test_host_check_ends_in_one_json_document(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    arguments = ["--host", "--library", str(host_library()), "--output", str(output)]
    result = CliRunner().invoke(bench_gpu.app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    assert report == json.loads(output.read_text())
    assert report["backend"] == "host" and report["provenance"]["versions"]["torch"]
    assert len(report["checks"]) == 12
    for done in report["checks"]:
        assert 0 < done["edited_rows"] < 24  # some accepted, some not
        assert done["max_score_error"] < 1e-6


@needs_gxx
def test_the_check_sees_a_wrong_element_and_a_wrong_score(monkeypatch: pytest.MonkeyPatch) -> None:
    good = host_case()
    assert check(good)["rows_not_compared"] == 0

    launch = good.launch
    for tensor, message in ((good.edited, "edited logits differ"), (good.scores, "scores differ")):

        def tampered(tensor: torch.Tensor = tensor) -> None:
            launch()
            tensor[-1, -1] += 1e-3

        monkeypatch.setattr(good, "launch", tampered)
        with pytest.raises(RuntimeError, match=message):
            check(good)


@needs_gxx
def test_the_torch_version_makes_the_same_edit() -> None:
    """The version that the benchmark times next to the kernel must do the same work."""
    case = host_case()
    case.launch()
    own = case.edited.clone()
    case.edited.zero_()
    case.torch_edit()
    assert torch.equal(case.edited, own)
    assert not torch.equal(own, case.logits)
