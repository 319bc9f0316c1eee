"""The words of the controlled task, with all wordings of each piece of an answer.

A template consists of words and slots; a slot `{name}` is filled by a fact of the problem or by any
of the `WORDINGS` of that name. Texts are lists of words; a punctuation mark is a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = {
    "Mia": "she", "Ana": "she", "Rosa": "she", "Lena": "she", "Ivy": "she", "Nora": "she",
    "Tom": "he", "Ben": "he", "Omar": "he", "Leo": "he", "Max": "he", "Carl": "he",
}  # fmt: skip
THINGS = (
    "apples", "coins", "shells", "stamps", "books", "marbles",
    "cards", "beads", "pens", "stones", "tickets", "buttons",
)  # fmt: skip
GAINS = ("buys", "finds", "wins", "collects", "makes")
LOSSES = ("sells", "loses", "trades", "drops", "donates")
WORDINGS: dict[str, tuple[str, ...]] = {
    "opening": (
        "{name} {starts} {start} {things} .",
        "At first there are {start} {things} .",
        "The {pile} {starts} {start} .",
        "We know that {name} has {start} {things} .",
        "To begin , {name} has {start} .",
        "Before all this , the {pile} is {start} .",
    ),
    "starts": ("starts with", "begins with", "sets out with", "opens with"),
    "when": (
        "On {day}",
        "Then on {day}",
        "Next , on {day} ,",
        "When {day} comes ,",
        "After that , on {day} ,",
        "By {day} night",
        "Come {day} ,",
        "{day} is when",
    ),
    "up": (
        "{who} {gains} {n} {more} , {so} {after} {tail} .",
        "the {pile} {rises} by {n} {to} {after} {tail} .",
        "{n} {more} {things} {arrive} , {so} {after} {tail} .",
        "{before} {plus} {n} {is} {after} {tail} .",
    ),
    "down": (
        "{who} {loses} {n} {of_them} , {so} {after} {tail} .",
        "the {pile} {falls} by {n} {to} {after} {tail} .",
        "{n} {old} {things} {leave} , {so} {after} {tail} .",
        "{before} {minus} {n} {is} {after} {tail} .",
    ),
    "who": ("{she}", "{name}", "our {friend}"),
    "friend": ("friend", "collector", "owner"),
    "gains": ("gains", "gets", "adds", "receives", "takes in"),
    "loses": ("loses", "spends", "removes", "gives up", "parts with"),
    "rises": ("rises", "grows", "climbs", "goes up", "increases"),
    "falls": ("falls", "shrinks", "sinks", "goes down", "decreases"),
    "arrive": ("arrive", "come in", "join", "turn up"),
    "leave": ("leave", "go out", "vanish", "are gone"),
    "plus": ("plus", "and", "with another", "added to"),
    "minus": ("minus", "less", "without", "take away"),
    "more": ("more", "extra", "new", "additional"),
    "of_them": ("of them", "of those", "for good", ""),
    "old": ("", "old", "of the", "of these"),
    "pile": ("pile", "total", "count", "number", "collection", "stock"),
    "to": ("to", "and reaches", "and is now", ", giving", "and stands at", ", ending at"),
    "so": (
        "so there are", "which makes", "and that is",
        "leaving us at", "so we have", "for a sum of",
    ),
    "is": ("is", "makes", "gives", "comes to", "equals", "yields"),
    "tail": ("", "{things}", "in all", "altogether", "now", "by the end of it"),
    "closing": (
        "So the answer is {after} .",
        "In the end the answer is {after} .",
        "That means the answer is {after} .",
        "Therefore the answer is {after} .",
        "Hence , the answer is {after} .",
    ),
    "oops": (", no ,", ", wait ,", ", sorry ,", ", rather"),
}  # fmt: skip

OPPOSITE = {"gains": "loses", "rises": "falls", "arrive": "leave", "plus": "minus"}
OPPOSITE |= {loss: gain for gain, loss in OPPOSITE.items()}

PUNCTUATION = frozenset(".,:?")


def text_of(words: Sequence[str]) -> str:
    """Words as text; every word except punctuation has a space before it, even the first."""
    return "".join(word if word in PUNCTUATION else " " + word for word in words)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def symbols(template: str) -> tuple[str, ...]:
    return tuple(template.split())


def vocabulary() -> list[str]:
    """Every word that questions and answers are made of."""
    words = {str(number) for number in range(100)} | PUNCTUATION | {*DAYS, *THINGS, *GAINS, *LOSSES}
    words |= {*PEOPLE, *PEOPLE.values()}
    for template in (option for options in WORDINGS.values() for option in options):
        words |= {symbol for symbol in symbols(template) if symbol[0] != "{"}
    words |= set(words_of("On has have How many are left with What is the number of now does ?"))
    return sorted(words)
