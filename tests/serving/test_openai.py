"""The OpenAI-compatible endpoint on a real server: answers, refusals, streams, people who leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from clients.server import descendants
from judge_client.client import JudgeClient
from judge_client.wire import GenerateRequest
from tests.conftest import write_deployment
from tests.faults.processes import command_line
from tests.triton_world import Serving, free_ports, wait_for

pytestmark = pytest.mark.servers

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = {"messages": [{"role": "user", "content": "Hi there"}]}
LONG = {"prompt": "Tell me", "max_tokens": 900, "ignore_eos": True, "acceptance_rule": "none"}


class Door:
    def __init__(self, server: Serving, port: int) -> None:
        self.server, self.port = server, port
        self.url = f"http://127.0.0.1:{port}"

    def ask(
        self, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers. `body` is sent as JSON unless it is bytes."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, names)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read()), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), dict(error.headers)

    def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        data = json.dumps(body | {"stream": True}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data)) as answer:
            lines = [line for line in answer.read().decode().split("\n\n") if line]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def slots(self) -> float:
        return self.server.metric("kv_slots_used")


@pytest.fixture(scope="module")
def door(
    tiny_target: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("openai")
    (port,) = free_ports(1)
    limits = {"max_sequences": 3, "max_context": 1024, "max_tokens": 900}
    server = {"openai_port": port, "max_queue": 5}
    config = write_deployment(folder, tiny_target, tiny_draft, limits=limits, server=server)
    with Serving(config, folder) as serving:
        yield Door(serving, port)
        assert serving.stop() == 0, serving.output


@pytest.fixture(scope="module")
def expected(door: Door) -> str:
    with JudgeClient(door.server.url, timeout=60) as client:
        return client.generate(GenerateRequest(messages=HI["messages"], max_tokens=12)).text


def test_a_chat_answers_with_the_ensembles_text(door: Door, expected: str) -> None:
    status, answer, _ = door.ask(CHAT, HI | {"max_completion_tokens": 12})
    assert status == 200
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected}
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    found = answer["metrics"]["speculative_decoding"]
    assert sum(found["acceptance_histogram"]) == found["num_spec_steps"]
    assert {"num_judged_tokens", "mean_acceptance_length", "draft_acceptance_rate"} <= found.keys()
    if choice["finish_reason"] == "length":
        assert usage["completion_tokens"] == 12


def test_a_stream_is_the_same_text_with_provenance_and_usage(door: Door, expected: str) -> None:
    body = HI | {"max_tokens": 12, "return_provenance": True}
    events = door.events(CHAT, body | {"stream_options": {"include_usage": True}})
    *chunks, last = events
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
    assert {event["usage"] for event in chunks} == {None}
    choices = [event["choices"][0] for event in chunks]
    assert "".join(choice["delta"]["content"] for choice in choices) == expected
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert "".join(text for choice in choices for text in choice["judge"]["texts"]) == expected
    origins = [origin for choice in choices for origin in choice["judge"]["provenance"]]
    found = last["metrics"]["speculative_decoding"]
    assert origins.count("judged") == found["num_judged_tokens"]
    assert origins.count("target") == found["num_target_tokens"]
    assert len(choices[-1]["judge"]["rounds"]) == origins.count("target")
    # Without include_usage, the last event of the answer has the metrics.
    events = door.events(CHAT, body)
    assert events[-1]["metrics"] == last["metrics"]
    assert "usage" not in events[-1]


def test_completions_have_prompts_echo_and_several_answers(door: Door) -> None:
    body = {"prompt": ["One", "Two"], "max_tokens": 5, "temperature": 1.0, "seed": 3}
    status, answer, _ = door.ask(TEXT, body | {"n": 2, "acceptance_rule": "rejection"})
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert answer["metrics"] is None  # as vLLM has it, for one answer only
    one = {"prompt": "Two", "max_tokens": 5, "temperature": 1.0, "acceptance_rule": "rejection"}
    _, again, _ = door.ask(TEXT, one | {"seed": 4, "echo": True})
    assert again["choices"][0]["text"] == "Two" + texts[3]
    merged = [""] * 4
    for event in door.events(TEXT, body | {"n": 2, "acceptance_rule": "rejection"}):
        merged[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert merged == texts


def test_log_probabilities_are_the_targets(door: Door, expected: str) -> None:
    body = HI | {"max_tokens": 12, "acceptance_rule": "strict"}
    _, answer, _ = door.ask(CHAT, body | {"logprobs": True, "top_logprobs": 2})
    entries = answer["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in entries) == expected
    assert len(entries) == answer["usage"]["completion_tokens"]
    for one in entries:
        first, second = (other["logprob"] for other in one["top_logprobs"])
        assert 0 >= first == one["logprob"] >= second  # strict is greedy
    events = door.events(CHAT, body | {"logprobs": True, "top_logprobs": 2})
    streamed = [e for event in events for e in event["choices"][0]["logprobs"]["content"]]
    assert streamed == entries
    _, answer, _ = door.ask(TEXT, {"prompt": "One", "max_tokens": 3, "logprobs": 1})
    found = answer["choices"][0]["logprobs"]
    assert [list(top.values()) for top in found["top_logprobs"]] == [
        [value] for value in found["token_logprobs"]
    ]


def test_a_bias_decides(door: Door) -> None:
    with JudgeClient(door.server.url, timeout=60) as client:
        asked = GenerateRequest("One", max_tokens=60, ignore_eos=True, provenance=True)
        tokens = client.generate(asked).tokens[1:]
    token = next(token for token in tokens if token.text.isascii() and token.text)
    body = {"prompt": "One", "max_tokens": 2}
    _, answer, _ = door.ask(TEXT, body | {"logit_bias": {str(token.id): 100}})
    assert answer["choices"][0]["text"] == 2 * token.text
    status, answer, _ = door.ask(TEXT, body | {"logit_bias": {"x": 1}})
    assert (status, answer["error"]["param"]) == (400, "logit_bias")


REFUSED = [
    (CHAT, HI | {"tools": [{"type": "function"}]}, "tools", "not supported by this server"),
    (CHAT, HI | {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    (CHAT, HI | {"max_tokenz": 3}, "max_tokenz", "'max_tokenz': unknown field"),
    (CHAT, HI | {"temperature": "warm"}, "temperature", "temperature: Input should be a valid"),
    (CHAT, HI | {"top_logprobs": 3}, "top_logprobs", "only with logprobs: true"),
    (CHAT, HI | {"n": 17}, "n", "n: Input should be less than or equal to 16"),
    (CHAT, {"messages": []}, "messages", "messages: List should have at least 1 item"),
    (CHAT, {}, "messages", "messages: Field required"),
    (CHAT, HI | {"max_tokens": 2000}, "max_tokens", "2000 is more than the limit of 900"),
    (CHAT, HI | {"acceptance_rule": "luck"}, "acceptance_rule", "acceptance_rule: Input should be"),
    (CHAT, HI | {"stream_options": {}}, "stream_options", "only with stream: true"),
    (TEXT, {"prompt": [1, 2]}, "prompt", "token ids are not supported; send text"),
    (TEXT, {"prompt": "a", "echo": True, "logprobs": 1}, "echo", "not together with logprobs"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix", "not supported by this server"),
    (TEXT, {"prompt": ""}, "prompt", "text_input is empty"),
    (TEXT, b'{"prompt": "\xff"}', None, "the body is not JSON"),
    (TEXT, b"[" * 5000 + b"]" * 5000, None, "nested too deep"),
    (TEXT, b"[1]", None, "the body is not a JSON object"),
    (TEXT, b"", None, "the body is not JSON"),
]


@pytest.mark.parametrize(("path", "body", "param", "says"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_names_the_field(
    door: Door, path: str, body: object, param: str | None, says: str
) -> None:
    status, answer, _ = door.ask(path, body)
    assert status == 400, answer
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert says in answer["error"]["message"]
    assert answer["error"]["param"] == param
    # Before a stream begins, an error has its status too.
    if isinstance(body, dict) and "stream_options" not in body:
        assert door.ask(path, body | {"stream": True})[0] == 400


def test_neutral_values_and_nulls_of_other_servers_fields_change_nothing(
    door: Door, expected: str
) -> None:
    extra = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}
    extra |= {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "min_p": 0}
    extra |= {"stop": None, "user": "me", "top_k": -1, "store": None, "repetition_penalty": 1}
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 12}
    status, answer, _ = door.ask(CHAT, body | extra)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, expected)


def test_models_health_metrics_and_description(door: Door) -> None:
    _, models, _ = door.ask("/v1/models")
    (card,) = models["data"]
    assert card["id"] == "tiny"
    judging = card["judge_decoding"]
    assert judging["rule"] == "strict" and judging["max_draft_len"] == 4
    assert {"none", "strict", "judge"} <= set(judging["rules"])
    assert door.ask("/v1/models/tiny")[1] == card
    status, answer, _ = door.ask("/v1/models/gpt")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert door.ask(CHAT, HI | {"model": "gpt"})[0] == 404
    assert door.ask("/health")[:2] == (200, {"status": "ok"})
    with urllib.request.urlopen(f"{door.url}/metrics") as page:
        assert "judge_decoding_kv_slots_used" in page.read().decode()
    paths = door.ask("/openapi.json")[1]["paths"]
    assert {CHAT, TEXT, "/v1/models", "/health"} == paths.keys()
    status, answer, _ = door.ask("/v1/nothing")
    assert (status, answer["error"]["type"]) == (404, "not_found_error")
    assert door.ask(CHAT)[0] == 405


def test_a_page_of_another_site_is_refused(door: Door) -> None:
    assert door.ask(CHAT, HI, Origin="http://evil.example")[0] == 403
    assert door.ask("/health", Origin=door.url)[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_slot(door: Door, stream: bool) -> None:
    rounds = door.server.metric("cancel_rounds_total")

    def cancelled() -> float:
        return door.server.metric("request_success_total", finished_reason="cancelled")

    before = cancelled()
    connection = HTTPConnection("127.0.0.1", door.port, timeout=60)
    connection.request("POST", TEXT, json.dumps(LONG | {"stream": stream}).encode())
    if stream:
        assert connection.getresponse().read1(6) == b"data: "
    else:
        wait_for(lambda: door.slots() == 1, "the answer's start")
    connection.close()
    wait_for(lambda: door.slots() == 0, "a free slot", 30)
    wait_for(lambda: cancelled() == before + 1, "the counter, which follows the slots")
    assert door.server.metric("cancel_rounds_total") - rounds <= 2


def test_overload_is_429_with_retry_after(door: Door) -> None:
    connections = [HTTPConnection("127.0.0.1", door.port, timeout=60) for _ in range(8)]
    for connection in connections:
        connection.request("POST", TEXT, json.dumps(LONG).encode())
    try:
        wait_for(lambda: door.slots() == 3, "full slots")
        status, answer, headers = door.ask(TEXT, LONG | {"n": 4})
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["Retry-After"]) >= 1
    finally:
        for connection in connections:
            connection.close()
    wait_for(lambda: door.slots() == 0, "free slots", 30)


def test_large_bodies_and_idle_connections_hold_nothing(door: Door) -> None:
    idle = [socket.create_connection(("127.0.0.1", door.port), 30) for _ in range(400)]
    try:
        status, answer, _ = door.ask(TEXT, {"prompt": "a", "max_tokens": 1})
        assert status == 200, answer
        head = f"POST {TEXT} HTTP/1.1\r\nHost: a\r\nContent-Length: {20 * 2**20}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", door.port), 30) as large:
            large.sendall(head.encode())
            assert large.recv(12) == b"HTTP/1.1 413"
        head = f"POST {TEXT} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection(("127.0.0.1", door.port), 30) as endless:
            endless.sendall(head.encode())
            endless.sendall(5 * (b"100000\r\n" + b" " * 2**20 + b"\r\n"))
            answer = b"".join(iter(lambda: endless.recv(65536), b""))  # until it is closed
            assert answer.startswith(b"HTTP/1.1 413")
    finally:
        for one in idle:
            one.close()
    assert door.ask("/health")[0] == 200


def test_a_door_that_dies_is_started_again(door: Door) -> None:
    def pids() -> list[int]:
        found = descendants(door.server.process.pid)
        return [pid for pid in found if "serving.openai.app" in command_line(pid)]

    (pid,) = pids()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pids() not in ([], [pid]), "another one")
    assert door.ask(TEXT, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_the_openai_package(door: Door, expected: str) -> None:
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    client = openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(model="tiny", max_tokens=12, **HI)
    assert answer.choices[0].message.content == expected
    stream = client.chat.completions.create(
        model="tiny",
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_provenance": True},
        **HI,
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert client.completions.create(model="tiny", prompt="a", max_tokens=2).usage.total_tokens > 2
    with pytest.raises(openai.BadRequestError, match="tools: not supported"):
        client.chat.completions.create(model="tiny", tools=[{"type": "function"}], **HI)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", **HI)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(door: Door, expected: str) -> None:
    line = ["curl", "-sN", f"{door.url}{CHAT}", "-H", "Content-Type: application/json"]
    body = json.dumps(HI | {"max_tokens": 12, "stream": True})
    out = subprocess.run([*line, "-d", body], capture_output=True, text=True, check=True).stdout
    events = [json.loads(e.removeprefix("data: ")) for e in out.split("\n\n")[:-2]]
    assert "".join(e["choices"][0]["delta"]["content"] for e in events) == expected
    assert out.endswith("data: [DONE]\n\n")
