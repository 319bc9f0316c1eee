"""One process's share of mining: jobs in, label records out. The ranks of MPI import this."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from judge_decoding.config import load_deployment
from judge_decoding.text import Tokenizer
from judge_decoding.training.labels import LabelRecord, Span
from judge_decoding.training.mining.engines import MiningEngines, open_engines
from judge_decoding.training.mining.jobs import Job
from judge_decoding.training.mining.label_file import DONE
from judge_decoding.training.mining.search import Coroutine, Cost, Mined, Miner, run_all


@dataclass(frozen=True)
class Settings:
    """mine_labels.py's options, as far as the work depends on them."""

    deployment: Path
    method: str
    tau: float
    floor: float
    max_tokens: int
    max_context: int
    draft_len: int
    most: int
    in_flight: int
    seed: int
    threads: int

    @property
    def origin(self) -> str:
        return f"mined_{self.method}"


@cache
def _opened(settings: Settings) -> tuple[MiningEngines, Tokenizer]:
    """Loaded once a process, whatever the number of its shares."""
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    deployment = load_deployment(settings.deployment)
    opened = open_engines(deployment, settings.in_flight, settings.max_context)
    return opened, Tokenizer(deployment.target.model, deployment.chat_template)


def mine(jobs: Sequence[Job], settings: Settings) -> Iterator[tuple[list[LabelRecord], Cost]]:
    """Each prompt's records as soon as it is done, and what was spent since the one before."""
    opened, tokenizer = _opened(settings)
    engines = opened.engines
    assert engines.drafter is not None  # `open_engines` refuses a deployment without one
    miner = Miner(
        end_ids=frozenset(engines.target.end_ids),
        decode=tokenizer.decode,
        max_tokens=settings.max_tokens,
        draft_len=settings.draft_len,
        tau=settings.tau,
        floor=settings.floor,
    )
    search = miner.search if settings.method == "search" else miner.judge_likelihood

    def start(job: Job) -> tuple[Job, Callable[[int], Coroutine]]:
        if tokenizer.chat_template == "none":  # the records must say that their prompt is raw text
            job = replace(job, item=job.item.model_copy(update={"chat": False}))
        prompt = job.prompt_ids(tokenizer)
        return job, lambda number: search(number, prompt, job)

    cost, began = Cost(), time.monotonic()
    for job, mined in run_all(
        map(start, jobs), engines.drafter, engines.target, opened.reader, cost=cost
    ):
        cost.prompts = 1
        cost.good = sum(swap.good for swap in mined.swaps)
        cost.bad = len(mined.swaps) - cost.good
        cost.seconds = time.monotonic() - began
        spent = Cost(**vars(cost))
        vars(cost).update(vars(Cost()))
        began = time.monotonic()
        yield records_of(job, mined, settings, tokenizer.decode), spent


def mine_share(jobs: Sequence[Job], settings: Settings) -> tuple[list[LabelRecord], Cost]:
    """`mine`, all at once: what a rank sends back."""
    records, total = [], Cost()
    for made, cost in mine(jobs, settings):
        records += made
        total.add(cost)
    return records, total


def close(settings: Settings) -> None:
    """End a deployment's executors in good order, where there are any."""
    _opened(settings)[0].engines.close()


def records_of(
    job: Job, mined: Mined, settings: Settings, decode: Callable[[Sequence[int]], str]
) -> list[LabelRecord]:
    """`most` records of swaps that were not kept, then the answer with those that were."""
    item = job.item
    common: dict[str, Any] = {
        "group": item.group,
        "domain": item.domain,
        "prompt": item.prompt,
        "chat": item.chat,
        "split": job.split,
    }
    kept = [s for s in mined.swaps if s.good and s.ids == mined.response[: s.at + 1]]
    alone = [s for s in mined.swaps if s not in kept]
    chosen = random.Random(f"{settings.seed} {item.prompt}")
    picked = chosen.sample(alone, min(settings.most, len(alone)))

    def record(name: str, ids: list[int], marked: list[tuple[int, Any]]) -> LabelRecord:
        return LabelRecord(
            id=f"{job.name}{name}",
            response=decode(ids),
            response_ids=ids,
            spans=[
                Span(start=at, end=at + 1, label=label, origin=settings.origin)
                for at, label in marked
            ],
            **common,
        )

    made = []
    for swap in sorted(picked, key=lambda swap: swap.at):
        label = "good" if swap.good else "bad"
        made.append(record(f"-{label}{swap.at}", swap.ids, [(swap.at, label)]))
    if mined.response:
        made.append(record(DONE, mined.response, [(s.at, "good") for s in kept]))
    return made
