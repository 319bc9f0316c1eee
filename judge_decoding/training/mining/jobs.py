"""The prompts to mine, and how the final answer of a text is read.

facts             the court's questions (judge_decoding.training.court)
NAME, FILE.jsonl  a task (judge_decoding.evaluation.task), shipped or a file
FILE.jsonl[.gz]   lines with a "prompt" and no parser (distil_text.py), for `likelihood`;
                  `"chat": false` keeps a prompt out of the chat template
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from judge_decoding.errors import UserError
from judge_decoding.evaluation.item import WITHOUT_CHAT, Item
from judge_decoding.evaluation.parsers import code, final_answer, is_right, plain
from judge_decoding.evaluation.task import read_task
from judge_decoding.evaluation.tasks.humaneval import refuse_benchmark
from judge_decoding.files import JsonError, parse_json, read_lines
from judge_decoding.text import Tokenizer
from judge_decoding.training.court.facts import questions
from judge_decoding.training.court.items import item_of, rivals_by_domain
from judge_decoding.training.court.split import split_in
from judge_decoding.training.draft.target_text import read_text
from judge_decoding.training.labels import Split


@dataclass(frozen=True)
class MiningJob:
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
        """The final answer of `text` in a comparable form; for parser `python`, whether the tests
        pass. None: no answer."""
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
        """Whether no further text can change the answer. That needs a parser that takes the first
        answer, and the end of its word, since "1" may become "146"."""
        if self.item.parser != "first_of":
            return False
        ended = re.sub(r"[\w-]+$", "", text)
        if ended not in self._seen:
            self._seen[ended] = bool(ended.strip()) and self.answer(ended) is not None
        return self._seen[ended]

    @cached_property
    def _keys(self) -> list[tuple[str, str]]:
        """Pairs (what a text must contain, the choice)."""
        choices = dict.fromkeys([self.item.answer or "", *self.item.choices])
        return [(plain(c).lower().removeprefix("the "), c) for c in choices]

    def _shortened(self, text: str) -> Item:
        """The item with only the choices that occur in `text`. This saves time, since a parser
        tries every choice and is called after every token."""
        given = plain(text).lower()
        found = [choice for key, choice in self._keys if key in given]
        return self.item.model_copy(update={"choices": found})


@dataclass(frozen=True)
class PromptChoice:
    """Which prompts a run mines.

    task      `facts`, a task's name or file, or a file of prompts
    split     train, heldout or all
    limit     number of prompts of the split; 0: all
    shard     i/n: every n-th of them, from the i-th on
    run_code  `python` items may run what the models wrote
    """

    task: str = "facts"
    split: str = "train"
    seed: int = 0
    limit: int = 0
    shard: str = "0/1"
    run_code: bool = False


@dataclass(frozen=True)
class ChosenPrompts:
    """The prompts to mine, the number that the task has, and how many of these are in the split."""

    jobs: Sequence[MiningJob]
    in_task: int
    in_split: int

    def summary(self, split: str) -> str:
        """For example "60 prompts: 23 to mine, 37 held out (--split train)"."""
        parts = [f"{len(self.jobs)} to mine"]
        if self.in_split > len(self.jobs):
            parts.append(f"{self.in_split - len(self.jobs)} left out (--limit, --shard)")
        if others := self.in_task - self.in_split:
            kind = "held out" if split == "train" else "to train on"
            parts.append(f"{others} {kind} (--split {split})")
        return f"{self.in_task} prompts: {', '.join(parts)}"


def choose_prompts(choice: PromptChoice, method: str) -> ChosenPrompts:
    """The prompts of a choice. UserError if there are none, or the method cannot mine them."""
    if choice.task == "facts":
        every = fact_jobs(choice.seed)
    else:
        every = task_jobs(choice.task, choice.seed, choice.run_code)
    jobs = [job for job in every if choice.split in ("all", job.split)]
    check_jobs(jobs, method, choice.run_code)
    return ChosenPrompts(_shard(jobs[: choice.limit or None], choice.shard), len(every), len(jobs))


def _shard(jobs: Sequence[MiningJob], shard: str) -> Sequence[MiningJob]:
    first, _, count = shard.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UserError(f"mine: --shard {shard!r} is not i/n with 0 <= i < n")
    return jobs[int(first) :: int(count)]


def fact_jobs(seed: int) -> list[MiningJob]:
    """All court questions."""
    rivals = rivals_by_domain()
    return [
        MiningJob(item_of(q, rivals[q.domain]), split_in(q.domain, q.group, seed))
        for q in questions(seed)
    ]


def task_jobs(task: str, seed: int, run_code: bool) -> list[MiningJob]:
    """A task's items. Those of split `mine` are to train on, those of other splits held out."""
    if Path(task).name.endswith(".gz") or _are_prompts(Path(task)):
        items = _prompt_items(Path(task))
    else:
        items = list({item.prompt: item for item in read_task(task)}.values())
    refuse_benchmark(items, "to mine labels from")
    return [MiningJob(item, _split_of(item, seed), run_code) for item in items]


def _split_of(item: Item, seed: int) -> Split:
    if item.split is None:
        return split_in(item.domain, item.group, seed)
    return "train" if item.split == "mine" else "heldout"


def _prompt_items(path: Path) -> list[Item]:
    """Items without a parser, from the lines of a file that are not held out; each prompt once."""
    rows = {r["prompt"]: r.get("chat", True) for r in read_text(path) if not r.get("held_out")}
    for prompt, chat in rows.items():
        if not isinstance(chat, bool):
            raise UserError(f"mine: {path}: prompt {prompt!r} has chat {chat!r}, not true or false")
    return [
        Item(id=str(n), group=f"chat:{p}", domain="chat", prompt=p, parser="none", chat=chat)
        for n, (p, chat) in enumerate(rows.items())
    ]


def _are_prompts(path: Path) -> bool:
    """Whether the file's first line is a bare prompt and not a task item."""
    if not path.is_file():
        return False
    try:
        first = next(read_lines(path, "mine"), None)
        row = None if first is None else parse_json(first.text)
    except (UserError, JsonError):
        return False  # read_task reports what is wrong with the file
    return isinstance(row, dict) and isinstance(row.get("prompt"), str) and "parser" not in row


def check_jobs(jobs: Sequence[MiningJob], method: str, run_code: bool) -> None:
    """UserError if the method cannot mine the jobs."""
    if not jobs:
        raise UserError("mine: the task has no prompts of this split")
    if method == "search" and any(not job.item.checked for job in jobs):
        raise UserError(
            "mine: search compares final answers, and the task has prompts without a parser; "
            "use --method likelihood, or a task (build/import_questions.py makes one)"
        )
    if any(job.item.parser == "python" for job in jobs) and method == "search" and not run_code:
        raise UserError("mine: parser python runs what the models write; allow it by --run-code")
