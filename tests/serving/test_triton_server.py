"""The real Triton server on tiny models in fp32, compared with the same loop in this process."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import grpc
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError, ServerBusy
from judge_client.wire import GenerateRequest, infer_request
from judge_decoding.config import load_deployment
from judge_decoding.decoding.contracts import Sampling
from judge_decoding.decoding.loop import Result
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.pipeline import Pipeline, load_pipeline
from judge_decoding.serving.metrics import FAMILIES, PREFIX
from judge_decoding.serving.regions import region_bytes
from judge_decoding.serving.warmup import warm_up
from tests.conftest import write_judge
from tests.deploy.test_operations import used
from tests.triton_world import Response, Serving, Stream, Trap, ask, ids, text, wait_for

pytestmark = pytest.mark.servers

PROMPTS = [f"Prompt number {i}: what is {i} times {i + 3}?" for i in range(16)]


@pytest.fixture(scope="module")
def config(tiny_target: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment of the tiny pair, with a judge of random direction."""
    folder = tmp_path_factory.mktemp("deployment")
    write_judge(folder / "judge.safetensors", tiny_target, scale=0.02, seed=4)
    document = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "judge": {"path": "judge.safetensors"},
        "max_draft_len": 5,
        "limits": {"max_sequences": 4, "max_context": 1024, "max_tokens": 900},
        "server": {"max_queue": 16, "max_prompt_bytes": 2000, "drain_s": 5},
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def server(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    trap = Trap()  # a proxy in the environment, which our processes must not use
    folder = tmp_path_factory.mktemp("server")
    with Serving(config, folder, variables=trap.variables) as running:
        yield running
        assert running.stop() == 0, running.output
    assert trap.heard == []


@pytest.fixture(scope="module")
def loop(config: Path) -> Pipeline:
    return load_pipeline(load_deployment(config))


def here(
    loop: Pipeline, prompt: str, tokens: int, rule: str | None = None, **changes: Any
) -> Result:
    """The result of the loop in this process."""
    threshold = changes.pop("threshold", None)
    return loop.decoder.generate(
        [
            Request(
                loop.tokenizer.encode(prompt),
                tokens,
                loop.deployment.default_acceptance(rule=rule, threshold=threshold),
                **changes,
            )
        ]
    )[0]


def assert_same(responses: list[Response], expected: Result) -> None:
    assert ids(responses) == expected.token_ids
    assert text(responses) == expected.text
    last = responses[-1]
    assert last["finish_reason"][0].decode() == expected.finish_reason
    assert last["num_output_tokens"][0] == len(expected.token_ids)
    assert last["total_draft_tokens"][0] == expected.record.num_draft_tokens
    assert last["total_accepted_draft_tokens"][0] == expected.record.num_accepted_draft_tokens
    assert last["acceptance_rate"][0] == np.float32(expected.record.draft_acceptance_rate)


@pytest.mark.parametrize(
    ("rule", "temperature"), [("strict", 0.0), ("judge", 0.0), ("rejection", 0.9)]
)
def test_a_stream_is_the_loops_answer_in_order(
    server: Serving, loop: Pipeline, rule: str, temperature: float
) -> None:
    expected = here(
        loop, PROMPTS[0], 60, rule, sampling=Sampling(temperature, seed=7), ignore_end=True
    )
    responses = ask(
        server,
        text_input=PROMPTS[0],
        max_tokens=60,
        stream=True,
        acceptance_rule=rule,
        temperature=temperature,
        seed=7,
        ignore_eos=True,
        return_provenance=True,
        return_judge_scores=True,
        return_acceptance_record=True,
    )
    assert_same(responses, expected)
    assert len(responses) > 10
    counts = [int(r["num_output_tokens"][0]) for r in responses]
    assert counts == sorted(set(counts))
    assert all(set(r) == set(responses[0]) for r in responses)
    assert all(r["num_input_tokens"][0] == len(PROMPTS[0]) for r in responses)
    assert [r["finish_reason"][0] for r in responses[:-1]] == [b""] * (len(responses) - 1)
    sources = [p.decode() for r in responses for p in r["provenance"]]
    assert sources == expected.provenance
    assert b"".join(t for r in responses for t in r["token_texts"]).decode() == expected.text
    scores = np.concatenate([r["judge_scores"] for r in responses])
    wanted = [np.nan if s is None else s for s in expected.judge_scores]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    record = json.loads(responses[-1]["speculative_decoding"][0])
    assert record == expected.record.to_dict()
    assert all(r["speculative_decoding"][0] == b"" for r in responses[:-1])


def test_without_stream_there_is_one_response(server: Serving, loop: Pipeline) -> None:
    responses = ask(server, text_input=PROMPTS[1], max_tokens=40)
    assert len(responses) == 1
    assert_same(responses, here(loop, PROMPTS[1], 40))
    assert responses[0]["provenance"].size == responses[0]["judge_scores"].size == 0
    assert responses[0]["speculative_decoding"][0] == b""


def test_sixteen_streams_at_once_are_all_complete_and_right(
    server: Serving, loop: Pipeline
) -> None:
    """There are four slots, so twelve streams wait."""
    expected = [here(loop, prompt, 40) for prompt in PROMPTS]

    def one(prompt: str) -> list[Response]:
        return ask(server, text_input=prompt, max_tokens=40, stream=True)

    with ThreadPoolExecutor(16) as pool:
        for responses, result in zip(pool.map(one, PROMPTS), expected, strict=True):
            assert_same(responses, result)


def test_http_generate_and_generate_stream(server: Serving, loop: Pipeline) -> None:
    expected = here(loop, PROMPTS[2], 30)
    body = {"text_input": PROMPTS[2], "max_tokens": 30}
    url = "/v2/models/ensemble/generate"
    assert json.loads(server.http(url, json.dumps(body).encode()))["text_output"] == expected.text
    events = server.http(f"{url}_stream", json.dumps(body | {"stream": True}).encode())
    pieces = [json.loads(e.removeprefix("data: ")) for e in events.strip().split("\n\n")]
    assert len(pieces) > 5
    assert "".join(piece["text_output"] for piece in pieces) == expected.text


def test_none_and_strict_write_the_same_text(server: Serving) -> None:
    for prompt in PROMPTS[:4]:
        none, strict = (
            ask(server, text_input=prompt, max_tokens=100, acceptance_rule=rule)
            for rule in ("none", "strict")
        )
        assert text(none) == text(strict)
        assert none[0]["total_draft_tokens"][0] == 0 < strict[0]["total_draft_tokens"][0]


def test_rule_threshold_and_draft_length_are_a_requests_own(
    server: Serving, loop: Pipeline
) -> None:
    """Side by side in one batch: none, all, half of the drafts judged; another draft length."""
    asked = [
        {"acceptance_rule": "judge", "judge_threshold": 1.0},
        {"acceptance_rule": "judge", "judge_threshold": 0.0, "max_draft_len": 2},
        {"acceptance_rule": "judge", "judge_threshold": 0.6, "num_draft_tokens": 3},
        {"acceptance_rule": "topk"},
    ]
    expected = [
        here(loop, PROMPTS[3], 48, "judge", threshold=1.0, ignore_end=True),
        here(loop, PROMPTS[3], 48, "judge", threshold=0.0, max_draft_len=2, ignore_end=True),
        here(loop, PROMPTS[3], 48, "judge", threshold=0.6, max_draft_len=3, ignore_end=True),
        here(loop, PROMPTS[3], 48, "topk", ignore_end=True),
    ]

    def one(values: dict[str, Any]) -> list[Response]:
        return ask(server, text_input=PROMPTS[3], max_tokens=48, ignore_eos=True, **values)

    with ThreadPoolExecutor(4) as pool:
        for responses, result in zip(pool.map(one, asked), expected, strict=True):
            assert_same(responses, result)
    assert expected[0].token_ids != expected[1].token_ids != expected[2].token_ids


def test_stop_strings_cut_the_text_as_the_loop_does(server: Serving, loop: Pipeline) -> None:
    whole = here(loop, PROMPTS[4], 120, ignore_end=True).text
    letters = [i for i, c in enumerate(whole) if c.isascii() and c.isprintable()]
    at = letters[len(letters) // 2]
    words = (whole[at : at + 2], "never in it")
    expected = here(loop, PROMPTS[4], 120, stop=words, ignore_end=True)
    assert expected.finish_reason == "stop"
    assert 0 < len(expected.text) < len(whole)
    for stream in (True, False):
        responses = ask(
            server,
            text_input=PROMPTS[4],
            max_tokens=120,
            stop_words=[*words, ""],
            ignore_eos=True,
            stream=stream,
        )
        assert_same(responses, expected)


def test_sampling_options_work_over_http(server: Serving) -> None:
    """Regression (tensorrtllm_backend#93): they were ignored with status 200."""

    def text(**values: Any) -> str:
        body = {"text_input": "Hello there", "max_tokens": 24, **values}
        return str(
            json.loads(server.http("/v2/models/ensemble/generate", json.dumps(body).encode()))[
                "text_output"
            ]
        )

    options = {"repetition_penalty": 1.4, "presence_penalty": 0.5, "logit_bias": '{"101": 4}'}
    options |= {"bad_words": ["a", "b"], "min_p": 0.1, "stop_token_ids": [3, 4], "end_id": 5}
    alone = text(acceptance_rule="none", **options)
    assert text(acceptance_rule="strict", **options) == alone != text(acceptance_rule="none")


@pytest.mark.parametrize("rule", ["strict", "judge"])
def test_log_probabilities_arrive_per_token(server: Serving, loop: Pipeline, rule: str) -> None:
    prompt = loop.tokenizer.encode(PROMPTS[0])
    acceptance = loop.deployment.default_acceptance(rule=rule)
    expected = loop.decoder.generate([Request(prompt, 12, acceptance, Sampling(logprobs=2))])[0]
    body = {"text_input": PROMPTS[0], "max_tokens": 12, "acceptance_rule": rule, "logprobs": 2}
    answer = json.loads(server.http("/v2/models/ensemble/generate", json.dumps(body).encode()))
    assert answer["output_ids"] == expected.token_ids
    chosen = [one.chosen for one in expected.logprobs]
    assert answer["token_logprobs"] == pytest.approx(chosen, abs=1e-5)
    top = json.loads(answer["top_logprobs"])
    assert [[one["id"] for one in row] for row in top] == [
        [number for number, _ in one.top] for one in expected.logprobs
    ]
    assert all(one["token"] == loop.tokenizer.token_text(one["id"]) for row in top for one in row)


def test_the_prompt_can_be_a_conversation_or_a_turn_and_can_be_returned(
    server: Serving, loop: Pipeline
) -> None:
    turn = [{"role": "user", "content": "Hi there"}]
    prompt = loop.tokenizer.chat(turn)
    request = Request(prompt, 20, loop.deployment.default_acceptance())
    expected = loop.decoder.generate([request])[0]
    assert_same(ask(server, text_input="Hi there", chat=True, max_tokens=20), expected)
    talk = {"text_input": "ignored", "messages": json.dumps(turn)}
    assert_same(ask(server, **talk, max_tokens=20), expected)
    echoed = ask(server, **talk, max_tokens=20, exclude_input_in_output=False, stream=True)
    assert text(echoed) == "[user] Hi there\n[assistant] " + expected.text
    raw = ask(server, text_input=PROMPTS[0], max_tokens=20, exclude_input_in_output=False)
    assert text(raw) == PROMPTS[0] + here(loop, PROMPTS[0], 20).text


def test_an_end_token_has_no_text_and_min_tokens_excludes_it(
    server: Serving, loop: Pipeline
) -> None:
    """Prompts until an answer ends by itself: the tiny model's end token is an ordinary byte."""
    ended = next(
        (p, r)
        for p in (f"{a}{b}" for a in "abcdefghijklm" for b in "nopqrstuvwxyz")
        if (r := here(loop, p, 200, "none")).finish_reason == "stop" and len(r.token_ids) > 3
    )
    prompt, expected = ended
    assert_same(ask(server, text_input=prompt, max_tokens=200, acceptance_rule="none"), expected)
    longer = here(loop, prompt, 200, "none", min_tokens=len(expected.token_ids))
    assert len(longer.token_ids) > len(expected.token_ids)
    responses = ask(
        server,
        text_input=prompt,
        max_tokens=200,
        acceptance_rule="none",
        min_length=len(expected.token_ids),
    )
    assert_same(responses, longer)


def test_load_generators_and_openai_clients_inputs_are_accepted(
    server: Serving, loop: Pipeline
) -> None:
    responses = ask(
        server,
        text_input=PROMPTS[5],
        max_tokens=16,
        min_length=0,
        stream=True,
        top_k=1,
        top_p=1.0,
        temperature=1.0,
        seed=3,
        stop_words=[""],
        exclude_input_in_output=True,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
    )
    assert_same(responses, here(loop, PROMPTS[5], 16))
    warm = ask(server, text_input=PROMPTS[5], max_tokens=16, temperature=1.0, seed=3)
    sampled = here(loop, PROMPTS[5], 16, "rejection", sampling=Sampling(1.0, seed=3))
    assert_same(warm, sampled)


def ended(server: Serving, reason: str) -> float:
    return server.metric("request_success_total", finished_reason=reason)


LONG = {"max_tokens": 900, "stream": True, "ignore_eos": True, "acceptance_rule": "none"}


def test_a_cancel_frees_the_slot_within_two_rounds(server: Serving, loop: Pipeline) -> None:
    before = server.metric("cancel_rounds_total")
    cancelled = ended(server, "cancelled")
    with Stream(server) as stream:
        stream.send(text_input=PROMPTS[6], request_id="mine", **LONG)
        first = stream.next()
        stream.send(text_input="", stop=True, request_id="mine")
        last = list(stream.responses())
        if last[-1]["num_output_tokens"][0] == 0:  # the answer to the cancel came first
            last = list(stream.responses())
        assert last[-1]["finish_reason"][0] == b"cancelled"
        assert 0 < last[-1]["num_output_tokens"][0] < 900
        assert first["id"] == last[-1]["id"] == "mine"
    wait_for(
        lambda: ended(server, "cancelled") == cancelled + 1,
        "the metric",
    )
    assert server.metric("cancel_rounds_total") - before <= 2
    assert server.metric("num_requests_running") == 0
    assert_same(ask(server, text_input=PROMPTS[6], max_tokens=9), here(loop, PROMPTS[6], 9))


def test_a_client_of_the_core_that_leaves_is_cancelled(server: Serving, loop: Pipeline) -> None:
    cancelled = ended(server, "cancelled")
    with Stream(server) as stream:
        prompt = loop.tokenizer.encode(PROMPTS[7])
        stream.send(model="judge_decoding", input_ids=prompt, **LONG)
        stream.next()
    wait_for(
        lambda: ended(server, "cancelled") == cancelled + 1,
        "the cancel",
    )
    assert server.metric("num_requests_running") == 0


def test_a_client_of_the_ensemble_that_leaves_hurts_nobody(server: Serving, loop: Pipeline) -> None:
    """Triton does not tell the core, so the answer runs to its end; then the slot is free."""
    before = ended(server, "length")
    with Stream(server) as stream:
        stream.send(text_input=PROMPTS[8], **LONG)
        stream.next()
    wait_for(
        lambda: ended(server, "length") == before + 1,
        "the answer's end",
    )
    assert server.metric("num_requests_running") == 0
    assert_same(ask(server, text_input=PROMPTS[8], max_tokens=9), here(loop, PROMPTS[8], 9))


def test_a_full_queue_refuses_with_advice_in_every_protocol(server: Serving) -> None:
    refused = server.metric("request_failure_total", reason="queue_full")
    message = r"server: RESOURCE_EXHAUSTED: 16 requests are waiting .* try again in [\d.]+ s"
    metadata = [("triton_grpc_error", "true")]
    with Stream(server) as stream, JudgeClient(server.url) as client:

        def overfill() -> None:
            """Sends to the core, since the queue of a slower tokenizer could fill up first."""
            for _ in range(4 + 16 + 1):
                stream.send(model="judge_decoding", input_ids=[65, 66], request_id="many", **LONG)

        overfill()
        endless = (stream.next() for _ in range(100_000))
        with pytest.raises(InferenceServerException, match=message):
            deque(endless, maxlen=0)
        overfill()
        with pytest.raises(ServerBusy, match=message) as busy:
            client.generate(GenerateRequest("Hi"))
        assert busy.value.queued == 16 and busy.value.retry_after_s >= 0.1
        overfill()
        asked = infer_request(GenerateRequest("Hi"), "x", stream=False)
        with pytest.raises(grpc.RpcError) as status:
            list(client._stub.ModelStreamInfer(iter([asked]), metadata=metadata))
        assert status.value.code() == grpc.StatusCode.UNAVAILABLE
        assert re.search(message, status.value.details())
        overfill()
        with pytest.raises(HTTPError) as answer:
            server.http("/v2/models/ensemble/generate", b'{"text_input": "Hi"}')
        assert re.search(message, json.loads(answer.value.read())["error"])
        stream.send(text_input="", stop=True, request_id="many")
        wait_for(
            lambda: server.metric("num_requests_running") == 0, "the loop and the queue to empty"
        )
    assert server.metric("num_requests_waiting") == 0
    assert server.metric("request_failure_total", reason="queue_full") >= refused + 4


def test_a_deadline_ends_an_answer_with_what_it_has(server: Serving, loop: Pipeline) -> None:
    """Our deadline, and Triton's own `timeout`; 900 rounds take far longer. A request that would
    have to wait for longer than its deadline is refused."""
    late = ended(server, "deadline")
    whole = here(loop, PROMPTS[9], 900, "none", ignore_end=True)
    for limit in ({"deadline_ms": 30}, {"timeout_us": 30_000}):
        responses = ask(server, text_input=PROMPTS[9], **LONG, **limit)
        last = responses[-1]
        assert last["finish_reason"][0] == b"deadline"
        assert last["num_output_tokens"][0] == len(ids(responses)) < 900
        assert ids(responses) == whole.token_ids[: len(ids(responses))]
        assert whole.text.startswith(text(responses))
    with Stream(server) as stream, JudgeClient(server.url) as client:
        for _ in range(4 + 4):
            stream.send(text_input="Hi", request_id="many", **LONG)
        stream.next()
        with pytest.raises(ServerBusy, match=r"the request's deadline of 0\.0 s would pass first"):
            client.generate(GenerateRequest("Hi", max_tokens=900, deadline_ms=1))
        stream.send(text_input="", stop=True, request_id="many")
        wait_for(lambda: server.metric("num_requests_running") == 0, "the loop to empty")
    assert ended(server, "deadline") == late + 2
    assert_same(ask(server, text_input="Hi", max_tokens=9, deadline_ms=10**6), here(loop, "Hi", 9))


def samples(server: Serving) -> dict[str, float]:
    """Our metrics by name and labels, read by Prometheus' own parser; their types are checked."""
    found = dict[str, float]()
    for parsed in text_string_to_metric_families(server.metrics()):
        for sample in parsed.samples:
            if not sample.name.startswith(PREFIX):
                continue
            name = sample.name.removeprefix(PREFIX)
            if name not in FAMILIES:  # the parser itself gives counters their OpenMetrics names
                name = name.removesuffix("_total")
            assert parsed.type == FAMILIES[name].kind, name
            labels = dict(sample.labels)
            assert labels.pop("deployment") == "tiny"
            assert tuple(sorted(labels)) == tuple(sorted(FAMILIES[name].labels)), name
            found["|".join([name, *(labels[label] for label in FAMILIES[name].labels)])] = (
                sample.value
            )
    return found


def test_the_endpoint_has_all_that_dashboard_and_alerts_read(server: Serving) -> None:
    names = {key.partition("|")[0] for key in samples(server)}
    of_ranks = {"rank_heard_timestamp_seconds"}  # tests/serving/test_serve_faults.py has ranks
    assert names == set(FAMILIES) - of_ranks
    assert used() <= names | of_ranks


def test_an_answers_record_is_what_the_counters_gain(server: Serving) -> None:
    before = samples(server)
    responses = ask(
        server,
        text_input=PROMPTS[10],
        max_tokens=60,
        acceptance_rule="judge",
        judge_threshold=0.6,
        ignore_eos=True,
        return_acceptance_record=True,
    )
    record = json.loads(responses[-1]["speculative_decoding"][0])
    after = samples(server)
    gain = {key: after[key] - before[key] for key in after}
    histogram = record["acceptance_histogram"]
    assert gain["spec_decode_num_drafts_total"] == record["num_spec_steps"]
    assert gain["spec_decode_num_draft_tokens_total"] == record["num_draft_tokens"]
    accepted = record["num_accepted_draft_tokens"]
    assert gain["spec_decode_num_accepted_tokens_total"] == accepted > 0
    assert gain["spec_decode_num_judged_tokens_total"] == record["num_judged_tokens"] > 0
    assert gain["spec_decode_num_target_tokens_total"] == record["num_target_tokens"]
    for position in range(5):
        name = f"spec_decode_num_accepted_tokens_per_pos_total|{position}"
        assert gain[name] == sum(histogram[position + 1 :])
    assert gain["spec_decode_judge_score_count"] == record["num_draft_tokens"]
    assert gain["spec_decode_judge_score_bucket|+Inf"] == record["num_draft_tokens"]
    assert 0 < gain["spec_decode_judge_score_sum"] < record["num_draft_tokens"]
    assert gain["generation_tokens_total"] == 60
    assert gain["prompt_tokens_total"] == len(PROMPTS[10])
    assert gain["request_success_total|length"] == 1
    for name in ("request_queue_time", "time_to_first_token", "e2e_request_latency"):
        assert gain[f"{name}_seconds_count"] == gain[f"{name}_seconds_bucket|+Inf"] == 1
    for name in ("propose", "verify", "judge", "host", "metrics"):
        assert gain[f"{name}_seconds_total"] > 0


BAD = [
    ({"text_input": ""}, "text_input is empty"),
    ({"text_input": "x" * 1200}, "1200 tokens do not fit the context of 1024"),
    ({"text_input": "x" * 2001}, "2001 bytes are more than server.max_prompt_bytes 2000"),
    ({"text_input": "x" * 1_000_000}, "1000000 bytes"),
    ({"text_input": b"ab\xff"}, "text_input: not valid UTF-8 at byte 2"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": -3}, r"max_tokens: .*\(got -3\)"),
    ({"max_tokens": 2**31 - 1}, "max_tokens: 2147483647 is more than the limit of 900"),
    ({"judge_threshold": 1.5}, "judge_threshold: Input should be less than or equal to 1"),
    ({"judge_threshold": -0.1}, "judge_threshold: Input should be greater than or equal to 0"),
    ({"temperature": float("nan")}, "temperature: Input should be a finite number"),
    ({"temperature": -1.0}, "temperature: "),
    ({"temperature": 1e-40}, "temperature: .* is too small; give 0 .* or at least 0.001"),
    ({"deadline_ms": 0}, "deadline_ms: Input should be greater than or equal to 1"),
    ({"top_p": 0.0}, "top_p: "),
    ({"acceptance_rule": "best"}, r"acceptance_rule: Input should be 'none', .*got 'best'"),
    ({"acceptance_rule": "strict", "temperature": 0.5}, "rule strict: it is greedy"),
    ({"max_draft_len": 6}, "max_draft_len: 6 is more than the deployment's 5"),
    ({"messages": "[{]"}, "messages: "),
    ({"stop": True}, "stop: give it the request id"),
    ({"max_tokens": np.array([[3.5]], np.float32)}, "max_tokens"),
    ({"max_tokens": np.array([[3, 4]], np.int32)}, "max_tokens"),
    ({"max_tokens": np.array([3], np.int32)}, "max_tokens"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[next(iter(v)) for v, _ in BAD])
def test_bad_input_is_an_error_with_a_message(
    server: Serving, loop: Pipeline, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        ask(server, **({"text_input": "Hi"} | values))
    assert_same(ask(server, text_input="Hi", max_tokens=3), here(loop, "Hi", 3))


def test_refusals_of_every_kind_are_counted_once(server: Serving) -> None:
    """Regression: invalid parameters were not counted, since the core refused them itself."""
    before = server.metric("request_failure_total", reason="invalid")
    asked = ({"max_tokens": 0}, {"max_tokens": 901}, {"stop": True}, {"text_input": "x" * 1200})
    for values in asked:
        with pytest.raises(InferenceServerException):
            ask(server, **({"text_input": "Hi"} | values))
    after = server.metric("request_failure_total", reason="invalid")
    assert after - before == len(asked)


def order_of(response: Response) -> str:
    return str(response["detokenize"][0].decode())


def detokenize(server: Serving, order: str) -> str:
    """Calls the postprocessing by name; returns the text, or the error."""
    with Stream(server) as stream:
        stream.send(model="postprocessing", detokenize=order)
        try:
            return str(stream.next()["text_output"][0].decode())
        except InferenceServerException as refused:
            return str(refused.message())


def test_nobody_writes_into_anothers_text(server: Serving) -> None:
    """Regression: sequences were numbered one by one, and anybody could send orders with the next
    number: answers lost text, got other text or ended early; nine orders stopped all."""
    unsigned = "detokenize: it is not signed by this server; call the model `ensemble`"
    own: list[list[str]] = []
    for _ in range(12):  # more than twice as many as run at once
        with Stream(server) as stream:
            stream.send(
                model="judge_decoding",
                input_ids=[65, 66],
                max_tokens=3,
                stream=True,
                ignore_eos=True,
            )
            own.append([order_of(response) for response in stream.responses()])
    documents = [json.loads(orders[0][64:]) for orders in own]
    numbers = [document["sequence"] for document in documents]
    gaps = [abs(a - b) for i, a in enumerate(numbers) for b in numbers[:i]]
    assert min(gaps) > 1000  # each has 62 random bits

    victim = GenerateRequest("Victim", max_tokens=300, ignore_eos=True, rule="none", stop=["zzzz"])
    with JudgeClient(server.url, timeout=120) as client:
        expected = client.generate(victim).text
        chunks = client.stream(victim, request_id="victim")
        got = [next(chunks).text for _ in range(3)]
        for number in (*numbers, *(n + 1 for n in numbers)):
            for finish in ("", "stop"):
                forged = documents[0] | {"sequence": number, "ids": [65], "finish": finish}
                assert detokenize(server, json.dumps(forged)) == unsigned
                assert detokenize(server, own[0][0][:64] + json.dumps(forged)) == unsigned
        for orders in own:  # whoever calls the core has these, and they are in order
            assert detokenize(server, orders[0]) != unsigned
            assert "it came twice" in detokenize(server, orders[0])
        got += [chunk.text for chunk in chunks]
        assert "".join(got) == expected
        assert client.generate(victim).text == expected


def test_a_port_in_use_is_one_clear_line(server: Serving, config: Path, tmp_path: Path) -> None:
    second = Serving(config, tmp_path, server.ports)
    assert second.wait() == 2
    assert second.output.strip().splitlines() == [
        f"judge-decoding: serve: cannot listen on 127.0.0.1:{server.ports[0]} "
        f"(the server of process {server.process.pid} has it); choose another --http-port"
    ]
    assert json.loads(server.ready_file.read_text())["pid"] == server.process.pid


def test_the_warm_up_knows_its_own_server(server: Serving, config: Path) -> None:
    """Regression (issue 16): a server that could not bind its port was warmed up by another one
    there, and said that it was ready."""
    with pytest.raises(UserError, match=f"another server answers at {server.url} "):
        warm_up(load_deployment(config), server.url, name="judge-decoding-mine")


def test_a_request_that_is_far_too_large_takes_no_memory_for_good(
    server: Serving, config: Path
) -> None:
    """Regression (issue 16): Triton made a region of /dev/shm as large as the largest request, up
    to all of it, and never smaller again."""
    bound = region_bytes(load_deployment(config))
    assert bound == 4 * 2**20
    prompt = GenerateRequest(PROMPTS[0], max_tokens=8, ignore_eos=True)
    with JudgeClient(server.url) as client:
        expected = client.generate(prompt).text
        for text_input in ("x" * 2 * bound, "x" * 10 * bound):
            with pytest.raises(JudgeClientError, match="the server has no room for a request of"):
                client.generate(GenerateRequest(text_input))
        ids = np.zeros((1, bound), np.int32)
        with Stream(server) as stream:
            stream.send(model="judge_decoding", input_ids=ids)
            with pytest.raises(InferenceServerException, match="File too large"):
                stream.next()
        assert client.generate(prompt).text == expected
    (folder,) = server.temporary.glob("judge-decoding-*")
    found = [one for one in Path("/dev/shm").glob(f"{folder.name}*") if one.is_file()]
    assert len(found) == 3 and max(one.stat().st_size for one in found) <= bound
