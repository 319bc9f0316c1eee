"""Mine labels for the judge from the draft's own mistakes, without annotators.

    python build/mine_labels.py --out cache:mined-facts.jsonl --limit 900
    python build/mine_labels.py --out cache:mined-chat.jsonl --method likelihood \
        --task text.jsonl.gz --limit 300
    mpiexec -n 5 python -m mpi4py.futures build/mine_labels.py --mpi --out labels.jsonl --task ...

The draft follows the target's greedy answer round by round, as in serving; every token of its that
differs from the target's is a *mismatch*, and a label:

search      AutoJudge (arXiv 2504.20039): the target goes on greedily from the draft's token. Where
            the final answer stays the same the token is good, and stays (the search is
            semi-greedy); else it is bad, and the target's own is put back.
likelihood  SelfJudge (arXiv 2510.02329): s = dlogP(token) + dlogP(the target's next 20 tokens),
            read after the swap; good where s > tau. One pass a mismatch, no generation.

Many prompts are in flight at once, and the models' passes are batched over them. The records are
those of `judge_decoding.training.labels`: one answer with its good swaps, and one more for each
swap that is not in it. An interrupted run goes on. With --mpi rank 0 writes, and the others mine
(docs/labels.md). The last line is what it cost, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment, load_deployment
from judge_decoding.config.paths import resolve
from judge_decoding.errors import UserError
from judge_decoding.progress import progress
from judge_decoding.ranks.comm import under_mpiexec
from judge_decoding.training.labels import LabelRecord, check_growing
from judge_decoding.training.mining.jobs import Job, check_jobs, fact_jobs, task_jobs
from judge_decoding.training.mining.label_file import LabelFile
from judge_decoding.training.mining.search import Cost
from judge_decoding.training.mining.work import Settings, close, mine, mine_share

METHODS = ("search", "likelihood")
IN_FLIGHT = 48


def main(
    out: Annotated[str, typer.Option(help="JSONL file to write, or to go on with")],
    deployment: Annotated[Path, typer.Option(help="YAML with target and draft")] = Path(
        "configs/demo.yaml"
    ),
    task: Annotated[str, typer.Option(help="facts, a task's name or file, or prompts")] = "facts",
    split: Annotated[str, typer.Option(help="train, heldout or all")] = "train",
    method: Annotated[str, typer.Option(help="search or likelihood")] = "search",
    tau: Annotated[float, typer.Option(help="likelihood: good above this, in nats")] = -20.0,
    floor: Annotated[
        float,
        typer.Option(help="search: tokens the target finds less likely are left out; -inf: none"),
    ] = -7.0,
    limit: Annotated[int, typer.Option(min=0, help="prompts, 0 for all")] = 0,
    shard: Annotated[str, typer.Option(help="i/n: every n-th prompt, from the i-th on")] = "0/1",
    max_tokens: Annotated[int, typer.Option(min=2, help="where a task's item says nothing")] = 24,
    max_context: Annotated[int, typer.Option(min=32, help="prompt and answer together")] = 512,
    draft_len: Annotated[int, typer.Option(min=1)] = 4,
    most: Annotated[int, typer.Option(min=0, help="labels of swaps not kept, a prompt")] = 12,
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="prompts at a time, a rank [48; TensorRT-LLM: what it has]"),
    ] = None,
    mpi: Annotated[bool, typer.Option(help="share the work over the ranks of mpiexec")] = False,
    share: Annotated[int, typer.Option(min=0, help="--mpi: prompts sent at once; 0: by size")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="of a rank; 0: cores by ranks")] = 0,
    run_code: Annotated[bool, typer.Option(help="python: run what the models write")] = False,
    fresh: Annotated[bool, typer.Option(help="throw away what OUT holds")] = False,
    seed: Annotated[int, typer.Option(help="the seed of build/court_labels.py")] = 0,
) -> None:
    try:
        check_growing(resolve(out))
        workers = _mpi_workers() if mpi else 0
        if method not in METHODS:
            raise UserError(f"mine: method {method!r} is not search or likelihood")
        if split not in ("train", "heldout", "all"):
            raise UserError(f"mine: split {split!r} is not train, heldout or all")
        config = load_deployment(deployment)
        _check_engine(config, method, floor, mpi)
        trtllm = config.engine == "trtllm"  # engines are built for so many sequences, and no more
        every = (
            fact_jobs(seed, split) if task == "facts" else task_jobs(task, seed, split, run_code)
        )
        check_jobs(every, method, run_code)
        jobs = _shard(every[: limit or None], shard)
        settings = Settings(
            deployment=deployment.resolve(),
            method=method,
            tau=tau,
            floor=floor,
            max_tokens=max_tokens,
            max_context=max_context,
            draft_len=draft_len,
            most=most,
            in_flight=in_flight or (config.limits.max_sequences if trtllm else IN_FLIGHT),
            seed=seed,
            threads=threads or (max(1, _cores() // workers) if workers else 0),
        )
        file = LabelFile(resolve(out), _identity(config, settings, task, split), fresh=fresh)
        todo = [job for job in jobs if job.item.prompt not in file.known]
        began, cost = time.monotonic(), Cost()
        results = _by_ranks(todo, settings, workers, share) if mpi else mine(todo, settings)
        for records, spent in _shown(results, method, len(jobs), len(jobs) - len(todo)):
            file.add(records)
            cost.add(spent)
        file.close()
        if todo and not mpi:
            close(settings)
    except UserError as error:
        raise SystemExit(str(error)) from None
    _report(cost, time.monotonic() - began, file.path)


def _identity(config: Deployment, settings: Settings, task: str, split: str) -> dict[str, Any]:
    """What the labels depend on; the number of prompts is none of it."""
    assert config.draft is not None
    own = {"search": "floor", "likelihood": "tau"}[settings.method]
    return {
        "method": settings.method,
        "target": Checkpoint(config.target.model).fingerprint,
        "draft": _draft_identity(config.draft.model),
        "engine": config.engine,
        "dtype": config.dtype,
        "task": task,
        "split": split,
        own: str(getattr(settings, own)),  # JSON has no infinity
        "max_tokens": settings.max_tokens,
        "draft_len": settings.draft_len,
        "most": settings.most,
        "seed": settings.seed,
    }


def _draft_identity(folder: Path) -> str:
    """Of the weights' files, by sizes, beginnings and ends: a fingerprint takes whole models only,
    and a draft may hold a short-list of ids and share tensors."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name} {size}".encode() + file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _check_engine(config: Deployment, method: str, floor: float, mpi: bool) -> None:
    if config.draft is None:
        raise UserError(f"mine: deployment {config.name} needs a draft")
    if config.engine != "trtllm":
        return
    if method == "likelihood":
        raise UserError(
            "mine: engine trtllm gives no likelihoods of given tokens; use --method search"
        )
    if floor != float("-inf"):
        raise UserError("mine: engine trtllm has no likelihoods for a floor; give --floor=-inf")
    if mpi:
        raise UserError(
            "mine: TensorRT-LLM has an MPI world of its own; run one process a deployment with "
            "--shard i/n instead of --mpi"
        )


def _shard(jobs: Sequence[Job], shard: str) -> Sequence[Job]:
    first, _, count = shard.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UserError(f"mine: --shard {shard!r} is not i/n with 0 <= i < n")
    return jobs[int(first) :: int(count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _mpi_workers() -> int:
    """The ranks beside this one; UserError unless mpi4py.futures has set them up as workers."""
    workers = 0
    if under_mpiexec():  # else MPI is not even started
        from mpi4py import MPI
        from mpi4py.futures import _core

        if _core.SharedPool is not None:
            workers = int(MPI.COMM_WORLD.Get_size()) - 1
    if workers < 1:
        raise UserError(
            "mine: --mpi needs two ranks or more of "
            "mpiexec -n N python -m mpi4py.futures build/mine_labels.py --mpi ..."
        )
    return workers


def _by_ranks(
    jobs: Sequence[Job], settings: Settings, workers: int, share: int
) -> Iterator[tuple[list[LabelRecord], Cost]]:
    """Shares of the jobs mined by the other ranks, as they come back."""
    from mpi4py.futures import MPIPoolExecutor

    # Large enough to keep a rank's batch full, small enough that little is lost with a rank.
    size = share or max(1, min(4 * settings.in_flight, -(-len(jobs) // (4 * workers))))
    shares = [jobs[at : at + size] for at in range(0, len(jobs), size)]
    with MPIPoolExecutor() as pool:
        yield from pool.map(mine_share, shares, [settings] * len(shares), unordered=True)


def _shown(
    results: Iterator[tuple[list[LabelRecord], Cost]], what: str, total: int, done: int
) -> Iterator[tuple[list[LabelRecord], Cost]]:
    """Progress and the time left on stderr."""
    labels = 0
    with progress(what) as step:
        step(done, total)
        for records, cost in results:
            yield records, cost
            labels += cost.good + cost.bad
            done += cost.prompts
            step(done, total, f"{labels} labels")


def _report(cost: Cost, seconds: float, path: Path) -> None:
    labels = cost.good + cost.bad
    report = vars(cost) | {
        "work_seconds": round(cost.seconds, 1),
        "seconds": round(seconds, 1),
        "labels": labels,
        "seconds_per_label": round(seconds / labels, 4) if labels else None,
        "target_tokens_per_pass": round(cost.target_tokens / max(1, cost.target_passes), 1),
    }
    print(f"{path}: {labels} labels ({cost.good} good, {cost.bad} bad) of {cost.prompts} prompts")
    print(
        f"{seconds:.0f} s; target {cost.target_passes} passes over {cost.target_tokens} tokens, "
        f"draft {cost.draft_calls} calls for {cost.draft_tokens} tokens"
    )
    print(json.dumps(report))
