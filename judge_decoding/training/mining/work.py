"""One process's share of mining, from jobs to label records. MPI ranks import this module."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from judge_decoding.config import load_deployment
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.training.labels import LabelRecord, Span
from judge_decoding.training.mining.engines import MiningEngines, open_engines
from judge_decoding.training.mining.jobs import MiningJob
from judge_decoding.training.mining.label_file import DONE
from judge_decoding.training.mining.search import Coroutine, Cost, Mined, Miner, run_all


@dataclass(frozen=True)
class MiningSettings:
    """The settings of every process.

    method       `search` or `likelihood`
    tau          `likelihood`: a token is good above this score, in nats
    floor        `search`: tokens of a lower log-probability, in nats, are left out; -inf: none
    max_tokens   limit per answer if the item has none
    max_context  tokens of prompt and answer together
    draft_len    tokens per round of the draft
    most         maximum of records per prompt for swaps that are not kept
    in_flight    prompts at a time, per process; 0: as suits the engine
    threads      CPU threads per process; 0: the cores, shared among the ranks
    """

    deployment: Path
    method: str = "search"
    tau: float = -20.0
    floor: float = -7.0
    max_tokens: int = 24
    max_context: int = 512
    draft_len: int = 4
    most: int = 12
    in_flight: int = 0
    seed: int = 0
    threads: int = 0

    @property
    def origin(self) -> str:
        return f"mined_{self.method}"


def opened(settings: MiningSettings) -> tuple[MiningEngines, Tokenizer]:
    """The engines and tokenizer, loaded once per process for all shares that it mines."""
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    return _opened(settings.deployment, settings.in_flight, settings.max_context)


@cache
def _opened(path: Path, in_flight: int, max_context: int) -> tuple[MiningEngines, Tokenizer]:
    deployment = load_deployment(path)
    engines = open_engines(deployment, in_flight, max_context)
    return engines, Tokenizer(deployment.target.model, deployment.chat_template)


def miner_of(settings: MiningSettings, engines: MiningEngines, tokenizer: Tokenizer) -> Miner:
    return Miner(
        end_ids=frozenset(engines.engines.target.end_ids),
        decode=tokenizer.decode,
        max_tokens=settings.max_tokens,
        draft_len=settings.draft_len,
        tau=settings.tau,
        floor=settings.floor,
    )


def mine(
    jobs: Sequence[MiningJob], settings: MiningSettings
) -> Iterator[tuple[list[LabelRecord], Cost]]:
    """Yields each prompt's records when it is done, with the cost since the previous one.

    UserError if a prompt and its answer do not fit in `max_context`.
    """
    loaded, tokenizer = opened(settings)
    engines = loaded.engines
    assert engines.drafter is not None  # `open_engines` refuses a deployment without one
    miner = miner_of(settings, loaded, tokenizer)
    search = miner.search if settings.method == "search" else miner.judge_likelihood

    _check_context(jobs, settings, tokenizer)

    def start(job: MiningJob) -> tuple[MiningJob, Callable[[int], Coroutine]]:
        if tokenizer.chat_template == "none":  # the records must say that their prompt is raw text
            job = replace(job, item=job.item.model_copy(update={"chat": False}))
        prompt = job.prompt_ids(tokenizer)
        return job, lambda number: search(number, prompt, job)

    cost, began = Cost(), time.monotonic()
    for job, mined in run_all(
        map(start, jobs), engines.drafter, engines.target, loaded.reader, cost=cost
    ):
        cost.prompts = 1
        cost.good = sum(swap.good for swap in mined.swaps)
        cost.bad = len(mined.swaps) - cost.good
        cost.seconds = time.monotonic() - began
        spent = Cost(**vars(cost))
        vars(cost).update(vars(Cost()))
        began = time.monotonic()
        yield records_of(job, mined, settings, tokenizer.decode), spent


def _check_context(
    jobs: Sequence[MiningJob], settings: MiningSettings, tokenizer: Tokenizer
) -> None:
    """UserError names the longest job if it does not fit."""
    needed = [
        (len(job.prompt_ids(tokenizer)) + (job.item.max_tokens or settings.max_tokens), job.item.id)
        for job in jobs
    ]
    most, name = max(needed, default=(0, ""))
    if most > settings.max_context:
        raise UserError(
            f"mine: item {name!r} and its answer can have {most} tokens; give --max-context {most}"
        )


def mine_share(
    jobs: Sequence[MiningJob], settings: MiningSettings
) -> tuple[list[LabelRecord], Cost]:
    """All that `mine` yields, in one piece, for a rank to send back."""
    records, total = [], Cost()
    for made, cost in mine(jobs, settings):
        records += made
        total.add(cost)
    return records, total


def close(settings: MiningSettings) -> None:
    """Close a deployment's engines, and with them their executors, if any."""
    opened(settings)[0].engines.close()


def records_of(
    job: MiningJob, mined: Mined, settings: MiningSettings, decode: Callable[[Sequence[int]], str]
) -> list[LabelRecord]:
    """At most `most` records of swaps that were not kept, then the answer with the kept ones."""
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
