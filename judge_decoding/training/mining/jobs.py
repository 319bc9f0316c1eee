"""What is mined: prompts, and how the final answer of a text is read.

facts            the court's questions of one split (judge_decoding.training.court)
NAME, FILE.jsonl a task (judge_decoding.evaluation.task), shipped or a file
FILE.jsonl[.gz]  lines with a "prompt" alone (distil_text.py), for `likelihood`; `"chat": false`
                 makes it raw text
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.evaluation.parsers import code, final_answer, is_right, plain
from judge_decoding.evaluation.task import WITHOUT_CHAT, Item, read_task
from judge_decoding.text import Tokenizer
from judge_decoding.training.court.facts import questions
from judge_decoding.training.court.items import item_of, rivals_by_domain
from judge_decoding.training.court.split import split_in
from judge_decoding.training.draft.target_text import read_text
from judge_decoding.training.labels import Split


@dataclass(frozen=True)
class Job:
    """One prompt to mine.

    run_code  `python` items may run what the models wrote
    """

    item: Item
    split: Split
    run_code: bool = False
    _seen: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return hashlib.sha256(self.item.prompt.encode()).hexdigest()[:12]

    def prompt_ids(self, tokenizer: Tokenizer) -> list[int]:
        if self.item.chat:
            return tokenizer.turn(self.item.prompt, instead=WITHOUT_CHAT)
        return tokenizer.encode(self.item.prompt)

    def answer(self, text: str) -> str | None:
        """The final answer of `text` in a form that can be compared; for `python` whether the tests
        pass."""
        match self.item.parser:
            case "none":
                return None
            case "python":
                if code(text) is None:
                    return None
                return "passes" if is_right(self.item, text, run_code=self.run_code) else "fails"
            case "first_of":
                return final_answer(self._shortened(text), text)
        return final_answer(self.item, text)

    def settled(self, text: str) -> bool:
        """Whether no further text can change the answer: only where the first one said counts, and
        once its word has ended ("1" may become "146")."""
        if self.item.parser != "first_of":
            return False
        ended = re.sub(r"[\w-]+$", "", text)
        if ended not in self._seen:
            self._seen[ended] = bool(ended.strip()) and self.answer(ended) is not None
        return self._seen[ended]

    @cached_property
    def _keys(self) -> list[tuple[str, str]]:
        """(what must be in a text, the choice)"""
        choices = dict.fromkeys([self.item.answer or "", *self.item.choices])
        return [(plain(c).lower().removeprefix("the "), c) for c in choices]

    def _shortened(self, text: str) -> Item:
        """The item with those choices alone that occur: a parser tries every one, and this is asked
        for after every token."""
        given = plain(text).lower()
        found = [choice for key, choice in self._keys if key in given]
        return self.item.model_copy(update={"choices": found})


def fact_jobs(seed: int, split: str) -> list[Job]:
    """`split`: train, heldout or all."""
    rivals = rivals_by_domain()
    jobs = [
        Job(item_of(q, rivals[q.domain]), split_in(q.domain, q.group, seed))
        for q in questions(seed)
    ]
    return [job for job in jobs if split in ("all", job.split)]


def task_jobs(task: str, seed: int, split: str, run_code: bool) -> list[Job]:
    """A task's items: those that calibrate a threshold or report its cost are held out."""
    if Path(task).name.endswith(".gz") or _are_prompts(Path(task)):
        rows = [row for row in read_text(Path(task)) if not row.get("held_out")]
        prompts = {row["prompt"]: row.get("chat") is not False for row in rows}
        items = [
            Item(id=str(n), group=f"chat:{p}", domain="chat", prompt=p, parser="none", chat=chat)
            for n, (p, chat) in enumerate(prompts.items())
        ]
    else:
        items = list({item.prompt: item for item in read_task(task)}.values())
    jobs = [
        Job(i, "heldout" if i.split else split_in(i.domain, i.group, seed), run_code) for i in items
    ]
    return [job for job in jobs if split in ("all", job.split)]


def _are_prompts(path: Path) -> bool:
    """Whether the file's first line is no task item but a bare prompt."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except ValueError:
        return False  # read_task says what is wrong with it
    return isinstance(row, dict) and isinstance(row.get("prompt"), str) and "parser" not in row


def check_jobs(jobs: Sequence[Job], method: str, run_code: bool) -> None:
    """UserError where the method cannot mine them."""
    if not jobs:
        raise UserError("mine: the task has no prompts of this split")
    if method == "search" and any(not job.item.checked for job in jobs):
        raise UserError(
            "mine: search compares final answers, and the task has prompts without a parser; "
            "use --method likelihood, or a task (build/import_questions.py makes one)"
        )
    if any(job.item.parser == "python" for job in jobs) and method == "search" and not run_code:
        raise UserError("mine: parser python runs what the models write; allow it by --run-code")
