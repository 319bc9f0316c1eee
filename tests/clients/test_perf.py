"""Load tests: perf_analyzer's inputs and export, the figures, comparisons, and the tuned schedule.

All tests compute hand-built cases; `test_perf_server.py` runs the program.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.load.command import run
from clients.load.perf import load, plots, report, schedule, sweep, tune
from clients.load.perf.analyzer import LIBRARIES, PerfLoad, command, complaint, library_path
from clients.load.perf.compare import compare, compared
from clients.load.perf.compare import read as read_report
from clients.load.perf.export import TimedAnswer, Truncated, read_export
from clients.load.perf.figures import figures, server_figures, spread
from clients.load.perf.inputs import input_data
from clients.load.perf.sweep import SweepSystem, answers_for, rotated
from judge_client.errors import JudgeClientError
from judge_decoding.config import load_deployment
from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.evaluation.prompts import read_prompts
from judge_decoding.text import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
T0 = 1_795_567_399_000_000_000


def request(sent_ms: int, *responses: tuple[int, int], finish: str) -> dict[str, Any]:
    """A request of an export; a response is (ms, tokens so far)."""
    outputs = [
        {"num_output_tokens": tokens, "finish_reason": "", "judge_scores": -1e17, "text_output": ""}
        for _, tokens in responses
    ]
    outputs[-1]["finish_reason"] = finish
    return {
        "timestamp": T0 + sent_ms * 1_000_000,
        "request_inputs": {"text_input": "hi"},
        "response_timestamps": [T0 + ms * 1_000_000 for ms, _ in responses],
        "response_outputs": outputs,
    }


def export(*requests: dict[str, Any]) -> dict[str, Any]:
    experiment = {"experiment": {"mode": "concurrency", "value": 2}, "requests": list(requests)}
    return {"experiments": [experiment], "version": "2.51.0", "service_kind": "triton"}


LATER = request(250, (350, 1), (450, 2), finish="stop")
FIRST = request(0, (100, 3), (200, 3), (300, 4), (500, 6), finish="length")
"""Its second response brings no token."""


@pytest.fixture
def answers(tmp_path: Path) -> list[TimedAnswer]:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(export(LATER, FIRST)))  # by thread, not by time
    return read_export(path)


def test_tokens_are_counted_by_what_the_server_says(answers: list[TimedAnswer]) -> None:
    assert answers == [
        TimedAnswer(0.0, ((0.1, 3), (0.3, 1), (0.5, 2)), 0.5, "length"),
        TimedAnswer(0.25, ((0.35, 1), (0.45, 1)), 0.45, "stop"),
    ]
    assert [answer.tokens for answer in answers] == [6, 2]


def test_the_figures_of_two_answers(answers: list[TimedAnswer]) -> None:
    made = figures([answers])
    assert made["answers"] == 2
    assert made["tokens"] == 8
    assert made["finish_reasons"] == {"length": 1, "stop": 1}
    # The second request was sent at 0.25 s; three tokens had come.
    assert made["tokens_per_s"] == pytest.approx(12.0)
    assert made["tokens_per_response"] == pytest.approx(8 / 5)
    assert made["ttft_ms"] == pytest.approx({"mean": 100, "p50": 100, "p90": 100, "p99": 100})
    assert made["itl_ms"] == pytest.approx({"mean": 500 / 3, "p50": 200, "p90": 200, "p99": 200})
    assert made["tpot_ms"]["mean"] == pytest.approx((400 / 3 + 100) / 2)
    assert made["latency_ms"] == pytest.approx({"mean": 350, "p50": 350, "p90": 470, "p99": 497})
    assert made["user_tokens_per_s"]["p50"] == pytest.approx(11.0)


def test_repeats_add_up_and_one_wave_is_taken_whole() -> None:
    wave = [TimedAnswer(0.0, ((1.0, 5), (2.0, 5)), 2.0, "length")] * 2
    long = [
        TimedAnswer(0.0, ((1.0, 10),), 1.0, "length"),
        TimedAnswer(3.0, ((4.0, 10),), 4.0, "length"),
    ]
    assert figures([wave])["tokens_per_s"] == 10.0  # 20 tokens in 2 s
    assert figures([long])["tokens_per_s"] == pytest.approx(10 / 3)
    assert figures([wave, long])["tokens_per_s"] == 6.0  # 30 tokens in 5 s


def test_an_answer_without_tokens_or_of_one_response_has_no_pace() -> None:
    silent = TimedAnswer(0.0, (), 1.0, "stop")
    short = TimedAnswer(0.0, ((0.5, 2),), 0.5, "stop")
    made = figures([[silent]])
    assert made["ttft_ms"] is made["tpot_ms"] is made["tokens_per_response"] is None
    assert made["tokens_per_s"] == 0.0
    assert figures([[short]])["tpot_ms"] is None
    assert spread([]) is None


def test_a_cut_off_export_is_its_own_error(tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    for text in ("", json.dumps(export(FIRST)).partition("-1e+17")[0]):
        path.write_text(text)
        with pytest.raises(Truncated, match=rf"cut off at byte {len(text)}$"):
            read_export(path)


@pytest.mark.parametrize(
    ("document", "complaint_of"),
    [
        ({"experiments": []}, "its export holds 0 experiments"),
        (export(), "its export holds no request"),
        (export(FIRST | {"response_outputs": []}), "no num_output_tokens a response"),
        (export(FIRST | {"response_outputs": [{"x": 1}] * 4}), "no num_output_tokens a response"),
    ],
)
def test_an_export_without_what_is_needed(
    document: dict[str, Any], complaint_of: str, tmp_path: Path
) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(document))
    with pytest.raises(JudgeClientError, match=complaint_of):
        read_export(path)


def test_a_cut_off_run_is_made_again_and_counts_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times cut off, then whole; or always cut off. The server's figures are those of the
    whole run. Regression: they were the sum over all attempts, so twice the tokens."""
    whole = json.dumps(export(FIRST))

    class Program:
        runs = 0

        def run(self, url: str, inputs: Path, at: PerfLoad, count: int, path: Path) -> None:
            assert not path.exists()
            assert json.loads(inputs.read_text()) == input_data(["p"], "judge", 9, 2)
            self.runs += 1
            path.write_text(whole if self.runs == 4 else whole[:-9])

    def metrics(url: str, *, fresh: bool) -> dict[str, float]:
        assert (url, fresh) == ("m", True)
        return {"tokens": 69.0 * program.runs}

    program = Program()
    monkeypatch.setattr(sweep, "read_metrics", metrics)
    made = sweep.Sweep(program, tmp_path, "u", "m", ["p"], 9)  # type: ignore[arg-type]
    at = PerfLoad("concurrency", 1)
    answers, counted = made._run(SweepSystem("judge", 2), at, 1)
    assert len(answers) == 1
    assert counted == {"tokens": 69.0}
    assert program.runs == 4
    with pytest.raises(Truncated):
        made._run(SweepSystem("judge", 2), at, 1)
    assert program.runs == 4 + sweep.ATTEMPTS


def test_input_data_is_a_row_a_prompt() -> None:
    assert input_data(["Hi", 'A "quote"'], "judge", 64) == {
        "data": [
            {
                "text_input": [text],
                "chat": [True],
                "stream": [True],
                "max_tokens": [64],
                "acceptance_rule": ["judge"],
            }
            for text in ("Hi", 'A "quote"')
        ]
    }
    (row,) = input_data(["Hi"], "none", 5, draft_len=0)["data"]
    assert (row["max_draft_len"], row["acceptance_rule"]) == ([0], ["none"])


def test_every_input_is_one_that_the_ensemble_declares() -> None:
    declared = (ROOT / "triton_repo/ensemble/config.pbtxt").read_text()
    (row,) = input_data(["Hi"], "none", 5, draft_len=0)["data"]
    assert all(f'name: "{name}"' in declared for name in row)


def test_the_command_line_of_a_run() -> None:
    shared = "-m ensemble -i grpc -u h:1 --async --streaming --input-data in.json"
    tail = "--request-count 9 --profile-export-file out.json"
    paths = Path("in.json"), Path("out.json")
    fixed = command("h:1", paths[0], PerfLoad("concurrency", 4), 9, paths[1])
    assert " ".join(fixed) == f"{shared} --concurrency-range 4 {tail}"
    poisson = command("h:1", paths[0], PerfLoad("request_rate", 2.5), 9, paths[1])
    rate = "--request-rate-range 2.5 --request-distribution poisson"
    assert " ".join(poisson) == f"{shared} {rate} {tail}"


def test_what_the_program_complains_of_is_one_line() -> None:
    refused = (
        "Failed to retrieve results from inference request.\n"
        "Thread [0] had error: in ensemble 'ensemble', server: busy\n\n"
        "Thread [2] had error: in ensemble 'ensemble', server: busy\n"
    )
    assert complaint("", refused) == "server: busy"
    assert complaint("a\n", "error: failed to get model metadata\n") == (
        "failed to get model metadata"
    )
    assert complaint("", "") == "it failed and said nothing"


def test_the_missing_libraries_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    assert library_path(tmp_path) == {"LD_LIBRARY_PATH": f"/before:{tmp_path}"}
    assert {path.name for path in tmp_path.iterdir()} == set(LIBRARIES)
    assert all(path.resolve().is_file() for path in tmp_path.iterdir())


def test_how_many_answers_a_point_takes() -> None:
    warm = [TimedAnswer(0.0, ((1.0, 1),), 2.0, "length")] * 8  # 4 answers a second
    assert answers_for(PerfLoad("concurrency", 8), warm, 10.0) == 40
    assert answers_for(PerfLoad("concurrency", 8), warm, 0.1) == 24
    assert answers_for(PerfLoad("request_rate", 2.5), warm, 10.0) == 25
    assert answers_for(PerfLoad("request_rate", 0.5), warm, 2.0) == 8
    assert answers_for(PerfLoad("request_rate", 19.5), warm, 0.1) == 20


def test_systems_take_turns_to_begin() -> None:
    systems = [SweepSystem("none"), SweepSystem("judge", 1), SweepSystem("judge", 2)]
    assert rotated(systems, 4) == [systems[1], systems[2], systems[0]]
    assert [str(one) for one in systems] == ["none", "judge k=1", "judge k=2"]


COUNTERS = "judge_decoding_spec_decode_num_"


def test_the_servers_counters() -> None:
    before = {f"{COUNTERS}drafts_total": 100.0, "judge_decoding_generation_tokens_total": 50.0}
    after = {
        f"{COUNTERS}drafts_total": 140.0,
        f"{COUNTERS}draft_tokens_total": 120.0,
        f"{COUNTERS}accepted_tokens_total": 60.0,
        f"{COUNTERS}judged_tokens_total": 15.0,
        "judge_decoding_generation_tokens_total": 150.0,
    }
    made = server_figures(before, after)
    assert made["acceptance_length"] == 1 + 60 / 40
    assert made["acceptance_rate"] == 0.5
    assert made["judged_share"] == 0.15
    assert server_figures(before, {}) == {}
    idle = server_figures(after, after)
    assert (idle["tokens"], idle["acceptance_length"], idle["judged_share"]) == (0, None, None)


def row(rule: str, value: float, speed: float | None, **changes: Any) -> dict[str, Any]:
    same = {"mean": 1.0, "p50": 2.0, "p90": 3.0, "p99": 4.0}
    made: dict[str, Any] = {
        "rule": rule,
        "draft_len": None,
        "mode": "concurrency",
        "value": value,
        "tokens_per_s": speed,
        "ttft_ms": same,
        "itl_ms": same,
        "tpot_ms": same,
        "latency_ms": same,
        "user_tokens_per_s": same,
        "server": {"acceptance_length": None, "judged_share": None},
    }
    return made | changes


def document(*rows: dict[str, Any], **provenance: Any) -> dict[str, Any]:
    source = dict.fromkeys(("cpu", "gpu", "git_sha", "date", "threads"), "x")
    source |= {"deployment": "d.yaml", "prompts": 3, "max_tokens": 8, "perf_analyzer": "2.51.0"}
    return {"results": list(rows), "provenance": source | provenance}


JUDGED = {"server": {"acceptance_length": 2.5, "judged_share": 0.125}}


def test_a_report_names_the_load_at_which_a_rule_is_slowest(tmp_path: Path) -> None:
    made = document(
        row("none", 1, 50.0),
        row("judge", 1, 100.0, **JUDGED),
        row("none", 8, 200.0),
        row("judge", 8, 190.0, **JUDGED),
        {"rule": "judge", "draft_len": None, "mode": "request_rate", "value": 9, "error": "busy"},
    )
    assert report.verdicts(made) == ["judge / none: 0.95 at least, at 8 streams"]
    times = ["2", "3", "4", "2.0", "3.0", "4.0", "2.0", "3.0", "4.0"]
    lines = report.lines(made)
    assert lines[1] == ["1 stream", "judge", "2.00", "100.0", "2.0", *times, "2.50", "12%"]
    assert lines[4] == ["9/s", "judge", "busy"]
    assert all(len(line) in (3, len(report.HEADINGS)) for line in lines)
    text = report.markdown(made).splitlines()
    assert text[0] == "d.yaml, 3 prompts, up to 8 new tokens, perf_analyzer 2.51.0; times in ms."
    assert len({line.count("|") for line in text if line.startswith("|")}) == 1
    load.write(made, tmp_path / "r.v1")
    assert read_report(tmp_path / "r.v1.json") == made
    assert (tmp_path / "r.v1.png").read_bytes().startswith(b"\x89PNG")
    assert plots.AXES.keys() == {"concurrency", "request_rate"}


def test_two_reports_are_compared_where_both_have_a_point() -> None:
    before = document(row("judge", 1, 100.0, **JUDGED), row("none", 1, 10.0))
    after = document(
        row("judge", 1, 125.0, ttft_ms={"p50": 1.0}, server={}), row("judge", 2, 1.0), cpu="y"
    )
    made = compared(before, after)
    (one,) = made["results"]
    assert (one["rule"], one["mode"], one["value"]) == ("judge", "concurrency", 1)
    assert one["tok/s"] == {"before": 100.0, "after": 125.0, "ratio": 1.25}
    assert one["TTFT p50"] == {"before": 2.0, "after": 1.0, "ratio": 0.5}
    assert one["acceptance length"] == {"before": 2.5, "after": None, "ratio": None}
    assert made["differences"] == ["cpu: x, then y"]
    with pytest.raises(JudgeClientError, match="no point in common"):
        compared(before, document(row("strict", 1, 1.0)))


CURVES = {
    1: {0: 76.0, 1: 108.0, 2: 118.0, 3: 131.0},
    2: {0: 133.0, 1: 160.0, 2: 170.0, 3: 158.0},
    4: {0: 233.0, 1: 258.0, 2: 271.0, 3: 260.0},
    8: {0: 335.0, 1: 336.0, 2: 330.0, 3: 342.0},
    16: {0: 400.0, 1: 380.0, 2: 300.0, 3: 200.0},
}


def test_the_schedule_of_measured_curves() -> None:
    best = schedule.choices(CURVES, 0.02)
    assert best == {1: 3, 2: 2, 4: 2, 8: 3, 16: 0}  # 342 is 2.09 % more than 335
    assert schedule.choices(CURVES, 0.03)[8] == 0
    assert schedule.schedule(best) == {1: 3, 4: 2, 8: 3, 16: 0}
    assert schedule.schedule({1: 2, 2: 2, 3: 2}) == {3: 2}
    assert schedule.line({4: 2, 1: 3}) == "draft_len_schedule: {1: 3, 4: 2}"


def test_of_equals_the_shortest_draft_is_chosen() -> None:
    assert schedule.choices({1: {0: 10.0, 2: 20.0, 1: 20.0}}, 0.0) == {1: 1}
    assert schedule.choices({1: {0: 10.0, 1: 10.0}}, 0.0) == {1: 0}


def tuned_rows(alone: float) -> list[dict[str, Any]]:
    rows = [row("none", 4, alone)]
    return rows + [row("judge", 4, speed, draft_len=k) for k, speed in CURVES[4].items()]


def test_drafting_must_beat_the_target_alone_too() -> None:
    made = tune.chosen(tuned_rows(235.0), 0.02)
    assert made["draft_len_schedule"] == {4: 2}
    assert made["curves"] == {4: {"none": 235.0, "0": 233.0, "1": 258.0, "2": 271.0, "3": 260.0}}
    assert tune.chosen(tuned_rows(270.0), 0.02)["draft_len_schedule"] == {4: 0}
    with pytest.raises(JudgeClientError, match=r"^busy$"):
        tune.chosen([{"error": "busy"}], 0.02)


def test_the_schedule_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(
        "name: d # draft_len_schedule: {}\ndraft_len_schedule: {1: 3, 8: 2} # why\nx: 1"
    )
    schedule.write({2: 1, 8: 0}, path)
    assert path.read_text() == (
        "name: d # draft_len_schedule: {}\ndraft_len_schedule: {2: 1, 8: 0} # why\nx: 1"
    )
    for text in ("name: d\n", "draft_len_schedule:\n  1: 3\n"):
        path.write_text(text)
        with pytest.raises(JudgeClientError, match=r"add `draft_len_schedule: \{2: 1\}` by hand"):
            schedule.write({2: 1}, path)
        assert path.read_text() == text


def test_the_deployment_that_is_measured_is_the_same_but_for_its_schedule(tmp_path: Path) -> None:
    """It names the same files, wherever it is written."""
    path, usual = tmp_path / "free.yaml", load_deployment(ROOT / "configs/demo.yaml")
    path.write_text(tune.without_schedule(usual, 5, 16))
    free = load_deployment(path)
    assert usual.draft_len_schedule
    changed = {"draft_len_schedule": {}, "max_draft_len": 5}
    assert free == usual.model_copy(
        update=changed | {"limits": usual.limits.model_copy(update={"max_sequences": 16})}
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run", "--concurrency", "1,x"], "concurrency: 'x' is not in 1..256"),
        (["run", "--concurrency", "0"], "concurrency: '0' is not in 1..256"),
        (["run", "--concurrency", ""], "concurrency: name at least one, or a --request-rate"),
        (["run", "--request-rate", "nan"], "request-rate: 'nan' is no rate in (0, 100000]"),
        (["run", "--rules", ","], "rules: name at least one"),
        (["run", "-u", "localhost"], "url: 'localhost' is not HOST:PORT"),
        (["run", "-u", "127.0.0.1:9"], "127.0.0.1:9: no server answers there"),
        (["run", "--out", "/nowhere/x"], "out: no folder /nowhere"),
        (["compare", "/nowhere.json", "/nowhere.json"], "compare: cannot read /nowhere.json"),
        (["tune", "--config", "/nowhere.yaml"], "config: no file /nowhere.yaml"),
        (["tune", "--active", "9"], "active: 9 is more than limits.max_sequences 8"),
        (["tune", "--write", "--max-draft-len", "4"], "max-draft-len: 4 is above the file's"),
        ([], "Missing command."),
    ],
)
def test_a_users_mistake_is_one_line(
    arguments: list[str],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["perf", *arguments])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        run([load.run, compare, tune.tune], "perf")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"perf: {error}")


def test_the_recipes_are_prepared(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clients.load.perf.recipes.prepare", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith(str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [one["text"] for one in rows] == read_prompts(None)
    tokenizer, text = Tokenizer(tmp_path), "The 2 of us,<|im_end|> said"
    assert tokenizer.encode(text) == Tokenizer(resolve(DEMO_TARGET)).encode(text)
