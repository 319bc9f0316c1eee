"""What an answer says, and whether it is right.

number    the last number in the text: "... so 1,200.0 in all" says 1200, "1,2,3" says 3
choice    a letter (A to E, or the item's choices): the one after the last "answer is" or "answer:",
          else the first that stands alone
exact     the whole text, except for case, accents and spaces
first_of  the first of the item's choices that the text says, except those the prompt itself names;
          where the answer is a whole number, any whole number is a choice
python    the last block of code (or, without one, all of the text); right where the tests pass
none      nothing; no answer is right or wrong
"""

from __future__ import annotations

import re
import unicodedata

from judge_decoding.errors import UserError
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.run_code import runs_through

LETTERS = ("A", "B", "C", "D", "E")
FIRST_COUNTS = frozenset({"first_of"})
"""Parsers that read the first answer said: nothing that is said after it can change it."""
NO_NOUN = "is|was|has|and|or|but|because|since|as|seems|would|must|should"


def final_answer(item: Item, text: str) -> str | None:
    """The answer that `text` gives to `item`, in a form that can be compared; None without one."""
    match item.parser:
        case "number":
            return last_number(text)
        case "choice":
            return choice(text, item.choices or LETTERS)
        case "exact":
            return exact(text)
        case "first_of":
            return first_of(item, text)
        case "python":
            return code(text)
        case "none":
            return None


def is_right(item: Item, text: str, *, run_code: bool = False) -> bool:
    """Whether `text` answers `item` rightly.

    run_code  allow parser `python` to run what the model wrote (`evaluation.run_code`)

    UserError if code must run and may not, and for an item that cannot be checked.
    """
    if item.parser == "none":
        raise UserError(f"task: item {item.id!r} has parser none; nothing can be right or wrong")
    given = final_answer(item, text)
    if item.parser == "python":
        if not run_code:
            raise UserError("task: parser python runs what the model wrote; allow it by --run-code")
        return given is not None and runs_through(f"{item.preamble}\n\n{given}\n\n{item.tests}\n")
    return given is not None and given == expected(item)


def settled(item: Item, text: str) -> bool:
    """Whether the answer stands, however `text` goes on: under a parser of FIRST_COUNTS, once an
    answer is given and its word has ended ("1" may become "146", "Guinea" "Guinea-Bissau")."""
    if item.parser not in FIRST_COUNTS:
        return False
    # The underscore stands for what follows: some first words count only as the whole text.
    return final_answer(item, re.sub(r"[\w-]+$", "", text) + "_") is not None


def expected(item: Item) -> str | None:
    """The known answer in the form that `final_answer` has."""
    if item.answer is None:
        return None
    match item.parser:
        case "number":
            return last_number(item.answer)
        case "exact":
            return exact(item.answer)
        case "first_of":
            return plain(item.answer)
    return item.answer


def plain(text: str) -> str:
    """The text without accents, since a model also writes "Brasilia"."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(c for c in parts if not unicodedata.combining(c))


def last_number(text: str) -> str | None:
    number = r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?"
    found = re.findall(rf"(?<![\w.])-?{number}|{number}", text)
    if not found:
        return None
    last = str(found[-1]).replace(",", "")
    if "." in last:
        last = last.rstrip("0").rstrip(".")
    return "0" if last == "-0" else last


def choice(text: str, letters: list[str] | tuple[str, ...]) -> str | None:
    known = "|".join(map(re.escape, letters))
    alone = rf"(?<![\w'])({known})(?![\w'])"
    told = re.findall(rf"(?i:\banswer(?: is|:))[\s:*(\[\"']*{alone}", text)
    if told:
        return str(told[-1])
    # "A" before a lower-case word is the article, unless no article can stand before that word.
    found = re.search(rf"{alone}(?!(?<=A) (?!(?:{NO_NOUN})\b)[a-z])", text)
    return found[1] if found else None


def exact(text: str) -> str | None:
    return " ".join(plain(text).lower().split()) or None


def first_of(item: Item, text: str) -> str | None:
    assert item.answer is not None
    answer, given, asked = plain(item.answer), plain(text), plain(item.prompt)
    if answer.isdigit():
        known = set(re.findall(r"\d+", asked))
        return next((n for n in re.findall(r"\d+", given) if n not in known), None)
    flags, lowered = 0 if item.match_case else re.IGNORECASE, given.lower()
    first: list[tuple[int, int, str]] = []
    for candidate in sorted({answer, *map(plain, item.choices)}):
        name = candidate.removeprefix("the ")
        if name.lower() not in lowered:
            continue
        word = rf"(?<!\w){re.escape(name)}(?!\w)"
        if candidate != answer and re.search(word, asked, flags):
            continue
        for match in re.finditer(word, given, flags):
            # "In" or "As" at the beginning is a symbol only if it is the whole text.
            if item.match_case and match.start() == 0 and re.search(r"\w", given[match.end() :]):
                continue
            # "Guinea" is part of "Guinea-Bissau": at the same place the longer name wins.
            first.append((match.start(), -len(candidate), candidate))
            break
    return min(first)[2] if first else None


def code(text: str) -> str | None:
    blocks = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    found = blocks[-1] if blocks else text
    return found if found.strip() else None
