"""A task: a JSONL file of prompts, most with a known answer and the parser that finds it in a text.

    {"id": "q1", "group": "france", "domain": "capitals", "parser": "first_of",
     "prompt": "What is the capital of France?", "answer": "Paris", "choices": ["Paris", "Lyon"]}

Shipped tasks are judge_decoding/data/tasks/NAME.jsonl, named without folder and ending, and those
that `evaluation.tasks` generates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from judge_decoding.config import describe
from judge_decoding.errors import UserError
from judge_decoding.evaluation.item import ALL_OF_DOMAIN, Item, Split
from judge_decoding.evaluation.tasks import GENERATED, generate
from judge_decoding.files import read_lines, write_whole


def task_names() -> list[str]:
    """The names of the tasks that are shipped or generated."""
    folder = resources.files("judge_decoding") / "data" / "tasks"
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    shipped = [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")]
    return sorted([*shipped, *GENERATED])


def read_task(name_or_path: str | Path) -> list[Item]:
    """The items of a task or of a file; UserError names the line that is wrong."""
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
