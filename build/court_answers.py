"""What an answer says: the parsers behind the gate and the mined labels."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

from court_facts import Question, questions

Parser = Callable[[str], str | None]
"""An answer's text -> its final answer in a form that can be compared, None without one."""


def plain(text: str) -> str:
    """Without accents: the target writes "Brasilia" as well."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(c for c in parts if not unicodedata.combining(c))


def rivals_by_domain() -> dict[str, list[str]]:
    """domain -> answers of its kind: what could be said instead of the right one."""
    found: dict[str, list[str]] = defaultdict(list)
    for question in questions():
        found[question.domain].append(question.answer)
    found["continents"] += ["South America", "North America", "Oceania", "Antarctica"]
    return found


def said(question: Question, text: str, rivals: Sequence[str]) -> str | None:
    """The first thing in `text` that could be an answer, None where nothing could.

    rivals  answers of the same kind; those that the question itself names do not count
    """
    answer, given = plain(question.answer), plain(text)
    asked = plain(question.prompt)
    if answer.isdigit():
        known = set(re.findall(r"\d+", asked))
        return next((n for n in re.findall(r"\d+", given) if n not in known), None)
    exact = question.domain == "symbols"  # "As" is arsenic, "as" is not
    flags = 0 if exact else re.IGNORECASE
    first: list[tuple[int, int, str]] = []
    for candidate in sorted({answer, *map(plain, rivals), *map(plain, question.wrong)}):
        word = rf"(?<!\w){re.escape(candidate.removeprefix('the '))}(?!\w)"
        if candidate != answer and re.search(word, asked, flags):
            continue
        # A sentence may begin with "In" or "As": no symbol is meant there.
        if match := re.search(word, given[1:] if exact else given, flags):
            # "Guinea" lies in "Guinea-Bissau": at one place the longer name is the one said.
            first.append((match.start(), -len(candidate), candidate))
    return min(first)[2] if first else None


def is_right(question: Question, text: str, rivals: Sequence[str]) -> bool:
    """Whether the first thing in `text` that could be an answer is the right one."""
    return said(question, text, rivals) == plain(question.answer)


def last_number(text: str) -> str | None:
    """ "... so 1,200.0 in all" -> "1200"."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def last_choice(text: str) -> str | None:
    """The last capital letter from A to E that stands alone."""
    found = re.findall(r"(?<![\w'])[A-E](?![\w'])", text)
    return found[-1] if found else None


def exact(text: str) -> str | None:
    """All of it, but for case, accents and spaces."""
    return " ".join(plain(text).lower().split()) or None


PARSERS: dict[str, Parser] = {"number": last_number, "choice": last_choice, "exact": exact}
