"""What is refused by its size alone, before it is decoded or copied."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judge_decoding.config import Deployment
from judge_decoding.errors import UserError
from judge_decoding.serving import order
from judge_decoding.serving.bounds import TooLong, check_tensors, read_strings

SECRET = b"of this server"


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return Deployment.model_validate(
        {
            "name": "tiny",
            "target": {"model": "x"},
            "draft": {"model": "x"},
            "limits": {"max_context": 64, "max_tokens": 50},
            "server": {"max_prompt_bytes": 100},
        },
        context={"folder": Path()},
    )


def texts(*values: Any) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    for place, value in enumerate(values):
        array[0, place] = value
    return array


@pytest.mark.parametrize(
    ("tensors", "name", "message"),
    [
        (
            {"input_ids": np.broadcast_to(np.int32(7), (1, 25_000_000))},
            "",
            "prompt: 25000000 tokens do not fit the context of 64 with an answer; "
            "shorten it or raise limits.max_context",
        ),
        (
            {"stop_words": np.broadcast_to(np.array(b"", object), (1, 25_000_000))},
            "",
            "stop_words: 25000000 strings; give at most 32",
        ),
        ({"stop_words": texts(b"a", b"b" * 1025)}, "", "stop_words: one is longer than 1024 bytes"),
        (
            {"acceptance_rule": texts(TooLong(6_000_000))},
            "",
            "acceptance_rule: 6000000 bytes; give at most 64",
        ),
        (
            {"input_text": texts(TooLong(100_000_000))},
            "",
            "input_text: 100000000 bytes; give at most 65636",
        ),
        (
            {"text_input": texts(b"x" * 60), "messages": texts(b"y" * 41)},
            "",
            "prompt: 101 bytes are more than server.max_prompt_bytes 100",
        ),
        ({"text_input": texts(b"a", b"b")}, "", "text_input: 2 values; give one"),
        ({"seed": np.zeros((1, 0), np.uint64)}, "", "seed: 0 values; give one"),
        ({}, "x" * 257, "request id: 257 bytes; give at most 256"),
        ({}, "é" * 129, "request id: 258 bytes; give at most 256"),
    ],
)
def test_what_is_too_large_is_refused_by_its_size(
    deployment: Deployment, tensors: dict[str, np.ndarray], name: str, message: str
) -> None:
    """Regression: these were converted, scanned or echoed whole first (issue 16)."""
    with pytest.raises(UserError) as refused:
        check_tensors(tensors, deployment, name)
    assert str(refused.value) == message


def test_the_limits_themselves_are_allowed(deployment: Deployment) -> None:
    tensors = {
        "input_ids": np.zeros((1, 63), np.int32),
        "stop_words": texts(*[b"b" * 1024] * 32),
        "acceptance_rule": texts(b"r" * 64),
        "input_text": texts(b"x" * 65_636),
        "text_input": texts(b"x" * 60),
        "messages": texts(b"y" * 40),
    }
    check_tensors(tensors, deployment, "é" * 128)
    check_tensors({"stop_words": texts()}, deployment)


def encoded(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def test_a_tensor_of_strings_is_read_as_tritons_own_code_reads_it() -> None:
    values = [b"", b"one", "zwölf".encode(), b"x" * 300]
    for data in (encoded(*values), np.frombuffer(encoded(*values), np.uint8)):
        array = read_strings(data, most=1000).reshape([1, 4])
        assert array.dtype == object and array.tolist() == [values]
    assert read_strings(b"", most=9).reshape([1, 0]).tolist() == [[]]


def test_strings_that_no_input_may_hold_are_not_copied() -> None:
    array = read_strings(encoded(b"abcd", b"abc"), most=3).reshape([2])
    assert array.tolist() == [TooLong(4), b"abc"] and len(array[0]) == 4
    many = read_strings(bytes(4 * 65), most=3).reshape([1, 65])
    assert many.shape == (1, 65) and many.strides == (0, 0)
    assert read_strings(bytes(4 * 64), most=3).reshape([64]).tolist() == [b""] * 64


@pytest.mark.parametrize("data", [b"\1", b"\1\0\0\0", b"\xff\xff\xff\xffabc"])
def test_a_string_that_ends_behind_its_tensor_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="a string ends at byte"):
        read_strings(data, most=100)


def test_an_order_longer_than_any_is_not_even_hashed(deployment: Deployment) -> None:
    """The server's own longest one is: all control characters, which JSON writes with six bytes."""
    longest = order.longest(deployment)
    first = {"before": "\1" * (100 + 65_536), "stop": ["\1" * 1024] * 32}
    document = {"sequence": 2**62, "at": 0, "ids": [10**9] * 63, "finish": "cancelled"}
    signed = order.sign(document, SECRET, order.part(first))
    assert order.read(signed, SECRET, longest) == document | first
    for given in (signed + b" " * longest, TooLong(10**8)):
        with pytest.raises(UserError, match="it is not signed by this server"):
            order.read(given, SECRET, longest)  # type: ignore[arg-type]


def test_both_parts_of_an_order_are_signed() -> None:
    first = order.part({"before": "a"})
    signed = order.sign({"at": 0}, SECRET, first)
    assert order.read(signed, SECRET) == {"at": 0, "before": "a"}
    for forged in (signed.replace(b'"a"', b'"b"'), signed.replace(b"0}", b"1}"), signed[:-1]):
        with pytest.raises(UserError, match="it is not signed by this server"):
            order.read(forged, SECRET)
