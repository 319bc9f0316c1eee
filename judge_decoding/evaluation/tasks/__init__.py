"""Tasks that are generated from code and a seed, or read from another package's data."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from judge_decoding.evaluation.item import Item

GENERATED = {
    "chat": "requests:chat_items",
    "code": "functions:code_items",
    "explain": "requests:explain_items",
    "humaneval": "humaneval:humaneval_items",
    "word_problems": "word_problems:word_problem_items",
}
"""Name of a task -> the module and function that make its items."""


def generate(name: str) -> list[Item]:
    """The items of a task in GENERATED, always the same; UserError if its package is missing."""
    module, _, function = GENERATED[name].partition(":")
    make: Callable[[], list[Item]] = getattr(import_module(f"{__name__}.{module}"), function)
    return make()
