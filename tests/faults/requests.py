"""Requests that are too large, too odd or for somebody else; no other client may notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.attacks.odd import (
    batch,
    changed,
    cut,
    of_region,
    parameter,
    to_region,
    twice,
    typed,
    version,
)
from tests.attacks.wire import HI, Tensor, good, ids, message, numbers, send, string
from tests.faults.attack import attack
from tests.triton_world import Serving

GROUP = "requests"
LARGE = 4_000_000
"""Bytes; what the models' shared memory still holds."""


def messages(value: bytes) -> Any:
    return message(text_input=string(b""), messages=string(value))


def core(**tensors: Tensor) -> Any:
    return message("judge_decoding", **{"input_ids": ids(5)} | tensors)


def turns(count: int) -> bytes:
    return json.dumps([{"role": "user", "content": ""}] * count).encode()


def turn(content: bytes) -> bytes:
    return b'[{"role": "user", "content": %b}]' % content


TEXTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "a text of 4 MB": (
        "prompt: 4000000 bytes are more than server.max_prompt_bytes 1000000",
        lambda: good(text_input=string(b"x" * LARGE)),
    ),
    "a text of 1 MB without an end of a word": (
        "prompt: more than 1024 tokens do not fit the context of 1024 with an answer;...",
        lambda: good(text_input=string(b"x" * 10**6)),
    ),
    "a text that is not UTF-8": (
        "text_input: not valid UTF-8 at byte 0",
        lambda: good(text_input=string(b"\xff\xfe")),
    ),
    "a text of half a surrogate": (
        "text_input: not valid UTF-8 at byte 0",
        lambda: good(text_input=string(b"\xed\xa0\x80")),
    ),
    "no prompt at all": (
        "prompt: text_input is missing; give a text or messages",
        lambda: message(max_tokens=numbers("INT32", 3)),
    ),
    "no tensor at all": ("prompt: text_input is missing; give a text or messages", message),
    "400,000 entries in `messages`": (
        "messages: Expected `object`, got `int` - at `$[0]`",
        lambda: messages(b"[" + b"1," * 400_000 + b"1]"),
    ),
    "27,000 turns in `messages`": (
        "messages: 27000 turns; give at most 2000",
        lambda: messages(turns(27_000)),
    ),
    "`messages` nested 110,000 deep": (
        "messages: Expected `object`, got `array` - at `$[0]`",
        lambda: messages(b"[" * 110_000),
    ),
    "a turn of 900 KB of escapes": (
        "prompt: more than 1024 tokens do not fit the context of 1024 with an answer;...",
        lambda: messages(turn(b'"' + b"\\u0000" * 150_000 + b'"')),
    ),
    "a turn whose content is an integer of 10,000 digits": (
        "messages: Number out of range - at `$[0].content`",
        lambda: messages(turn(b"9" * 10_000)),
    ),
    "a turn with a lone surrogate": (
        "messages: Input data was truncated",
        lambda: messages(turn(b'"\\ud800"')),
    ),
    "a turn with a field of 100 KB": (
        "messages: Object contains unknown field `kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk...",
        lambda: messages(b'[{"role": "user", "content": "a", "%b": 1}]' % (b"k" * 100_000)),
    ),
    "a rule of 6 MB": (
        "acceptance_rule: 6000000 bytes; give at most 64",
        lambda: good(acceptance_rule=string(b"x" * 6_000_000)),
    ),
    "a rule with a line break and a colour": (
        "acceptance_rule: Input should be 'none', 'strict', 'rejection', 'judge', 'to...",
        lambda: good(acceptance_rule=string(b"no\n\x1b[31mne")),
    ),
    "a million stop strings": (
        "stop_words: 1048576 strings; give at most 32",
        lambda: good(stop_words=("BYTES", [1, 2**20], bytes(2**22))),
    ),
    "a stop string of 1 MB": (
        "stop_words: one is longer than 1024 bytes",
        lambda: good(stop_words=string(b"x" * 10**6)),
    ),
    "a request id of 3 MB": (
        "request id: 3000000 bytes; give at most 256",
        lambda: message(request_id="x" * 3_000_000, text_input=HI),
    ),
}
NUMBERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "`max_tokens` -2^31": (
        "max_tokens: Input should be greater than or equal to 1 (got -2147483648)",
        lambda: good(max_tokens=numbers("INT32", -(2**31))),
    ),
    "`max_tokens` 2^31 - 1": (
        "max_tokens: 2147483647 is more than the limit of 1000",
        lambda: good(max_tokens=numbers("INT32", 2**31 - 1)),
    ),
    "two `max_tokens`": (
        "[request id: <id_unknown>] unexpected shape for input 'max_tokens' for model...",
        lambda: good(max_tokens=numbers("INT32", 3, 4)),
    ),
    "`temperature` NaN": (
        "temperature: Input should be a finite number (got nan)",
        lambda: good(temperature=numbers("FP32", float("nan"))),
    ),
    "`temperature` infinite": (
        "temperature: Input should be a finite number (got inf)",
        lambda: good(temperature=numbers("FP32", float("inf"))),
    ),
    "`top_p` of the smallest float": (
        "an answer (`length`)",
        lambda: good(top_p=numbers("FP32", 1e-45)),
    ),
    "`judge_threshold` without a judge": (
        "an answer (`length`)",
        lambda: good(judge_threshold=numbers("FP32", 0.5)),
    ),
    "`seed` 2^64 - 1": (
        "seed: Input should be less than 9223372036854775808 (got 18446744073709551615)",
        lambda: good(seed=numbers("UINT64", 2**64 - 1)),
    ),
    "`deadline_ms` 0": (
        "deadline_ms: Input should be greater than or equal to 1 (got 0)",
        lambda: good(deadline_ms=numbers("INT32", 0)),
    ),
    "BOOL of 255": ("an answer (`length`)", lambda: good(stream=("BOOL", [1, 1], b"\xff"))),
}
SHAPES: dict[str, tuple[str, Callable[[], Any]]] = {
    "INT64 instead of INT32": (
        "[request id: <id_unknown>] inference input 'max_tokens' data-type is 'INT64'...",
        lambda: good(max_tokens=numbers("INT64", 3)),
    ),
    "a type that does not exist": (
        "[request id: <id_unknown>] inference input 'max_tokens' data-type is '<inval...",
        lambda: good(max_tokens=("INT33", [1, 1], b"\3\0\0\0")),
    ),
    "a shape of 10^9 without data": (
        "[request id: <id_unknown>] expected 1000000000 string elements for inference...",
        lambda: good(stop_words=("BYTES", [1, 10**9], b"")),
    ),
    "a shape whose size overflows 64 bits": (
        "[request id: <id_unknown>] input 'stop_words' batch size does not match othe...",
        lambda: good(stop_words=("BYTES", [2**62, 4], b"")),
    ),
    "a negative shape": (
        "[request id: <id_unknown>] All input dimensions should be specified for inpu...",
        lambda: good(max_tokens=("INT32", [1, -1], b"\3\0\0\0")),
    ),
    "a batch of two": (
        "[request id: <id_unknown>] inference request batch-size must be <= 1 for 'ensemble'",
        lambda: changed(batch, message(text_input=HI)),
    ),
    "a string that ends after its tensor": (
        "incomplete string data for inference input 'text_input', expecting string of...",
        lambda: good(text_input=("BYTES", [1, 1], b"\xff\xff\xff\xffHi")),
    ),
    "data that is a byte too short": (
        "incomplete string data for inference input 'text_input', expecting string of...",
        lambda: changed(cut, message(text_input=HI)),
    ),
    "an input twice": (
        "[request id: <id_unknown>] input 'text_input' already exists in request",
        lambda: changed(twice, message(text_input=HI)),
    ),
    "an unknown input": (
        "unexpected inference input 'secret' for model 'ensemble'",
        lambda: good(secret=numbers("INT32", 1)),
    ),
    "raw and typed data for one input": (
        "contents field must not be specified when using raw_input_contents for 'text...",
        lambda: changed(typed, message(text_input=HI)),
    ),
    "an unknown output": (
        "unexpected inference output 'secret' for model 'ensemble'",
        lambda: changed(lambda m: m.outputs.add(name="secret"), good()),
    ),
    "an input from shared memory": (
        "Unable to find shared memory region: '/dev/shm'",
        lambda: changed(of_region, message(text_input=HI)),
    ),
    "an output to shared memory": (
        "Unable to find shared memory region: 'region'",
        lambda: changed(to_region, good()),
    ),
    "a version that does not exist": (
        "Request for unknown model: 'ensemble' version 7 is not found",
        lambda: version(good(), "7"),
    ),
    "a model's name with a path": (
        "Request for unknown model: '../../../etc/passwd' is not found",
        lambda: message("../../../etc/passwd", text_input=HI),
    ),
    "a model's name of 1 MB": (
        "Request for unknown model: 'mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm...",
        lambda: message("m" * 10**6, text_input=HI),
    ),
    "a sequence's id and start": (
        "an answer (`length`)",
        lambda: parameter(parameter(good(), "sequence_id", 7), "sequence_start", True),
    ),
    "a time-out of 1 us": ("an answer (`deadline`)", lambda: parameter(good(), "timeout", 1)),
    "a priority of -1": (
        "invalid value for 'priority', expected value >= 0.",
        lambda: parameter(good(), "priority", -1),
    ),
}
INTERNAL: dict[str, tuple[str, Callable[[], Any]]] = {
    "core model: a million ids": (
        "prompt: 1048576 tokens do not fit the context of 1024 with an answer; shorte...",
        lambda: core(input_ids=ids(2**20)),
    ),
    "core model: an id beyond the vocabulary": (
        "prompt: token id 2147483647 is outside the vocabulary [0, 256)",
        lambda: core(input_ids=numbers("INT32", 65, 2**31 - 1)),
    ),
    "core model: a negative id": (
        "prompt: token id -1 is outside the vocabulary [0, 256)",
        lambda: core(input_ids=numbers("INT32", 65, -1)),
    ),
    "core model: 4 MB of control characters": (
        "input_text: 4000000 bytes; give at most 1065536",
        lambda: core(input_text=string(b"\1" * LARGE)),
    ),
    "core model: a cancel without an id": (
        "stop: give it the request id of the request to cancel",
        lambda: core(stop=numbers("BOOL", True)),
    ),
    "preprocessing: a text of 4 MB": (
        "prompt: 4000000 bytes are more than server.max_prompt_bytes 1000000",
        lambda: message("preprocessing", text_input=string(b"x" * LARGE)),
    ),
    "postprocessing: an unsigned order of 4 MB": (
        "detokenize: it is not signed by this server; call the model `ensemble`",
        lambda: message("postprocessing", detokenize=string(b"x" * LARGE)),
    ),
    "postprocessing: a signature of zeros": (
        "detokenize: it is not signed by this server; call the model `ensemble`",
        lambda: message("postprocessing", detokenize=string(b"0" * 64 + b"{}\n{}")),
    ),
}


def sender(make: Callable[[], Any]) -> Callable[[Serving], str]:
    return lambda server: send(server, make())


QUICK = {
    "a turn of 900 KB of escapes",
    "a shape whose size overflows 64 bits",
    "an input from shared memory",
    "a model's name of 1 MB",
    "core model: an id beyond the vocabulary",
}
FAULTS = [
    attack(GROUP, name, sees, sender(make), quick=name in QUICK)
    for rows in (TEXTS, NUMBERS, SHAPES, INTERNAL)
    for name, (sees, make) in rows.items()
]
