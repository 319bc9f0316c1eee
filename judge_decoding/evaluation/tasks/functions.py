"""Generated programming tasks: small Python functions with unit tests, in several wordings.

A specification is one sentence, a reference solution and inputs; the tests' results come from
running the reference. Most specifications are compositions (keep some elements, change them, put
them together); algorithms.yaml holds the others. `wrong` solutions show that the tests can fail.
"""

from __future__ import annotations

import ast
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Any

from judge_decoding.evaluation.item import Item, third_of

SEED = 18
LISTS, WORDS, DIGITS = 90, 60, 20
"""Number of compositions that are drawn from each family."""
MAX_TOKENS = 320

PROMPTS = (
    "Write a Python function `{signature}` that {does}.{example} Answer with one code block.",
    "I need a Python function with the signature `{signature}`. It {does}.{example} Please give "
    "the function in one code block.",
    "Complete this function, and answer with all of it in one code block.{example}\n\n"
    '```python\ndef {signature}:\n    """It {does}."""\n```',
    "Task: implement `{signature}` in Python.\nSpecification: the function {does}.{example}\n"
    "Write only one code block.",
)


@dataclass(frozen=True)
class Function:
    """A specification.

    does       what the function does, to follow "a function that"
    inputs     the arguments of each test
    reference  source of a right solution
    wrong      source of a wrong solution
    """

    family: str
    name: str
    parameters: str
    does: str
    inputs: tuple[tuple[Any, ...], ...]
    reference: str
    wrong: str

    @property
    def signature(self) -> str:
        return f"{self.name}({self.parameters})"

    def results(self) -> list[Any]:
        """What the reference returns for each input."""
        scope: dict[str, Any] = {}
        exec(self.reference, scope)
        return [scope[self.name](*arguments) for arguments in self.inputs]


def code_items() -> list[Item]:
    """The task: one item per function."""
    return [_item(function) for function in functions()]


def functions() -> list[Function]:
    """All functions, always the same; no two have the same name."""
    rng = random.Random(SEED)
    drawn = [
        *rng.sample(list(_lists()), LISTS),
        *rng.sample(list(_words()), WORDS),
        *rng.sample(list(_digits()), DIGITS),
    ]
    return [*drawn, *_algorithms()]


def call(function: Function, arguments: tuple[Any, ...]) -> str:
    return f"{function.name}({', '.join(map(repr, arguments))})"


def _item(function: Function) -> Item:
    rng = random.Random(f"{SEED} {function.name}")
    cases = list(zip(function.inputs, function.results(), strict=True))
    arguments, result = cases[1]
    example = f" For example, `{call(function, arguments)}` returns `{result!r}`."
    return Item(
        id=f"code-{function.name}",
        group=function.name,
        domain=function.family,
        prompt=rng.choice(PROMPTS).format(
            signature=function.signature,
            does=function.does,
            example=example if rng.random() < 0.5 else "",
        ),
        parser="python",
        tests="\n".join(f"assert {call(function, given)} == {got!r}" for given, got in cases),
        max_tokens=MAX_TOKENS,
        split=third_of(function.name),
    )


# Part of a name -> (words, expression). x is the element.
_KEEP_NUMBERS = {
    "even": ("even", "x % 2 == 0"),
    "odd": ("odd", "x % 2 != 0"),
    "positive": ("positive", "x > 0"),
    "negative": ("negative", "x < 0"),
    "large": ("greater than 10", "x > 10"),
    "threefold": ("divisible by 3", "x % 3 == 0"),
    "small": ("between -5 and 5 (inclusive)", "-5 <= x <= 5"),
}
_CHANGE_NUMBERS = {
    "squares": ("squares it", "x * x"),
    "doubles": ("multiplies it by 2", "2 * x"),
    "opposites": ("changes its sign", "-x"),
    "successors": ("adds 1 to it", "x + 1"),
    "last_digits": ("takes its last decimal digit, ignoring the sign", "abs(x) % 10"),
}
_JOIN_NUMBERS = {
    "sum": ("their sum, or 0 if there are none", "sum(kept)"),
    "product": ("their product, or 1 if there are none", "math.prod(kept)"),
    "largest": ("the largest of them, or None if there are none", "max(kept, default=None)"),
    "smallest": ("the smallest of them, or None if there are none", "min(kept, default=None)"),
    "list": ("them as a list in the same order", "kept"),
    "sorted": ("them as a list in descending order", "sorted(kept, reverse=True)"),
    "distinct": ("the number of different values among them", "len(set(kept))"),
}
_NUMBER_LISTS: tuple[tuple[list[int]], ...] = (
    ([],),
    ([3, -4, 10, 7, 0, 12, -9],),
    ([2, 4, 6],),
    ([1, 3, 5, -7],),
    ([15, -30, 11, 8, 8, 9],),
    ([100, 9, -9, 33, 21],),
    ([-1, -2, -3],),
    ([5, 25, 4, -5, 14],),
)


def _lists() -> Iterator[Function]:
    head = (
        "import math\n\n\ndef {name}(numbers):\n    kept = [{change} for x in numbers if {keep}]\n"
    )
    body = head + "    return {join}\n"
    for keep, change, join in itertools.product(_KEEP_NUMBERS, _CHANGE_NUMBERS, _JOIN_NUMBERS):
        name = f"{join}_of_{keep}_{change}"
        kept, changed, joined = _KEEP_NUMBERS[keep], _CHANGE_NUMBERS[change], _JOIN_NUMBERS[join]
        variants = (
            f"goes through the list of integers `numbers`, keeps each number that is {kept[0]}, "
            f"{changed[0]}, and returns {joined[0]}",
            f"takes a list of integers and drops all but those that are {kept[0]}; for each number "
            f"that is left it {changed[0]}; of these results it returns {joined[0]}",
        )
        other = _next(_KEEP_NUMBERS, keep)
        yield Function(
            "lists",
            name,
            "numbers",
            variants[_coin(name)],
            _NUMBER_LISTS,
            body.format(name=name, change=changed[1], keep=kept[1], join=joined[1]),
            body.format(name=name, change=changed[1], keep=other[1], join=joined[1]),
        )


_KEEP_WORDS = {
    "long": ("have more than 4 letters", "len(x) > 4"),
    "short": ("have at most 3 letters", "len(x) <= 3"),
    "vowel": ("begin with a vowel (a, e, i, o, u)", "x[0] in 'aeiou'"),
    "plural": ("end with the letter s", "x[-1] == 's'"),
    "with_e": ("contain the letter e", "'e' in x"),
    "without_a": ("do not contain the letter a", "'a' not in x"),
}
_CHANGE_WORDS = {
    "upper": ("in upper case", "x.upper()"),
    "reversed": ("spelled backwards", "x[::-1]"),
    "initials": ("shortened to their first letter", "x[0]"),
    "doubled": ("written twice without a space (so that ab becomes abab)", "x + x"),
}
_JOIN_WORDS = {
    "list": ("as a list in the order of the text", "kept"),
    "joined": ("joined by hyphens, in the order of the text", "'-'.join(kept)"),
    "sorted": ("as an alphabetically sorted list", "sorted(kept)"),
    "last": ("but only the last one, or None if there are none", "kept[-1] if kept else None"),
}
_TEXTS: tuple[tuple[str], ...] = (
    ("",),
    ("the quick brown foxes jump over a lazy dog",),
    ("apples and oranges are sweet",),
    ("we like long walks as well as ice",),
    ("no",),
    ("every us ant sees under the apple trees",),
    ("tiny cats run past old brick houses at noon",),
)


def _words() -> Iterator[Function]:
    body = "def {name}(text):\n    kept = [{change} for x in text.split() if {keep}]\n"
    body += "    return {join}\n"
    for keep, change, join in itertools.product(_KEEP_WORDS, _CHANGE_WORDS, _JOIN_WORDS):
        name = f"{join}_{keep}_words_{change}"
        kept, changed, joined = _KEEP_WORDS[keep], _CHANGE_WORDS[change], _JOIN_WORDS[join]
        variants = (
            f"splits the lower-case string `text` at spaces and returns the words that {kept[0]}, "
            f"{changed[0]}, {joined[0]}",
            f"looks at the words of `text` (lower case, separated by spaces); words that {kept[0]} "
            f"are kept; it returns them {changed[0]}, {joined[0]}",
        )
        other = _next(_KEEP_WORDS, keep)
        yield Function(
            "words",
            name,
            "text",
            variants[_coin(name)],
            _TEXTS,
            body.format(name=name, change=changed[1], keep=kept[1], join=joined[1]),
            body.format(name=name, change=changed[1], keep=other[1], join=joined[1]),
        )


_KEEP_DIGITS = {
    "even": ("even", "x % 2 == 0"),
    "odd": ("odd", "x % 2 == 1"),
    "high": ("greater than 5", "x > 5"),
    "nonzero": ("not zero", "x != 0"),
}
_JOIN_DIGITS = {
    "sum": ("the sum of", "sum(kept)"),
    "count": ("how many there are of", "len(kept)"),
    "product": ("the product (1 if there are none) of", "math.prod(kept)"),
    "largest": ("the largest (0 if there are none) of", "max(kept, default=0)"),
    "list": ("a list, from left to right, of", "kept"),
    "smallest": ("the smallest (9 if there are none) of", "min(kept, default=9)"),
}
_NUMBERS: tuple[tuple[int], ...] = (
    (0,),
    (7294,),
    (1357,),
    (2468,),
    (50608,),
    (99,),
    (1234567890,),
    (3,),
)


def _digits() -> Iterator[Function]:
    body = "import math\n\n\ndef {name}(number):\n"
    body += "    kept = [x for x in map(int, str(number)) if {keep}]\n    return {join}\n"
    for keep, join in itertools.product(_KEEP_DIGITS, _JOIN_DIGITS):
        name = f"{join}_of_{keep}_digits"
        kept, joined = _KEEP_DIGITS[keep], _JOIN_DIGITS[join]
        other = _next(_KEEP_DIGITS, keep)
        yield Function(
            "digits",
            name,
            "number",
            f"returns {joined[0]} the decimal digits of the non-negative integer `number` that are "
            f"{kept[0]}",
            _NUMBERS,
            body.format(name=name, keep=kept[1], join=joined[1]),
            body.format(name=name, keep=other[1], join=joined[1]),
        )


def _algorithms() -> Iterator[Function]:
    import yaml

    path = Path(__file__).with_name("algorithms.yaml")
    for row in yaml.safe_load(path.read_text(encoding="utf-8")):
        name, parameters = row["name"], row["parameters"]
        function = Function(
            "algorithms",
            name,
            parameters,
            row["does"][_coin(name)],
            tuple(ast.literal_eval(f"[{row['inputs']}]")),
            f"def {name}({parameters}):\n{indent(row['body'], '    ')}",
            "",
        )
        # Wrong: the result of the first test, whatever the arguments.
        constant = f"def {function.signature}:\n    return {function.results()[0]!r}\n"
        yield replace(function, wrong=constant)


def _next(table: dict[str, tuple[str, str]], key: str) -> tuple[str, str]:
    keys = list(table)
    return table[keys[(keys.index(key) + 1) % len(keys)]]


def _coin(name: str) -> int:
    """0 or 1: which of two wordings a function has."""
    return random.Random(f"wording {name}").randrange(2)
