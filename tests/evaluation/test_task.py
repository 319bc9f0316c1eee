"""Task files and their parsers: the answers they find, what is refused, what the tasks hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from judge_decoding.errors import UserError
from judge_decoding.evaluation import run_code
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.parsers import expected, final_answer, is_right, settled
from judge_decoding.evaluation.task import read_task, write_task


def item(**changes: Any) -> Item:
    values = {"id": "i", "group": "g", "domain": "d", "prompt": "What is it?", "answer": "7"}
    return Item.model_validate(values | {"parser": "number"} | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("so 1,200.0 in all", "1200"),
        ("3 - 4 = -1.", "-1"),
        ("It costs $12.50.", "12.5"),
        ("from 5-3", "3"),  # a hyphen, not a minus
        ("-0.0", "0"),
        ("none at all", None),
        # Regression: a list's commas were read as thousands separators, 1,2,3 as 123.
        ("1,2,3", "3"),
        ("between 3,4", "4"),
        ("3,000, 4", "4"),
        ("12,345,678.50 dollars", "12345678.5"),
        ("1,2345", "2345"),
    ],
)
def test_number_is_the_last_one(text: str, said: str | None) -> None:
    assert final_answer(item(), text) == said


def test_numbers_are_compared_by_value() -> None:
    assert is_right(item(answer="1200"), "That makes 1,200.00 in all")
    assert not is_right(item(answer="1200"), "That makes 1,201")
    assert not is_right(item(answer="1200"), "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is (C).", "C"),
        ("**Answer: D**", "D"),
        ("A good question. B, I think; not C", "B"),
        ("A", "A"),
        ("Answer: B. No, wait. The answer is C", "C"),
        ("BAD", None),
        # Regression: "A" was taken for the article, and the next letter for the answer.
        ("The answer is A because B is too large.", "A"),
        ("The ANSWER IS A and not C.", "A"),
        ("Answer: A is right, B is wrong.", "A"),
        ("A is correct; B is not.", "A"),
        ("The answer is a hard one: B", "B"),
        ("The answer is D because A is small.", "D"),
    ],
)
def test_choice(text: str, said: str | None) -> None:
    assert final_answer(item(parser="choice", answer="B"), text) == said


def test_choice_knows_only_its_own_letters() -> None:
    two = item(parser="choice", answer="J", choices=["J", "K"])
    assert final_answer(two, "A or B? K.") == "K" and is_right(two, "J")


def test_exact_ignores_case_accents_and_spaces() -> None:
    brasilia = item(parser="exact", answer="Brasília")
    assert is_right(brasilia, "  brasilia ") and not is_right(brasilia, "brasilia.")


CAPITAL = item(parser="first_of", prompt="Capital of Mali?", answer="Bamako", choices=["Rome"])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Bamako, not Rome", True),
        ("Rome, not Bamako", False),
        ("Romeo and bamako", True),  # whole words, any case
        ("It is in Africa", False),
    ],
)
def test_first_of_takes_what_is_said_first(text: str, right: bool) -> None:
    assert is_right(CAPITAL, text) is right


def test_first_of_leaves_out_what_the_prompt_names_and_takes_the_longer_name() -> None:
    guinea = item(
        parser="first_of",
        prompt="Is it Guinea or Mali?",
        answer="Guinea-Bissau",
        choices=["Guinea", "Mali", "Chad"],
    )
    assert is_right(guinea, "Neither Mali nor Guinea: Guinea-Bissau")
    assert final_answer(guinea, "Chad") == "Chad"
    named = item(parser="first_of", prompt="12 + 3?", answer="15")
    assert is_right(named, "12 + 3 = 15") and final_answer(named, "12 + 3 = 16") == "16"


def test_first_of_with_case_is_not_misled_by_a_first_word() -> None:
    arsenic = item(parser="first_of", answer="As", choices=["In", "Ar"], match_case=True)
    assert is_right(arsenic, "In chemistry it is As, as you know")
    assert is_right(arsenic, "As.") and not is_right(arsenic, "as")


@pytest.mark.parametrize(
    ("text", "stands"),
    [
        ("It is Guinea", False),  # "Guinea-Bissau"
        ("It is Guinea-", False),
        ("It is Guinea ", True),
        ("It is Guinea.", True),
        ("It is", False),
        ("", False),
    ],
)
def test_an_answer_stands_once_its_word_has_ended(text: str, stands: bool) -> None:
    guinea = item(parser="first_of", answer="Guinea-Bissau", choices=["Guinea"])
    assert settled(guinea, text) is stands
    number = item(parser="first_of", prompt="12 + 3?", answer="15")
    assert not settled(number, "12 + 3 = 1") and settled(number, "12 + 3 = 15.")
    indium = item(parser="first_of", answer="As", choices=["In"], match_case=True)
    assert not settled(indium, "In ") and settled(indium, "It is In ")
    # A later number, letter or block of code is the one that counts.
    assert not settled(item(), "It is 7.") and not settled(
        item(parser="choice"), "The answer is B."
    )


DOUBLE = item(parser="python", answer=None, tests="assert f(2) == 4\nassert f(0) == 0")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Sure:\n```python\ndef f(x):\n    return 2 * x\n```\nDone.", True),
        ("def f(x): return 2 * x", True),
        ("```\nf = 1\n```\nor better\n```py\nf = lambda x: x * 2\n```", True),
        ("def f(x): return 4", False),
        ("exit(0)", False),  # it ended, but not by passing
        ("import os; os._exit(0)", False),
        ("def f(x): return", False),
        ("def f(x: return", False),
        ("", False),
    ],
)
def test_python_runs_the_tests(text: str, right: bool) -> None:
    assert is_right(DOUBLE, text, run_code=True) is right


def test_python_code_is_bounded_and_opted_into(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--run-code"):
        is_right(DOUBLE, "def f(x): return 2 * x")
    assert not run_code.runs_through("while True: pass", seconds=0.5)
    assert not run_code.runs_through("x = bytearray(2**31)")
    probe = tmp_path / "probe"
    child = f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 2; touch {probe}'])"
    assert run_code.runs_through(child)  # and what it has started ends with it
    assert not run_code.runs_through("open('big', 'wb').write(bytes(2**25))")
    assert not probe.exists()


def test_nothing_is_right_where_nothing_is_checked() -> None:
    open_ = item(parser="none", answer=None)
    assert final_answer(open_, "anything") is None and expected(open_) is None
    with pytest.raises(UserError, match="parser none"):
        is_right(open_, "anything")


def rows(*changes: dict[str, Any]) -> str:
    return "".join(
        json.dumps({"id": str(n), "group": str(n), "domain": "d", "prompt": "p"} | change) + "\n"
        for n, change in enumerate(changes)
    )


def test_a_star_stands_for_the_domains_answers_and_choices(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    first = {"parser": "first_of", "answer": "a", "choices": ["*", "x"]}
    second = {"parser": "first_of", "answer": "b", "choices": ["y"]}
    other = {"parser": "first_of", "answer": "z", "domain": "e"}
    file.write_text(rows(first, second, other))
    assert [one.choices for one in read_task(file)] == [["a", "x", "b", "y"], ["y"], []]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no items"),
        ("{", "t.jsonl:1: item: Invalid JSON"),
        (rows({"parser": "number"}), "parser number needs an answer"),
        (rows({"parser": "none", "answer": "1"}), "parser none takes no answer"),
        (rows({"parser": "python"}), "tests belong to parser python"),
        (rows({"parser": "number", "answer": "1", "tests": "x"}), "tests belong to parser python"),
        (rows({"parser": "number", "answer": "1", "nonsense": 1}), "nonsense: unknown key"),
        (rows({"parser": "number", "answer": "1", "stop": [""]}), "empty string"),
        (rows({"parser": "guess", "answer": "1"}), "parser: Input should be"),
        (rows(*[{"parser": "none", "id": "same"}] * 2), "t.jsonl:2: id 'same' is there twice"),
        (
            rows(
                {"parser": "none", "group": "g", "split": "report"},
                {"parser": "none", "group": "g", "split": "calibrate"},
            ),
            "group 'g' is in two splits",
        ),
    ],
)
def test_a_bad_task_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_task(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_task_names_those_there_are() -> None:
    for name in ("nothing", "nothing.jsonl", "no/nothing"):
        with pytest.raises(UserError, match=r"shipped are .*arithmetic.*chat.*court"):
            read_task(name)


def test_writing_and_reading_is_the_same(tmp_path: Path) -> None:
    items = [item(), item(id="j", group="h", parser="choice", answer="A", split="report")]
    write_task(tmp_path / "new" / "t.jsonl", items)
    assert read_task(tmp_path / "new" / "t.jsonl") == items


def test_every_known_answer_of_the_shipped_tasks_is_right() -> None:
    for name in ("court", "arithmetic"):
        for one in read_task(name):
            assert one.answer is not None
            assert is_right(one, f"I think: {one.answer}"), one
            assert not is_right(one, "I do not know"), one
