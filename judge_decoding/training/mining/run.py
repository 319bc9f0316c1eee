"""A run that mines labels for the judge from the draft's own mistakes, without annotators.

The draft follows the target's greedy answer round by round, as in serving. Every draft token that
differs from the target's is a *mismatch* and gets a label:

search      AutoJudge (arXiv 2504.20039): the target goes on greedily from the draft's token. If the
            final answer stays the same, the token is good and stays (the search is semi-greedy).
            Otherwise it is bad, and the target's own token is put back.
likelihood  SelfJudge (arXiv 2510.02329): s = dlogP(token) + dlogP(the target's next 20 tokens),
            read after the swap; good where s > tau. One pass per mismatch, no generation.

Many prompts are in flight at once, and the models' passes are batched over them. The records are
those of `judge_decoding.training.labels`: one answer with its good swaps, and one more for each
swap that is not in it. An interrupted run continues. Under MPI, rank 0 writes and the others mine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment, load_deployment
from judge_decoding.errors import UserError, check_choice
from judge_decoding.ranks.comm import under_mpiexec
from judge_decoding.training.labels import LabelRecord, check_growing, labels_hash
from judge_decoding.training.mining.jobs import (
    ChosenPrompts,
    MiningJob,
    PromptChoice,
    choose_prompts,
)
from judge_decoding.training.mining.label_file import LabelFile, noted
from judge_decoding.training.mining.search import Cost
from judge_decoding.training.mining.tau import Tau, find_tau, labelled_tokens
from judge_decoding.training.mining.work import MiningSettings, close, mine, mine_share

METHODS = ("search", "likelihood")
SPLITS = ("train", "heldout", "all")
IN_FLIGHT = 48


@dataclass(frozen=True)
class TauChoice:
    """tau from the labels of a search: the share `recall` of its bad tokens is to stay bad."""

    labels: Path
    recall: float


@dataclass(frozen=True)
class MiningRun:
    """A label file and the jobs left to mine. workers: MPI ranks that mine; 0: this process.

    tau  how tau was found, if it was not given
    """

    file: LabelFile
    prompts: ChosenPrompts
    todo: Sequence[MiningJob]
    settings: MiningSettings
    workers: int
    tau: Tau | None = None

    def estimate(self, count: int) -> Cost:
        """The cost of `count` prompts, spread over those that are left; nothing is written."""
        spent = Cost()
        picked = self.todo[:: max(1, len(self.todo) // count)][:count]
        for _, cost in mine(picked, self.settings):
            spent.add(cost)
        return spent

    def mine(self, share: int = 0) -> Iterator[Cost]:
        """Write each prompt's labels as soon as they are found, and yield their cost.

        share  prompts that a rank gets at a time; 0: chosen from the number of prompts
        """
        if self.workers:
            results = _by_ranks(self.todo, self.settings, self.workers, share)
        else:
            results = mine(self.todo, self.settings)
        try:
            for records, cost in results:
                self.file.add(records)
                yield cost
        finally:
            self.file.close()
        if self.todo and not self.workers:
            close(self.settings)


def open_run(
    out: Path,
    choice: PromptChoice,
    settings: MiningSettings,
    *,
    mpi: bool = False,
    fresh: bool = False,
    tau: TauChoice | None = None,
) -> MiningRun:
    """Check everything, before a model is loaded, and open the label file `out`.

    mpi    share the work among the other ranks of mpi4py.futures
    fresh  discard what `out` holds
    tau    choose settings.tau by these labels, which loads the models; a run that continues keeps
           the tau with which it began
    UserError for a choice, settings or a file that cannot be mined with.
    """
    check_growing(out)
    workers = _mpi_workers() if mpi else 0
    check_choice("--method", settings.method, METHODS)
    check_choice("--split", choice.split, SPLITS)
    config = load_deployment(settings.deployment)
    _check_engine(config, settings.method, settings.floor, mpi)
    prompts = choose_prompts(choice, settings.method)
    # TensorRT-LLM's engines are built for at most this many sequences.
    most = config.limits.max_sequences if config.engine == "trtllm" else IN_FLIGHT
    threads = max(1, _cores() // workers) if workers else 0
    settings = replace(
        settings,
        in_flight=settings.in_flight or most,
        threads=settings.threads or threads,
    )
    found: Tau | None = None
    origin: dict[str, Any] = {}
    if tau is not None:
        if mpi or settings.method != "likelihood" or not 0 < tau.recall < 1:
            raise UserError(
                "mine: --tau-from needs --method likelihood, --bad-recall between 0 and 1, and one "
                "process; with --mpi give --tau"
            )
        tokens = labelled_tokens(tau.labels, settings.seed)
        records = [token.record for token in tokens]
        origin = {"tau_labels": labels_hash(records), "bad_recall": tau.recall}
        before = {} if fresh else noted(out)
        if all(before.get(key) == value for key, value in origin.items()):
            settings = replace(settings, tau=float(before["tau"]))
        else:
            found = find_tau(tokens, settings, tau.recall)
            settings = replace(settings, tau=found.value)
    file = LabelFile(out, _identity(config, settings, choice) | origin, fresh=fresh)
    todo = [job for job in prompts.jobs if job.item.prompt not in file.known]
    return MiningRun(file, prompts, todo, settings, workers, found)


def cost_report(cost: Cost, seconds: float) -> dict[str, Any]:
    """A run's cost as a dict for JSON. seconds: wall time, including loading."""
    labels = cost.good + cost.bad
    return vars(cost) | {
        "work_seconds": round(cost.seconds, 1),
        "seconds": round(seconds, 1),
        "labels": labels,
        "seconds_per_label": round(seconds / labels, 4) if labels else None,
        "target_tokens_per_pass": round(cost.target_tokens / max(1, cost.target_passes), 1),
    }


def _identity(config: Deployment, settings: MiningSettings, choice: PromptChoice) -> dict[str, Any]:
    """Everything that the labels depend on; the number of prompts is not part of it."""
    assert config.draft is not None
    own = {"search": "floor", "likelihood": "tau"}[settings.method]
    return {
        "method": settings.method,
        "target": Checkpoint(config.target.model).fingerprint,
        "draft": _draft_identity(config.draft.model),
        "engine": config.engine,
        "dtype": config.dtype,
        "task": choice.task,
        "split": choice.split,
        own: str(getattr(settings, own)),  # JSON has no infinity
        "max_tokens": settings.max_tokens,
        "draft_len": settings.draft_len,
        "most": settings.most,
        "seed": settings.seed,
    }


def _draft_identity(folder: Path) -> str:
    """A hash of the sizes, beginnings and ends of the weight files. `Checkpoint.fingerprint` needs
    a whole model, and a draft may hold a short list of ids and share tensors."""
    digest = hashlib.sha256()
    for path in [folder] if folder.is_file() else sorted(folder.glob("*.safetensors")):
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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _mpi_workers() -> int:
    """The number of other ranks; UserError unless mpi4py.futures has set them up as workers."""
    workers = 0
    if under_mpiexec():  # otherwise do not start MPI
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
    jobs: Sequence[MiningJob], settings: MiningSettings, workers: int, share: int
) -> Iterator[tuple[list[LabelRecord], Cost]]:
    """Yields shares of the jobs, mined by the other ranks, in the order of arrival."""
    from mpi4py.futures import MPIPoolExecutor

    # Large enough to fill a rank's batch, small enough that a rank that dies loses little.
    size = share or max(1, min(4 * settings.in_flight, -(-len(jobs) // (4 * workers))))
    shares = [jobs[at : at + size] for at in range(0, len(jobs), size)]
    with MPIPoolExecutor() as pool:
        yield from pool.map(mine_share, shares, [settings] * len(shares), unordered=True)
