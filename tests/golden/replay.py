"""Golden answers replayed: the file's values, and the three ways to ask for an answer.

`answers.json` is a list of groups. A group is one deployment (a YAML file of the project and the
top-level keys that replace its own) with its requests. A request has the server's input names
(docs/serving.md), and an answer is a dictionary:

token_ids      every emitted token, an end token included
provenance     one letter per token: a(ligned), j(udged), t(arget)
judge_scores   one entry per token, four decimals, null where there is none
text, finish_reason
drafted        tokens that the draft model proposed, over all rounds
histogram      [n] = rounds that accepted n drafted tokens
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.decoding.contracts import Sampling
from judge_decoding.decoding.loop import Result
from judge_decoding.decoding.sequence import Request
from judge_decoding.pipeline import Pipeline, load_pipeline

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = Path(__file__).parent / "answers.json"
AT_ONCE = 8
"""Sequences that decode at the same time, in this process and on the server."""
SCORE_TOLERANCE = 5e-4
"""A judge's score on another CPU may differ from the rounded one by this much."""

Values = dict[str, Any]


def read_groups() -> list[Values]:
    groups: list[Values] = json.loads(ANSWERS.read_text(encoding="utf-8"))["groups"]
    return groups


def deployment_of(group: Values) -> Deployment:
    return load_deployment(ROOT / group["config"]).override(**group["settings"])


def prompt_ids(pipeline: Pipeline, asked: Values) -> list[int]:
    if "messages" in asked:
        return pipeline.tokenizer.chat(json.loads(asked["messages"]))
    if asked.get("chat"):
        return pipeline.tokenizer.chat([{"role": "user", "content": asked["text_input"]}])
    return pipeline.tokenizer.encode(asked["text_input"])


def request_of(pipeline: Pipeline, asked: Values) -> Request:
    """The decoder's request for a server's input values, made without the server's own code."""
    return Request(
        prompt_ids=prompt_ids(pipeline, asked),
        max_tokens=asked["max_tokens"],
        min_tokens=asked.get("min_tokens", 0),
        acceptance=pipeline.deployment.default_acceptance(
            rule=asked.get("acceptance_rule"), threshold=asked.get("judge_threshold")
        ),
        sampling=Sampling(
            temperature=asked.get("temperature", 0.0),
            top_k=asked.get("top_k", 0),
            top_p=asked.get("top_p", 1.0),
            seed=asked.get("seed", 0),
        ),
        max_draft_len=asked.get("max_draft_len"),
        stop=tuple(asked.get("stop_words", ())),
        ignore_end=asked.get("ignore_eos", False),
    )


def in_process(deployment: Deployment, asked: list[Values], at_once: int) -> list[Values]:
    """Answers by one pipeline in this process. With `at_once` above 1, a request joins the others
    as soon as one of them has ended."""
    limits = deployment.limits.model_dump() | {"max_sequences": at_once}
    pipeline = load_pipeline(deployment.override(limits=limits))
    results = pipeline.decoder.generate([request_of(pipeline, values) for values in asked])
    pipeline.decoder.check_integrity(deep=True)
    pipeline.close()
    return [_answer(result) for result in results]


def _answer(result: Result) -> Values:
    return {
        "token_ids": result.token_ids,
        "provenance": "".join(name[0] for name in result.provenance),
        "judge_scores": [None if s is None else round(s, 4) for s in result.judge_scores],
        "text": result.text,
        "finish_reason": result.finish_reason,
        "drafted": result.record.num_draft_tokens,
        "histogram": result.record.acceptance_histogram,
    }


def served(server: Any, asked: list[Values]) -> list[Values]:
    """Answers by a running `tests.triton_world.Serving`; every other request is streamed."""
    from tests.triton_world import ask, ids, text

    def one(numbered: tuple[int, Values]) -> Values:
        number, values = numbered
        responses = ask(
            server,
            **values,
            stream=number % 2 == 1,
            return_provenance=True,
            return_judge_scores=True,
            return_acceptance_record=True,
        )
        last = responses[-1]
        record = json.loads(last["speculative_decoding"][0])
        scores = [float(score) for response in responses for score in response["judge_scores"]]
        return {
            "token_ids": ids(responses),
            "provenance": "".join(p.decode()[0] for r in responses for p in r["provenance"]),
            "judge_scores": [None if np.isnan(score) else round(score, 4) for score in scores],
            "text": text(responses),
            "finish_reason": last["finish_reason"][0].decode(),
            "drafted": int(last["total_draft_tokens"][0]),
            "histogram": record["acceptance_histogram"],
        }

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, enumerate(asked)))


def differences(found: Values, expected: Values) -> list[str]:
    """The fields of an answer that differ; scores count within `SCORE_TOLERANCE`."""
    exact = [key for key in expected if key != "judge_scores" and found[key] != expected[key]]
    return exact + ["judge_scores"] * (not _close(found["judge_scores"], expected["judge_scores"]))


def _close(found: list[float | None], expected: list[float | None]) -> bool:
    return len(found) == len(expected) and all(
        a == b or (a is not None and b is not None and abs(a - b) <= SCORE_TOLERANCE)
        for a, b in zip(found, expected, strict=True)
    )
