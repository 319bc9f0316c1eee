"""Requests of every kind for a soak: good ones at random, bad ones, and a check of the answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from judge_client.wire import Answer, GenerateRequest

MAX_TOKENS = 96

PROMPTS = (
    "What is the capital of France?",
    "Give me three tips for sleeping better.",
    "Write a short poem about the sea in winter.",
    "Explain in two sentences why the sky is blue.",
    "Grüezi! 你好! Say hello in three languages, with an emoji: 🙂",
    "List the numbers from one to twenty in words.",
    "def fibonacci(n):",
    "Summarize: " + "The meeting moves from Monday to Tuesday at ten, in the large room. " * 12,
)
BAD = (
    GenerateRequest(""),
    GenerateRequest(b"\xff\xfe not UTF-8"),
    GenerateRequest("word " * 50_000),
    GenerateRequest(messages=[]),
    GenerateRequest(messages=[{"role": "user"}]),
    GenerateRequest("x", max_tokens=0),
    GenerateRequest("x", max_tokens=-1),
    GenerateRequest("x", max_tokens=2**31 - 1),
    GenerateRequest("x", rule="nonsense"),
    GenerateRequest("x", rule="strict", temperature=0.7),
    GenerateRequest("x", rule="judge", threshold=1.5),
    GenerateRequest("x", temperature=math.nan),
    GenerateRequest("x", temperature=-1.0),
    GenerateRequest("x", top_p=0.0),
    GenerateRequest("x", max_draft_len=-1),
)


class Wrong(Exception):
    """An answer that is not what was asked for."""


def draw(random: Random, rules: Sequence[str]) -> GenerateRequest:
    """A random request that the server must answer."""
    rule = random.choice(rules)
    text = random.choice(PROMPTS)
    request = GenerateRequest(
        text,
        chat=random.random() < 0.5,
        max_tokens=random.randint(1, MAX_TOKENS),
        rule=rule,
        temperature=0.0 if rule == "strict" else random.choice((0.0, 0.7)),
        top_k=random.choice((None, 40)),
        top_p=random.choice((None, 0.9)),
        seed=random.getrandbits(32),
        stop=random.choice(((), (), (".",), ("\n\n", "the"))),
        max_draft_len=random.choice((None, None, 0, 1)),
        ignore_eos=random.choice((None, True)),
        provenance=random.random() < 0.5,
        record=random.random() < 0.5,
    )
    if random.random() < 0.25:
        turns = [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", text)]
        messages = [{"role": role, "content": content} for role, content in turns]
        request = replace(request, prompt="", chat=None, messages=messages)
    return request


def check(request: GenerateRequest, answer: Answer) -> None:
    """Wrong unless `answer` is a whole answer to `request`."""
    assert request.max_tokens is not None
    if answer.finish_reason not in ("stop", "length"):
        raise Wrong(f"finish_reason {answer.finish_reason!r}")
    if not 1 <= answer.num_output_tokens <= request.max_tokens:
        raise Wrong(f"{answer.num_output_tokens} tokens of at most {request.max_tokens}")
    if request.provenance and len(answer.tokens) != answer.num_output_tokens:
        raise Wrong(f"provenance of {len(answer.tokens)} tokens of {answer.num_output_tokens}")
    if request.provenance and "".join(token.text for token in answer.tokens) != answer.text:
        raise Wrong("the tokens' texts are not the answer's")
    if request.record and answer.record is None:
        raise Wrong("no acceptance record")
