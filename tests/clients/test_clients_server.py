"""The clients against a real Triton server with tiny models, compared with the loop here.

The whole file uses one server. In float32 its answers are exactly those of the loop here.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from clients import server
from clients.load import mixed_requests, overload, soak
from judge_client.aio import AsyncJudgeClient
from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError, ServerBusy
from judge_client.metrics import read_metrics, read_page
from judge_client.wire import Answer, GenerateRequest
from judge_decoding import provenance
from judge_decoding.config import load_deployment
from judge_decoding.decoding.contracts import Sampling
from judge_decoding.decoding.loop import Result
from judge_decoding.decoding.sequence import Request as LoopRequest
from judge_decoding.pipeline import Pipeline, load_pipeline
from tests.conftest import write_judge
from tests.faults.network import Proxy

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0
LONG = GenerateRequest("On and on", rule="none", max_tokens=7900, ignore_eos=True)
"""Takes seconds, with one token per round."""


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_draft: Path
) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for model in (tiny_target, tiny_draft):  # room for answers that take seconds
        shutil.copytree(model, folder / model.name)
        config = json.loads((model / "config.json").read_text())
        config["max_position_embeddings"] = 8192
        (folder / model.name / "config.json").write_text(json.dumps(config))
    write_judge(folder / "judge.safetensors", folder / "target")
    values = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": "target"},
        "draft": {"model": "draft"},
        "judge": {"path": "judge.safetensors"},
        "acceptance": {"rule": "judge"},
        "max_draft_len": 4,
        "limits": {"max_sequences": 4, "max_context": 8192, "max_tokens": 8000},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def running(deployment: Path) -> Iterator[server.ServerProcess]:
    with server.serving(deployment) as started:
        yield started


@pytest.fixture(scope="module")
def pipeline(deployment: Path) -> Pipeline:
    return load_pipeline(load_deployment(deployment))


@pytest.fixture
def client(running: server.ServerProcess) -> Iterator[JudgeClient]:
    with JudgeClient(running.url, timeout=WAIT_S) as made:
        yield made


def in_process(pipeline: Pipeline, request: GenerateRequest) -> Result:
    """The loop's result for the same request."""
    tokenizer, text = pipeline.tokenizer, request.prompt
    assert isinstance(text, str)
    if request.messages is not None:
        ids = tokenizer.chat([dict(message) for message in request.messages])
    elif request.chat:
        ids = tokenizer.chat([{"role": "user", "content": text}])
    else:
        ids = tokenizer.encode(text)
    assert request.max_tokens is not None
    sampling = Sampling(
        request.temperature or 0.0, request.top_k or 0, request.top_p or 1.0, request.seed or 0
    )
    acceptance = pipeline.deployment.default_acceptance(
        rule=request.rule, threshold=request.threshold
    )
    asked = LoopRequest(
        ids,
        request.max_tokens,
        acceptance,
        sampling,
        request.max_draft_len,
        tuple(request.stop),
        ignore_end=bool(request.ignore_eos),
    )
    return pipeline.decoder.generate([asked])[0]


def assert_same(answer: Answer, expected: Result) -> None:
    """`answer` (with all outputs asked for) equals the loop's, token by token."""
    assert [token.id for token in answer.tokens] == expected.token_ids
    assert [token.provenance for token in answer.tokens] == expected.provenance
    scores = [math.nan if s is None else s for s in expected.judge_scores]
    got = [math.nan if token.score is None else token.score for token in answer.tokens]
    # Rounding depends on how many sequences share a pass.
    assert got == pytest.approx(scores, abs=1e-4, nan_ok=True)
    assert answer.text == expected.text
    assert "".join(token.text for token in answer.tokens) == expected.text
    assert answer.finish_reason == expected.finish_reason
    assert answer.num_output_tokens == len(expected.token_ids)
    assert answer.record == expected.record.to_dict()


def finished(running: server.ServerProcess, reason: str) -> int:
    """Requests that ended for this reason so far, as counted by the server."""
    text = read_page(running.metrics_url, fresh=True)
    name = "judge_decoding_request_success_total"
    found = re.search(rf'^{name}{{.*"{reason}".*}} (\S+)$', text, re.M)
    assert found is not None
    return int(float(found[1]))


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def until_idle(running: server.ServerProcess) -> None:
    def idle() -> bool:
        metrics = read_metrics(running.metrics_url, fresh=True)
        return all(metrics[name] == 0 for name in soak.BUSY)

    until(idle, "sequences are active still")


RULES = ["none", "strict", "rejection", "judge"]
EVERYTHING = {"provenance": True, "judge_scores": True, "record": True}
REQUESTS = [
    GenerateRequest("The sea", max_tokens=40, **EVERYTHING),
    GenerateRequest("What is it?", chat=True, max_tokens=33, rule="strict", **EVERYTHING),
    GenerateRequest("The sea", max_tokens=25, rule="none", **EVERYTHING),
    GenerateRequest("The sea", max_tokens=40, rule="judge", threshold=1.0, **EVERYTHING),
    GenerateRequest(
        "The sea", max_tokens=40, rule="judge", threshold=0.1, max_draft_len=2, **EVERYTHING
    ),
    GenerateRequest(
        "a b c", max_tokens=30, rule="rejection", temperature=0.8, seed=2**40, **EVERYTHING
    ),
    GenerateRequest(
        "a b c", max_tokens=30, rule="none", temperature=1.2, top_k=9, top_p=0.9, **EVERYTHING
    ),
    GenerateRequest("x", max_tokens=50, stop=("e", "qq"), ignore_eos=True, **EVERYTHING),
    GenerateRequest(
        messages=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Grüezi"},
            {"role": "user", "content": "And now?"},
        ],
        max_tokens=20,
        **EVERYTHING,
    ),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_whole_and_streamed_answers_are_the_loops(
    client: JudgeClient, pipeline: Pipeline, request_: GenerateRequest
) -> None:
    expected = in_process(pipeline, request_)
    assert_same(client.generate(request_), expected)
    streamed, chunks = Answer(), list(client.stream(request_))
    for chunk in chunks:
        assert "".join(token.text for token in chunk.tokens) == chunk.text
        streamed.add(chunk)
    assert_same(streamed, expected)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    rounds = sum(1 for origin in expected.provenance if origin == "target")
    assert len(chunks) >= rounds


def test_nothing_more_comes_than_was_asked_for(client: JudgeClient) -> None:
    (chunk,) = client.stream(GenerateRequest("The sea", max_tokens=1))
    assert (chunk.tokens, chunk.record) == ([], None)
    assert (chunk.num_output_tokens, chunk.finish_reason) == (1, "length")


def test_one_client_serves_many_threads(client: JudgeClient, pipeline: Pipeline) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client.generate, REQUESTS))
    for request, answer in zip(REQUESTS, answers, strict=True):
        assert_same(answer, in_process(pipeline, request))


def test_sixteen_streams_of_one_event_loop(
    running: server.ServerProcess, pipeline: Pipeline
) -> None:
    """Four times as many as there are slots; each equals the loop's answer."""
    requests = [replace(REQUESTS[i % len(REQUESTS)], max_tokens=20 + i) for i in range(16)]

    async def stream(client: AsyncJudgeClient, request: GenerateRequest) -> Answer:
        answer = Answer()
        async for chunk in client.stream(request):
            answer.add(chunk)
        return answer

    async def everything() -> list[Answer]:
        async with AsyncJudgeClient(running.url, timeout=WAIT_S) as client:
            return await asyncio.gather(*(stream(client, request) for request in requests))

    for request, answer in zip(requests, asyncio.run(everything()), strict=True):
        assert_same(answer, in_process(pipeline, request))


def test_a_cancelled_stream_says_so(running: server.ServerProcess, client: JudgeClient) -> None:
    before, answer = finished(running, "cancelled"), Answer()
    for number, chunk in enumerate(client.stream(LONG, request_id="mine")):
        answer.add(chunk)
        if number == 2:
            client.cancel("mine")
    assert answer.finish_reason == "cancelled"
    assert 3 <= answer.num_output_tokens < 7900
    until(lambda: finished(running, "cancelled") == before + 1, "not counted")
    until_idle(running)


def test_cancelling_what_does_not_run_does_nothing(client: JudgeClient) -> None:
    client.cancel("nobody")
    assert client.generate(GenerateRequest("x", max_tokens=2)).num_output_tokens == 2


def test_leaving_a_stream_cancels_it(running: server.ServerProcess, client: JudgeClient) -> None:
    before = finished(running, "cancelled")
    for _ in client.stream(LONG):
        break
    until(lambda: finished(running, "cancelled") == before + 1, "still running")
    until_idle(running)


def test_a_time_out_cancels(running: server.ServerProcess, client: JudgeClient) -> None:
    before = finished(running, "cancelled")
    with JudgeClient(running.url, timeout=1) as hasty:
        hasty.check()  # connected: what takes long is the answer
        with pytest.raises(JudgeClientError, match=r"no answer within 1 s") as caught:
            hasty.generate(LONG)
        assert caught.value.status == "DEADLINE_EXCEEDED"
        until(lambda: finished(running, "cancelled") == before + 1, "still running")
    until_idle(running)


async def becomes(running: server.ServerProcess, count: int) -> None:
    """Waits until this many requests run."""
    while True:
        page = await asyncio.to_thread(read_metrics, running.metrics_url)
        if page["judge_decoding_num_requests_running"] == count:
            return
        await asyncio.sleep(0.05)


def test_leaving_or_cancelling_a_task_cancels(running: server.ServerProcess) -> None:
    async def leave() -> None:
        async with AsyncJudgeClient(running.url, timeout=WAIT_S) as client:
            stream = client.stream(LONG)
            await anext(stream)
            await stream.aclose()
            await becomes(running, 0)
            whole = asyncio.create_task(client.generate(LONG))
            await becomes(running, 1)
            whole.cancel()
            with pytest.raises(asyncio.CancelledError):
                await whole

    before = finished(running, "cancelled")
    asyncio.run(leave())
    until(lambda: finished(running, "cancelled") == before + 2, "still running")
    until_idle(running)


def test_a_lost_connection_cancels_once_there_is_another(running: server.ServerProcess) -> None:
    """Regression: after a lost connection the answer still ran to its end."""
    before = finished(running, "cancelled")
    with Proxy(int(running.url.rpartition(":")[2])) as proxy:
        with JudgeClient(proxy.url, timeout=WAIT_S) as client:
            chunks = client.stream(LONG)
            next(chunks)
            proxy.cut()
            with pytest.raises(JudgeClientError) as lost:
                list(chunks)
            assert lost.value.status == "UNAVAILABLE"
        until(lambda: finished(running, "cancelled") == before + 1, "still running")

        async def leave() -> None:
            async with AsyncJudgeClient(proxy.url, timeout=WAIT_S) as client:
                # A whole answer has no first response that would show that it is being written.
                whole = asyncio.create_task(client.generate(LONG))
                await becomes(running, 1)
                proxy.cut()
                with pytest.raises(JudgeClientError) as lost:
                    await whole
                assert lost.value.status == "UNAVAILABLE"

        asyncio.run(leave())
        until(lambda: finished(running, "cancelled") == before + 2, "still running")
    until_idle(running)


def test_prompts_of_a_megabyte_stop_nobody(
    running: server.ServerProcess, client: JudgeClient
) -> None:
    """Regression: each was tokenized to its end before it was refused, and any number waited; other
    clients' requests, probes and cancels took as long as all of them."""
    huge = GenerateRequest("'" * 999_000, max_tokens=4)
    too_long = "prompt: more than 8192 tokens do not fit the context of 8192 with an answer; "
    refusals: list[JudgeClientError] = []

    def flood() -> None:
        try:
            client.generate(huge)
        except JudgeClientError as refused:
            refusals.append(refused)

    stream = client.stream(LONG)
    next(stream)
    with ThreadPoolExecutor(100) as pool:
        flooding = [pool.submit(flood) for _ in range(100)]
        until(lambda: len(refusals) > 10, "nothing is refused")
        stream.close()  # cancels
        while True:
            try:
                assert client.generate(GenerateRequest("x", max_tokens=2)).num_output_tokens == 2
                break
            except ServerBusy as busy:
                time.sleep(min(busy.retry_after_s, 1.0))
        for one in flooding:
            one.result()
    for refused in refusals:
        # 4 slots and a queue of 64.
        words = "server: RESOURCE_EXHAUSTED: 68 requests are waiting already (server.max_queue); "
        assert str(refused).startswith((too_long, words)), refused
    assert len(refusals) == 100
    until_idle(running)


@pytest.mark.parametrize("bad", mixed_requests.BAD, ids=range(len(mixed_requests.BAD)))
def test_a_bad_request_is_refused_in_words(client: JudgeClient, bad: GenerateRequest) -> None:
    with pytest.raises(JudgeClientError) as caught:
        client.generate(bad)
    assert caught.value.status is None
    assert re.match(
        r"(prompt|text_input|messages|max_tokens|rule|acceptance_rule|judge_threshold|temperature"
        r"|top_p|max_draft_len)\b",
        str(caught.value),
    )
    assert client.generate(GenerateRequest("x", max_tokens=1)).num_output_tokens == 1


def test_an_unknown_model_is_one_line(running: server.ServerProcess) -> None:
    with JudgeClient(running.url, model="nothing") as client:
        with pytest.raises(JudgeClientError, match="no model 'nothing' ready"):
            client.check()
        with pytest.raises(JudgeClientError, match="unknown model"):
            client.generate(GenerateRequest("x"))
    done = command("generate", running, "--prompt", "x", "--model", "nothing")
    assert done.returncode == 2
    assert done.stderr == f"generate: {running.url}: the server has no model 'nothing' ready\n"


def command(module: str, running: server.ServerProcess, *arguments: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", f"clients.{module}", "-u", running.url, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


@pytest.mark.parametrize("how", [[], ["--stream"]])
def test_the_generate_command(
    running: server.ServerProcess, pipeline: Pipeline, how: list[str]
) -> None:
    """Marks surround every run, and the JSON says the same."""
    asked = ["--prompt", "The sea", "--no-chat", "--max-tokens", "40", "--threshold", "0.1"]
    done = command("generate", running, *asked, "--json", *how)
    assert (done.returncode, done.stderr) == (0, "")
    shown, last = done.stdout.rstrip("\n").rsplit("\n", 1)
    expected = in_process(
        pipeline, GenerateRequest("The sea", max_tokens=40, rule="judge", threshold=0.1)
    )
    (result,) = json.loads(last)["results"]
    assert result["text"] == expected.text
    assert result["token_ids"] == expected.token_ids
    assert result["provenance"] == expected.provenance
    assert result["finish_reason"] == expected.finish_reason
    assert result["speculative_decoding"] == expected.record.to_dict()
    assert set(expected.provenance) >= {"judged", "target"}
    assert shown.count("⟦") == shown.count("⟧") > 0
    assert f"{len(expected.token_ids)} tokens, " in shown


def test_a_refused_command_is_one_line(running: server.ServerProcess) -> None:
    done = command("generate", running, "--prompt", "x", "--max-tokens", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("generate: max_tokens: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_frees_the_slot(running: server.ServerProcess) -> None:
    before = finished(running, "cancelled")
    asked = [
        "--prompt",
        "On and on",
        "--rule",
        "none",
        "--max-tokens",
        "7900",
        "--stream",
        "--json",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "clients.generate", "-u", running.url, *asked],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # it streams
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, err) == (130, "")
    (result,) = json.loads(out.splitlines()[-1])["results"]
    assert result["finish_reason"] == "cancelled"
    assert 0 < len(result["token_ids"]) < 7900
    until(lambda: finished(running, "cancelled") == before + 1, "not counted")
    until_idle(running)


class Terminal:
    """A chat client on a pseudo-terminal."""

    def __init__(self, running: server.ServerProcess, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clients.chat", "-u", running.url, *arguments],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k != "NO_COLOR"}
            | {"TERM": "xterm-256color", "COLUMNS": "200"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._fd = ours
        self.seen = ""

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def wait_for(self, pattern: str) -> str:
        """All that is shown up to the next match of the pattern."""
        while not (found := re.search(pattern, self.seen, re.S)):
            assert select.select([self._fd], [], [], WAIT_S)[0], f"no {pattern!r} in {self.seen!r}"
            try:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:  # the other side has closed
                raise AssertionError(f"no {pattern!r} in {self.seen!r}") from None
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def close(self) -> int:
        os.close(self._fd)
        return self.process.wait(WAIT_S)


def visible(text: str) -> str:
    """The text without colours, keeping only characters that no terminal changes."""
    return re.sub(r"[^!-~]", "", re.sub(r"\x1b\[[0-9;]*m", "", text))


def test_a_chat_on_a_terminal(running: server.ServerProcess, pipeline: Pipeline) -> None:
    """Two turns in colour, an answer stopped by Ctrl-C, a fresh start, /quit."""
    chat = Terminal(running, "--max-tokens", "12", "--rule", "strict")
    legend = chat.wait_for(r"\n> ")
    assert "\x1b[36mtarget" in legend
    history: list[dict[str, str]] = []
    for text in ("Hi", "And then?"):
        chat.type(text)
        shown = chat.wait_for(r"\n> ")
        history.append({"role": "user", "content": text})
        expected = in_process(
            pipeline, GenerateRequest(messages=history, max_tokens=12, rule="strict")
        )
        history.append({"role": "assistant", "content": expected.text})
        assert f"{len(expected.token_ids)} tokens, " in shown
        assert visible(expected.text) in visible(shown)
        assert "\x1b[3" in shown
    chat.type("/new")
    chat.wait_for(r"\n> ")
    chat.type("/quit")
    assert chat.process.wait(WAIT_S) == 0
    chat.close()


def test_ctrl_c_in_a_chat_cancels_the_answer_alone(running: server.ServerProcess) -> None:
    before = finished(running, "cancelled")
    chat = Terminal(running, "--max-tokens", "7900", "--rule", "none")
    chat.wait_for(r"\n> ")
    chat.type("Hi")
    chat.wait_for(r"\x1b\[36m")  # it streams
    chat.process.send_signal(signal.SIGINT)
    chat.wait_for(r"tok/s, cancelled.*\n> ")
    until(lambda: finished(running, "cancelled") == before + 1, "not counted")
    chat.type("/new")
    chat.wait_for(r"\n> ")
    chat.type("/quit")
    assert chat.process.wait(WAIT_S) == 0
    chat.close()


@pytest.mark.parametrize("kind", soak.WEIGHTS)
def test_every_kind_of_the_soaks_load(running: server.ServerProcess, kind: str) -> None:
    async def once(load: soak.SoakClients) -> None:
        async with AsyncJudgeClient(running.url, timeout=WAIT_S) as client:
            for _ in range(3):
                request = mixed_requests.draw(load.random, load.rules)
                await getattr(load, f"_{kind}")(client, request)

    asyncio.run(once(soak.SoakClients(running.url, RULES, Random(kind))))
    until_idle(running)


def test_a_short_soak_leaves_nothing_behind(running: server.ServerProcess) -> None:
    """Growth of memory takes longer to measure."""
    load = soak.SoakClients(running.url, RULES, Random(0))
    results = asyncio.run(soak.measure(running, load, clients=6, seconds=8.0))
    assert results["first_failures"] == []
    assert (results["failures"], results["stuck"]) == (0, 0)
    assert sum(results["requests"].values()) >= 6
    assert results["memory"]["warm_mb"] > 50
    assert len(results["memory"]["processes"]) >= 5  # launcher, Triton, three models


def test_an_overload_is_refused_or_answered_and_leaves_nothing(
    running: server.ServerProcess,
) -> None:
    """With 4 slots and a queue of 64, of 120 at once some are refused and all others answered."""

    async def burst() -> overload.OverloadClients:
        async with AsyncJudgeClient(running.url) as client:
            load = overload.OverloadClients(client, Random(0), max_tokens=40, deadline_ms=None)
            await asyncio.gather(*(load.ask() for _ in range(120)))
            return load

    load = asyncio.run(burst())
    assert load.failures == []
    ends = [one.reason for one in load.everything]
    assert ends.count("length") >= 68
    assert 1 <= ends.count("refused") == 120 - ends.count("length")
    until_idle(running)
    results = asyncio.run(
        overload.measure(
            running,
            seconds=2.0,
            phase_s=1.0,
            factor=1.5,
            max_tokens=12,
            deadline_ms=None,
            seed=0,
            progress=print,
        )
    )
    assert results["failures"] == 0, results["first_failures"]
    assert results["slots"] == 4
    assert results["recovery_s"] > 0
    assert results["offered_per_s"] == 1.5 * results["capacity_answers_per_s"] > 0
    for row in results["phases"].values():
        assert sum(row["ends"].values()) == row["requests"]
    assert results["phases"]["before"]["goodput_tokens_per_s"] > 0
    json.dumps(results, allow_nan=False)
    overload.print_report(
        {"max_tokens": 12, "results": results, "bounds": overload.bounds(results)}
        | {"provenance": provenance.collect()}
    )
    until_idle(running)


def test_the_server_benchmark_runs_through(
    running: server.ServerProcess, deployment: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "number {i}"}}\n' for i in range(5)))
    asked = ["--config", str(deployment), "--prompts", str(prompts), "--max-tokens", "8"]
    done = command("load.bench_server", running, *asked, "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["results"]["same_text"] == 1.0  # float32
    assert [len(rows) for rows in report["samples"].values()] == [5, 5]
    assert len(report["goals"]) == 4
    assert report["provenance"]["rule"] == "judge"
    assert "served, 8 streams" in done.stdout
