"""Mine labels for the judge from the draft's own mistakes, without annotators.

    python build/mine_labels.py --out cache:mined-facts.jsonl
    python build/mine_labels.py --out cache:mined-chat.jsonl --method likelihood \
        --task prompts.jsonl.gz --limit 300

The draft follows the target's greedy answer round by round, as in serving; every token of its that
differs from the target's is a *mismatch*, and a label:

search      AutoJudge (arXiv 2504.20039): the target goes on greedily from the draft's token. Where
            the final answer stays the same the token is good, and stays (the search is
            semi-greedy); else it is bad, and the target's own is put back.
likelihood  SelfJudge (arXiv 2510.02329): s = dlogP(token) + dlogP(the target's next 20 tokens),
            read after the swap; good where s > tau. One pass a mismatch, no generation.

Tasks: `facts` (court_facts.py; the answer is checked against its kind), or a JSONL file of
{"prompt": ...} with a `--parser` for `search`. Many prompts are in flight at once, each a coroutine
that asks the engines for a pass; passes of all are batched, and a swap costs no prompt, since both
caches roll back to it. Writes the records of judge_decoding/labels.py: one answer with its good
swaps, and for each swap that is not in it one that ends there. An interrupted run goes on.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from court import resolve, split_of
from court_answers import PARSERS, rivals_by_domain, said
from court_facts import questions
from distil_text import read_text
from mining import Ask, Job, Mined, Miner, run_all
from target_reader import load_reader

from judge_decoding.config import load_deployment
from judge_decoding.engine.torch_engine import load_drafter
from judge_decoding.errors import UserError
from judge_decoding.labels import LabelRecord, Span
from judge_decoding.text import Tokenizer

DONE = "-mined"
"""Ends the id of the record that is written last for a prompt."""


def records_of(
    job: Job,
    mined: Mined,
    origin: str,
    decode: Callable[[Sequence[int]], str],
    seed: int,
    most: int,
) -> list[LabelRecord]:
    """`most` records of swaps that were not kept, then the answer with those that were."""
    common: dict[str, Any] = {
        "group": job.group,
        "domain": job.domain,
        "prompt": job.prompt,
        "split": split_of(job.group, seed),
    }
    kept = [s for s in mined.swaps if s.good and s.ids == mined.response[: s.at + 1]]
    alone = [s for s in mined.swaps if s not in kept]
    picked = random.Random(f"{seed} {job.prompt}").sample(alone, min(most, len(alone)))
    made = []
    for swap in sorted(picked, key=lambda swap: swap.at):
        label = "good" if swap.good else "bad"
        made.append(
            LabelRecord(
                id=f"{job.name}-{label}{swap.at}",
                response=decode(swap.ids),
                response_ids=swap.ids,
                spans=[Span(start=swap.at, end=swap.at + 1, label=label, origin=origin)],
                **common,
            )
        )
    if mined.response:
        made.append(
            LabelRecord(
                id=f"{job.name}{DONE}",
                response=decode(mined.response),
                response_ids=mined.response,
                spans=[Span(start=s.at, end=s.at + 1, label="good", origin=origin) for s in kept],
                **common,
            )
        )
    return made


def fact_jobs(seed: int, split: str) -> list[Job]:
    """`split`: train, heldout or all."""
    rivals = rivals_by_domain()

    def job(question: Any) -> Job:
        return Job(
            question.prompt,
            question.group,
            question.domain,
            lambda text: said(question, text, rivals[question.domain]),
        )

    return [job(q) for q in questions(seed) if split in ("all", split_of(q.group, seed))]


def file_jobs(path: Path, parser: str | None) -> list[Job]:
    if parser is not None and parser not in PARSERS:
        raise UserError(f"mine: parser {parser!r} is not one of {sorted(PARSERS)}")
    if not path.is_file():
        raise UserError(f"mine: no file {path}")
    prompts = [r["prompt"] for r in read_text(path) if not r.get("held_out")]
    parse = PARSERS[parser] if parser else None
    return [Job(p, f"chat:{p}", "chat", parse) for p in dict.fromkeys(prompts)]


def read_written(path: Path) -> list[LabelRecord]:
    """Whole records of an earlier run; those of a prompt that was not finished are dropped."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            records.append(LabelRecord.model_validate_json(line))
    done = {r.prompt for r in records if r.id.endswith(DONE)}
    return [r for r in records if r.prompt in done]


def main(
    out: Annotated[str, typer.Option(help="JSONL file to write, or to go on with")],
    deployment: Annotated[Path, typer.Option(help="YAML with target and draft")] = Path(
        "configs/demo.yaml"
    ),
    task: Annotated[str, typer.Option(help="facts, or a JSONL file of prompts")] = "facts",
    split: Annotated[str, typer.Option(help="of the facts: train, heldout or all")] = "train",
    method: Annotated[str, typer.Option(help="search or likelihood")] = "search",
    parser: Annotated[str | None, typer.Option(help="number, choice or exact")] = None,
    tau: Annotated[float, typer.Option(help="likelihood: good above this, in nats")] = -20.0,
    floor: Annotated[
        float, typer.Option(help="search: tokens that the target finds less likely are left out")
    ] = -7.0,
    limit: Annotated[int, typer.Option(help="prompts, 0 for all")] = 0,
    max_tokens: Annotated[int, typer.Option(min=2)] = 24,
    draft_len: Annotated[int, typer.Option(min=1)] = 4,
    most: Annotated[int, typer.Option(min=0, help="labels of swaps not kept, a prompt")] = 12,
    in_flight: Annotated[int, typer.Option(min=1, help="prompts at a time")] = 24,
    seed: Annotated[int, typer.Option(help="the seed of build/court.py")] = 0,
) -> None:
    from rich.console import Console
    from rich.progress import track

    try:
        if method not in ("search", "likelihood"):
            raise UserError(f"mine: method {method!r} is not search or likelihood")
        config = load_deployment(deployment)
        if config.draft is None:
            raise UserError(f"mine: {deployment} needs a draft")
        jobs = fact_jobs(seed, split) if task == "facts" else file_jobs(Path(task), parser)
        if method == "search" and any(job.parse is None for job in jobs):
            raise UserError("mine: search on a file needs --parser number, choice or exact")
        folder = config.target.model
        bounds = {"max_sequences": in_flight, "max_context": 512}
        target = load_reader(folder, dtype=config.dtype, **bounds)
        drafter = load_drafter(config.draft.model, target=folder, dtype=config.dtype, **bounds)
        tokenizer = Tokenizer(folder)
    except UserError as error:
        raise SystemExit(str(error)) from None
    path = resolve(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = read_written(path)
    known = {record.prompt for record in kept}
    todo = [job for job in jobs[: limit or None] if job.prompt not in known]
    miner = Miner(
        end_ids=frozenset(target.end_ids),
        stops=(lambda i: False) if task != "facts" else (lambda i: "\n" in tokenizer.decode([i])),
        decode=tokenizer.decode,
        max_tokens=max_tokens,
        draft_len=draft_len,
        tau=tau,
        floor=floor,
    )
    mine = miner.search if method == "search" else miner.judge_likelihood

    def start(job: Job) -> tuple[Job, Callable[[int], Generator[Ask, Any, Mined]]]:
        prompt = tokenizer.chat([{"role": "user", "content": job.prompt}])
        return job, lambda number: mine(number, prompt, job)

    counts: Counter[str] = Counter()
    began = time.monotonic()
    with path.open("w", encoding="utf-8") as file:
        file.writelines(record.model_dump_json() + "\n" for record in kept)
        results = run_all(map(start, todo), drafter, target)
        shown = track(results, method, total=len(todo), console=Console(stderr=True))
        for job, mined in shown:
            made = records_of(job, mined, f"mined_{method}", tokenizer.decode, seed, most)
            file.writelines(record.model_dump_json() + "\n" for record in made)
            file.flush()
            counts["prompts"] += 1
            counts["tokens"] += len(mined.response)
            counts["good"] += sum(swap.good for swap in mined.swaps)
            counts["bad"] += sum(not swap.good for swap in mined.swaps)
    seconds = time.monotonic() - began
    forward = target.clock.forward + drafter.clock.forward
    print(f"{dict(counts)} in {seconds:.0f} s, {forward:.0f} s of them in the models; {path}")


if __name__ == "__main__":
    typer.run(main)
