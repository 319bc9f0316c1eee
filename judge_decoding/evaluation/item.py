"""One prompt of a task, and in which split it lies."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from judge_decoding.text import SET_CHAT_TEMPLATE

ParserName = Literal["number", "choice", "exact", "first_of", "python", "none"]
Split = Literal["mine", "calibrate", "report"]

WITHOUT_CHAT = f'give the task\'s items "chat": false, or {SET_CHAT_TEMPLATE}'
"""What a user can do if the target has no chat template."""
ALL_OF_DOMAIN = "*"
"""Stands in `choices` for the answers and choices of all items of the domain in the file."""


class Item(BaseModel):
    """One prompt. `evaluation.parsers` says what the parsers read.

    group       the fact or problem behind it: items of one group are drawn together when
                uncertainty is estimated, and are never in both splits
    answer      None: nothing is checked (parser `none`), or the tests decide (`python`)
    choices     `choice`, `first_of`: possible answers; "*" adds those of the whole domain
    match_case  `first_of`: "As" is not "as"
    preamble    `python`: source that runs before the answer's code
    tests       `python`: source that runs after the answer's code and fails by any exception
    max_tokens  limit of new tokens; None takes the command line's
    stop        strings that end the answer
    chat        the prompt is a user's turn, put in the chat template; false: raw text
    split       labels are mined from `mine`, thresholds are chosen on `calibrate`, and their cost
                is reported on `report`
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    group: str = Field(min_length=1)
    domain: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str | None = None
    parser: ParserName
    choices: list[str] = []
    match_case: bool = False
    preamble: str = ""
    tests: str = ""
    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] = []
    chat: bool = True
    split: Split | None = None

    @model_validator(mode="after")
    def _can_be_checked(self) -> Item:
        if self.parser in ("none", "python"):
            if self.answer is not None:
                raise ValueError(f"parser {self.parser} takes no answer")
        elif not (self.answer or "").strip():
            raise ValueError(f"parser {self.parser} needs an answer")
        if (self.parser == "python") != bool(self.tests.strip()):
            raise ValueError("tests belong to parser python, which needs them")
        if self.preamble and self.parser != "python":
            raise ValueError("a preamble belongs to parser python")
        if any(not text for text in (*self.stop, *self.choices)):
            raise ValueError("stop and choices must not hold an empty string")
        return self

    @property
    def checked(self) -> bool:
        """Whether an answer to it can be right or wrong."""
        return self.parser != "none"


def half_of(name: str) -> Split:
    """The half of a new item, by a hash that the split into training and held out does not use."""
    odd = hashlib.sha256(f"half {name}".encode()).digest()[0] % 2
    return "report" if odd else "calibrate"


def third_of(name: str) -> Split:
    """The split of a new group by its hash: half are mined, a quarter each calibrate and report."""
    quarter = hashlib.sha256(f"third {name}".encode()).digest()[0] % 4
    return ("mine", "mine", "calibrate", "report")[quarter]
