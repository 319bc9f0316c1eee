"""What messages repeat of a value: a little, at once, whatever the value is."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from judge_client.connection import check_address
from judge_client.echo import ECHO, cut, shown
from judge_client.errors import JudgeClientError
from judge_client.wire import GenerateRequest, infer_request
from judge_decoding.config import describe
from judge_decoding.errors import UserError, check_choice


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("judge", "'judge'"),
        ("a" * 200, f"'{'a' * 200}'"),
        ("a" * 201, f"'{'a' * 196}... (201 characters)"),
        ("a" * 6_000_000, f"'{'a' * 196}... (6000000 characters)"),
        (b"\0" * 100, "b'" + r"\x00" * 48 + r"\x0" + "... (100 bytes)"),
        (None, "None"),
        (0.5, "0.5"),
        (True, "True"),
        (-7, "-7"),
        (10**5000, "an integer of 16610 bits"),
        ([1, 2], "[1, 2]"),
        ([1] * 10**6, "[1, 1, 1, 1, 1, 1, ...]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_shown_as_python_writes_it_up_to_200_characters(
    value: object, expected: str
) -> None:
    assert shown(value) == expected


def test_nested_values_are_bounded_too() -> None:
    assert len(shown([["x" * 10**6] * 10**4] * 10**4)) <= ECHO
    assert len(shown({"a" * 10**6: {"b" * 10**6: 10**9999}})) <= ECHO


def test_a_text_is_cut_without_quotes() -> None:
    assert cut("é" * 200) == "é" * 200
    assert cut("é" * 201) == "é" * 197 + "... (201 characters)"
    assert cut("abcdef", most=5) == "ab... (6 characters)"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")
    numbers: list[int]


def problems(value: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        Section.model_validate(value)
    return describe(refused.value)


def test_five_problems_are_described_and_the_others_counted() -> None:
    """Regression: 400,000 wrong turns made a message of 17 MB (issue 16, public_faults.md 12)."""
    one = "numbers.{}: Input should be a valid integer, unable to parse string as an integer"
    five = "; ".join(one.format(i) + " (got 'x')" for i in range(5))
    assert problems({"numbers": ["x"] * 5}) == five
    assert problems({"numbers": ["x"] * 400}) == f"{five}; and 395 more"


def test_keys_and_values_of_megabytes_are_cut_everywhere() -> None:
    """Regression: a rule's name of 6 MB came back whole (issue 16)."""
    long, said = "k" * 6_000_000, f"'{'k' * 196}... (6000000 characters)"
    assert problems({long: 1, "numbers": []}) == (
        f"{'k' * 197}... (6000000 characters): unknown key (got 1)"
    )
    assert problems({"numbers": long}).endswith(f"a valid list (got {said})")
    with pytest.raises(UserError) as refused:
        check_choice("rule", long, ["strict"])
    assert str(refused.value) == f"rule: {said} is not one of strict"
    with pytest.raises(JudgeClientError) as unfit:
        infer_request(GenerateRequest("", seed=long), "1", stream=True)  # type: ignore[arg-type]
    assert str(unfit.value) == f"seed: {said} is not a value of type UINT64"
    with pytest.raises(JudgeClientError) as nowhere:
        check_address(long)
    assert str(nowhere.value) == f"url: {said} is not HOST:PORT, such as 127.0.0.1:8001"
