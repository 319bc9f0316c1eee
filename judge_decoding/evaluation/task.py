"""A task: a JSONL file of prompts, most with a known answer and the parser that finds it in a text.

    {"id": "q1", "group": "france", "domain": "capitals", "parser": "first_of",
     "prompt": "What is the capital of France?", "answer": "Paris", "choices": ["Paris", "Lyon"]}

Shipped tasks are judge_decoding/data/tasks/NAME.jsonl, named without folder and ending, and those
that `evaluation.tasks` generates.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from judge_decoding.config import describe
from judge_decoding.errors import UserError
from judge_decoding.files import read_lines, write_whole
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


def task_names() -> list[str]:
    """The names of the tasks that are shipped or generated."""
    from judge_decoding.evaluation.tasks import GENERATED

    folder = resources.files("judge_decoding") / "data" / "tasks"
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    shipped = [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")]
    return sorted([*shipped, *GENERATED])


def read_task(name_or_path: str | Path) -> list[Item]:
    """The items of a task or of a file; UserError names the line that is wrong."""
    from judge_decoding.evaluation.tasks import GENERATED, generate  # they are made of Items

    if str(name_or_path) in GENERATED:
        return generate(str(name_or_path))
    path, source = _file(name_or_path)
    items: dict[str, Item] = {}
    splits: dict[str, Split | None] = {}
    for number, line, _ in read_lines(path, "task"):
        try:
            item = Item.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"task: {source}:{number}: {describe(error, 'item')}") from None
        if item.id in items:
            raise UserError(f"task: {source}:{number}: id {item.id!r} is there twice")
        if splits.setdefault(item.group, item.split) != item.split:
            raise UserError(f"task: {source}:{number}: group {item.group!r} is in two splits")
        items[item.id] = item
    if not items:
        raise UserError(f"task: {source} holds no items")
    return _with_domains_choices(items.values())


def write_task(path: Path, items: Iterable[Item]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [item.model_dump_json(exclude_defaults=True) + "\n" for item in items]
    write_whole(path, "".join(lines), "task")


def _file(name_or_path: str | Path) -> tuple[Path, str]:
    """The file, and its name for messages."""
    path, source = Path(name_or_path), str(name_or_path)
    if not path.suffix and len(path.parts) == 1:
        source = f"{path}.jsonl"
        path = Path(str(resources.files("judge_decoding") / "data" / "tasks" / source))
    if not path.exists():
        raise UserError(
            f"task: no task or file {str(name_or_path)!r}; shipped are {', '.join(task_names())}"
        )
    return path, source


def _with_domains_choices(items: Iterable[Item]) -> list[Item]:
    """The items with `ALL_OF_DOMAIN` replaced by what it stands for."""
    items = list(items)
    said: defaultdict[str, dict[str, None]] = defaultdict(dict)  # in the file's order, each once
    for item in items:
        for choice in (*([item.answer] if item.answer else []), *item.choices):
            if choice != ALL_OF_DOMAIN:
                said[item.domain][choice] = None
    return [
        item.model_copy(update={"choices": list(said[item.domain])})
        if ALL_OF_DOMAIN in item.choices
        else item
        for item in items
    ]
