"""The audit: its log, the comparison on hand-built answers, and both ends for real."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_deployment
from triton_world import Serving, ask, ids, wait_for
from typer.testing import CliRunner, Result

from judge_decoding.commands.main import app
from judge_decoding.config import AuditConfig, load_deployment
from judge_decoding.decoding.contracts import Acceptance, Sampling
from judge_decoding.decoding.loop import Result as Decoded
from judge_decoding.decoding.loop import Update
from judge_decoding.decoding.sequence import AcceptanceRecord, Request
from judge_decoding.errors import UserError
from judge_decoding.evaluation.audit import Audited, audit, report
from judge_decoding.evaluation.parsers import last_number
from judge_decoding.pipeline import load_pipeline
from judge_decoding.serving.audit_log import AuditLog, Logged, read_log

pytestmark = pytest.mark.servers

JUDGE = Acceptance("judge", threshold=0.5)


class Listener:
    """The listener that the log wraps; it records what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def updated(self, update: Update, result: Decoded | None) -> None:
        self.told.append((update, result))

    def failed(self, message: str) -> None:
        self.told.append(message)

    def is_cancelled(self) -> bool:
        return True


def decoded(ids: list[int], origins: str = "", reason: Any = "length") -> Decoded:
    """`origins` has a, j or t per token; without it all tokens are the target's."""
    names = {"a": "aligned", "j": "judged", "t": "target"}
    provenance: Any = [names[o] for o in origins or "t" * len(ids)]
    return Decoded("", ids, reason, provenance, [None] * len(ids), AcceptanceRecord())


def finish(log: AuditLog, request: Request, result: Decoded) -> Listener:
    listener = Listener()
    update = Update(0, [], "", result.finish_reason)
    log.watch(request, listener).updated(update, result)
    assert listener.told == [(update, result)]
    return listener


def test_the_log_holds_what_decoding_again_needs(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(AuditConfig(log=path, share=1.0), clock=lambda: 12.5)
    request = Request([1, 2], 9, JUDGE, stop=("x",), ignore_end=True, min_tokens=2, text=False)
    finish(log, request, decoded([5, 6, 7], "ajt"))
    finish(log, Request([3], 1, Acceptance("topk")), decoded([4], "j", "stop"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = read_log(path).entries
    assert first == Logged(
        time=12.5,
        rule="judge",
        threshold=0.5,
        prompt_ids=[1, 2],
        token_ids=[5, 6, 7],
        provenance=["aligned", "judged", "target"],
        max_tokens=9,
        min_tokens=2,
        stop_words=["x"],
        ignore_eos=True,
        finish_reason="length",
    )
    assert (second.rule, second.finish_reason, second.stop_words) == ("topk", "stop", [])


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (Request([1], 9, Acceptance("strict")), decoded([5])),
        (Request([1], 9, Acceptance("none")), decoded([5])),
        (Request([1], 9, JUDGE, Sampling(temperature=1.0)), decoded([5])),
        (Request([1], 9, JUDGE), decoded([5], reason="cancelled")),
        (Request([1], 9, JUDGE), decoded([5], reason="deadline")),
        (Request([1], 9, JUDGE), decoded([])),
    ],
)
def test_what_an_audit_cannot_decide_is_not_written(
    tmp_path: Path, request_: Request, result: Decoded
) -> None:
    finish(AuditLog(AuditConfig(log=tmp_path / "audit.jsonl", share=1.0)), request_, result)
    assert list(tmp_path.iterdir()) == []


def test_without_a_section_the_listener_is_left_alone() -> None:
    listener = Listener()
    assert AuditLog(None).watch(Request([1], 9, JUDGE), listener) is listener


def test_the_log_passes_everything_on(tmp_path: Path) -> None:
    listener = Listener()
    log = AuditLog(AuditConfig(log=tmp_path / "audit.jsonl", share=1.0))
    watched = log.watch(Request([1], 9, JUDGE), listener)
    watched.updated(Update(0, [], "", None), None)
    watched.failed("broken")
    assert watched.is_cancelled() and len(listener.told) == 2
    assert list(tmp_path.iterdir()) == []  # only ends of answers are written


def test_the_share_is_a_share_and_the_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(AuditConfig(log=path, share=0.25, max_mb=0.01), seed=1)
    request, result = Request([1] * 20, 9, JUDGE), decoded([5] * 5)
    listeners = [log.watch(request, Listener()) for _ in range(400)]
    sampled = sum(not isinstance(listener, Listener) for listener in listeners)
    assert 70 <= sampled <= 130
    times = iter(range(10_000))
    log = AuditLog(AuditConfig(log=path, share=1.0, max_mb=0.01), clock=lambda: next(times))
    for _ in range(200):
        finish(log, request, result)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2 and max(sizes) <= 5000
    # The newest, in order, none lost in between.
    stamps = [one.time for one in read_log(path).entries]
    assert stamps == [float(n) for n in range(200 - len(stamps), 200)] and len(stamps) > 20


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(AuditConfig(log=tmp_path / "nowhere" / "audit.jsonl", share=1.0))
    for _ in range(3):
        finish(log, Request([1], 9, JUDGE), decoded([5]))
    assert len(caplog.records) == 1 and "lines are lost" in caplog.text


def line(**changes: Any) -> str:
    values = {"time": 1.0, "rule": "judge", "prompt_ids": [1], "token_ids": [2], "max_tokens": 4}
    values |= {"provenance": ["judged"], "finish_reason": "length"}
    return json.dumps(values | changes)


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(f"{line()}\n{line(time=2.0)[:20]}")
    assert [one.time for one in read_log(path).entries] == [1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "audit.jsonl:1: time: Field required"),
        (f"{line()[:9]}\nnonsense\n", "holds no entry, only 2 lines that are no JSON"),
        (f"{line(provenance=[])}\n", "provenance needs one entry a token"),
        (f"{line(extra=1)}\n", "extra: unknown key"),
    ],
)
def test_a_bad_log_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_log(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no log"):
        read_log(tmp_path / "another.jsonl")


def audited(ours: list[int], standard: list[int], origins: str = "", at: float = 0.0) -> Audited:
    logged = Logged.model_validate_json(
        line(token_ids=ours, provenance=decoded(ours, origins).provenance, time=at)
    )
    return Audited(logged, standard)


@pytest.mark.parametrize(
    ("ours", "origins", "standard", "place", "agreement", "at_judged"),
    [
        ([1, 2, 3], "ajt", [1, 2, 3], None, 1.0, False),
        ([1, 2, 3], "ajt", [1, 9, 3], 1, 1 / 3, True),
        ([1, 2, 3], "ajt", [9, 2, 3], 0, 0.0, False),
        ([1, 2], "aj", [1, 2, 3, 4], 2, 0.5, False),  # ours ended, but none of its tokens differs
        ([1, 2, 3, 4], "aajj", [1, 2], 2, 0.5, True),
    ],
)
def test_where_two_answers_part(
    ours: list[int],
    origins: str,
    standard: list[int],
    place: int | None,
    agreement: float,
    at_judged: bool,
) -> None:
    one = audited(ours, standard, origins)
    assert one.first_difference == place
    assert one.agreement == pytest.approx(agreement)
    assert one.at_judged is at_judged


def test_the_report_counts_by_window() -> None:
    found = [
        audited([1, 2], [1, 2], "at", at=100.0),
        audited([1, 7], [1, 8], "aj", at=50.0),
        audited([3, 4], [5, 4], "tt", at=3700.0),
    ]
    made = report(
        found, logged=4, window_s=3600, parse=last_number, decode=lambda ids: f"is {ids[-1]}"
    )
    first, second = made["windows"]
    assert (first["start"], second["start"]) == (
        "1970-01-01T00:00:00+00:00",
        "1970-01-01T01:00:00+00:00",
    )
    assert {k: first[k] for k in ("requests", "tokens", "judged_tokens", "judged_share")} == {
        "requests": 2,
        "tokens": 4,
        "judged_tokens": 1,
        "judged_share": 0.25,
    }
    assert (first["identical"], first["agreement"]) == (1, 0.75)
    assert (first["diverged_at_judged"], first["diverged_elsewhere"]) == (1, 0)
    assert (first["answers_compared"], first["answers_changed"]) == (2, 1)
    assert (second["diverged_at_judged"], second["diverged_elsewhere"]) == (0, 1)
    assert second["answers_changed"] == 0 and second["changed_ci"][0] == 0
    total = made["total"]
    assert (total["requests"], total["answers_changed"], made["logged"]) == (3, 1, 4)
    empty = report([], logged=0, window_s=1, parse=last_number, decode=str)
    assert empty["windows"] == [] and empty["total"]["agreement"] is None


def test_the_audit_waits_for_idle_time_and_gives_up() -> None:
    busy = [True, True, False, False, *[True] * 100]

    class Deployed:
        def is_idle(self) -> bool:
            return not busy.pop(0)

        def decode(self, logged: Logged) -> list[int]:
            return [2]

    slept: list[float] = []
    logged = [Logged.model_validate_json(line(time=float(n))) for n in range(4)]
    found = list(audit(logged, Deployed(), wait_s=1.0, sleep=slept.append))
    assert len(found) == 2 and sum(slept[:2]) == pytest.approx(0.4)
    assert 1.0 <= sum(slept[2:]) < 1.4


# Both ends, on the tiny pair.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_draft: Path) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    write_deployment(
        folder,
        tiny_target,
        tiny_draft,
        acceptance={"rule": "judge"},
        audit={"log": "audit.jsonl", "share": 1.0},
    )
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return parsed


def test_served_requests_are_logged_and_audited(folder: Path) -> None:
    """A real server writes the log; the audit asks it again, and so does another process."""
    config, log = folder / "deployment.yaml", folder / "audit.jsonl"
    with Serving(config, folder) as server:
        wait_for(log.exists, "the warm-up's line")  # written once its answer is through
        before = len(read_log(log).entries)
        answers = [
            ids(ask(server, text_input=f"Count to {n}", max_tokens=24, stop_words=["zz"]))
            for n in range(4)
        ]
        ask(server, text_input="Another", max_tokens=8, acceptance_rule="strict")
        wait_for(lambda: len(read_log(log).entries) == before + 4, "the log")
        _http, grpc, metrics = server.ports
        live = document(
            run(
                "--config", config, "-u", f"127.0.0.1:{grpc}", "--metrics", f"127.0.0.1:{metrics}",
                "--limit", "4", "--json",
            )
        )  # fmt: skip
        assert len(read_log(log).entries) == before + 4  # the audit's own requests are not lossy
    logged = read_log(log).entries[-4:]
    assert [one.token_ids for one in logged] == answers
    assert all(abs(one.time - time.time()) < 3600 for one in logged)
    total = live["total"]
    assert (live["audited"], total["requests"]) == (4, 4)
    assert total["tokens"] == sum(map(len, answers))
    # In float32, answers differ only from where the judge overrode the target.
    assert total["diverged_elsewhere"] == 0 and total["diverged_at_judged"] >= 1
    assert total["identical"] + total["diverged_at_judged"] == 4
    assert total["judged_tokens"] == sum(one.provenance.count("judged") for one in logged)
    here = document(run("--config", config, "--limit", "4", "--json"))
    alone = document(run("--config", config, "--limit", "4", "--rule", "none", "--json"))
    assert here["total"] == alone["total"] == total
    assert here["windows"] == live["windows"]


def test_an_audit_of_the_standard_rule_finds_nothing(folder: Path, tmp_path: Path) -> None:
    """A judge at threshold 1 is the standard rule."""
    config = load_deployment(folder / "deployment.yaml")
    pipeline = load_pipeline(config)
    path = tmp_path / "audit.jsonl"
    log = AuditLog(AuditConfig(log=path, share=1.0))
    for n in range(3):
        ids = pipeline.tokenizer.encode(f"Say {n}")
        request = Request(ids, 16, Acceptance("judge", threshold=1.0))
        finish(log, request, pipeline.decoder.generate([request])[0])
    result = run("--config", folder / "deployment.yaml", "--log", path, "--json")
    total = document(result)["total"]
    assert (total["identical"], total["agreement"], total["judged_tokens"]) == (3, 1.0, 0)
    assert "3 of 3 logged requests decoded again" in result.stdout and "…" not in result.stdout


def test_too_many_changed_answers_are_an_exit_code(folder: Path, tmp_path: Path) -> None:
    """The log has answers that no model would give, so all of them change by `exact`."""
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(f"{line(token_ids=[66], max_tokens=1)}\n" for _ in range(12)))
    common = ("--config", folder / "deployment.yaml", "--log", path, "--parser", "exact")
    assert run(*common, "--max-changed", "0.5").exit_code == 1
    assert run(*common, "--max-changed", "0.9").exit_code == 0  # 12 cannot show as much
    assert run(*common).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--parser", "guess"), "parser: unknown 'guess'"),
        (("--rule", "judge"), "rule: 'judge' is not strict or none"),
        (("--window", "0"), "window: 0 s"),
        (("--log", "/nowhere/log"), "audit: no log /nowhere/log"),
        (("--url", "http://x"), "url: 'http://x' is not HOST:PORT"),
        (("--url", "127.0.0.1:9"), "audit: no metrics at http://127.0.0.1:9/metrics"),
        (("--config", "/nowhere.yaml"), "config: no file"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, tmp_path: Path, arguments: tuple[str, str], message: str
) -> None:
    (tmp_path / "log").write_text(f"{line()}\n")
    options = {"--config": str(folder / "deployment.yaml"), "--log": str(tmp_path / "log")}
    if arguments[1].endswith(":9"):
        options["--metrics"] = arguments[1]  # the discard port: nobody listens
    options |= dict([arguments])
    result = run(*(part for pair in options.items() for part in pair))
    assert result.exit_code == 2, result.output
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_no_audit_section_is_one_line(folder: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((folder / "deployment.yaml").read_text())
    del values["audit"]
    values["judge"] = {"path": str(folder / "judge.safetensors")}
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(values))
    result = run("--config", tmp_path / "deployment.yaml")
    assert result.exit_code == 2 and "has no audit section" in result.stderr
    assert os.listdir(tmp_path) == ["deployment.yaml"]
