"""`mine-labels`: labels for the judge from the draft's own mismatches."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.one_line import INTERRUPTED
from judge_decoding.commands.options import DEMO, Config, Json, print_json
from judge_decoding.config.paths import resolve
from judge_decoding.config.yaml_file import deployment_file
from judge_decoding.errors import UserError
from judge_decoding.progress import progress
from judge_decoding.training.mining.jobs import PromptChoice
from judge_decoding.training.mining.run import MiningRun, TauChoice, cost_report, open_run
from judge_decoding.training.mining.search import Cost
from judge_decoding.training.mining.work import MiningSettings


def mine_labels(
    out: Annotated[str, typer.Option(help="JSONL file to write, or to go on with.")],
    deployment: Config = DEMO,
    task: Annotated[
        str, typer.Option(help="facts, a task's name or file, or a file of prompts.")
    ] = "facts",
    split: Annotated[str, typer.Option(help="train, heldout or all.")] = "train",
    method: Annotated[str, typer.Option(help="search or likelihood.")] = "search",
    tau: Annotated[float, typer.Option(help="likelihood: good above this, in nats.")] = -20.0,
    tau_from: Annotated[
        str | None,
        typer.Option(help="likelihood: choose tau by the labels of a search, this JSONL file."),
    ] = None,
    bad_recall: Annotated[
        float, typer.Option(help="--tau-from: share of the search's bad tokens that stay bad.")
    ] = 0.9,
    floor: Annotated[
        float,
        typer.Option(
            help="search: leave out tokens that the target finds less likely; -inf: none."
        ),
    ] = -7.0,
    limit: Annotated[int, typer.Option(min=0, help="Prompts of the split, 0 for all.")] = 0,
    shard: Annotated[str, typer.Option(help="i/n: every n-th prompt, from the i-th on.")] = "0/1",
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Per answer, where a task's item says nothing.")
    ] = 24,
    max_context: Annotated[int, typer.Option(min=32, help="Prompt and answer together.")] = 512,
    draft_len: Annotated[int, typer.Option(min=1, help="Tokens drafted per round.")] = 4,
    most: Annotated[
        int, typer.Option(min=0, help="Labels of swaps that are not kept, per prompt.")
    ] = 12,
    in_flight: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prompts at a time per rank.",
            show_default="48; with TensorRT-LLM limits.max_sequences",
        ),
    ] = None,
    mpi: Annotated[bool, typer.Option(help="Share the work among the ranks of mpiexec.")] = False,
    share: Annotated[
        int, typer.Option(min=0, help="--mpi: prompts sent at once; 0: by their number.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Per rank; 0: cores by ranks.")] = 0,
    run_code: Annotated[
        bool, typer.Option(help="Let parser python run what the models write.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Throw away what OUT holds.")] = False,
    estimate: Annotated[
        int, typer.Option(min=0, help="Mine so many prompts, write nothing, tell the whole cost.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="The seed of court-labels.")] = 0,
    as_json: Json = False,
) -> None:
    """Mine labels for the judge from the draft's own mismatches, without annotators.

    An interrupted run goes on where it stopped.
    """
    run = open_run(
        resolve(out),
        PromptChoice(task, split, seed, limit, shard, run_code),
        MiningSettings(
            deployment=deployment_file(deployment).resolve(),
            method=method,
            tau=tau,
            floor=floor,
            max_tokens=max_tokens,
            max_context=max_context,
            draft_len=draft_len,
            most=most,
            in_flight=in_flight or 0,
            seed=seed,
            threads=threads,
        ),
        mpi=mpi,
        fresh=fresh,
        tau=TauChoice(resolve(tau_from), bad_recall) if tau_from else None,
    )
    if estimate and mpi:
        raise UserError("mine: --estimate runs in one process, without --mpi")
    print(run.prompts.summary(split))
    if done := len(run.prompts.jobs) - len(run.todo):
        print(f"{done} of them are in {run.file.path} already")
    if run.tau is not None:
        print(run.tau.summary())
    if run.file.torn:
        print(f"{run.file.torn} torn lines in it are skipped; what they held is mined again")
    sys.stdout.flush()
    if estimate:
        run.file.close()
        _print_estimate(run, estimate, as_json)
        return
    began = time.monotonic()
    try:
        cost = _mine(run, method, share)
    except KeyboardInterrupt:
        path = run.file.path
        print(f"stopped; {path} holds what is done: run again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _report(cost, time.monotonic() - began, run.file.path)
    if as_json:
        print_json(cost_report(cost, time.monotonic() - began))


def _print_estimate(run: MiningRun, count: int, as_json: bool) -> None:
    if not run.todo:
        print("nothing is left to mine")
        return
    spent = run.estimate(count)
    share = len(run.todo) / spent.prompts
    labels, seconds = (spent.good + spent.bad) * share, spent.seconds * share
    print(
        f"{spent.prompts} prompts took {spent.seconds:.0f} s ({spent.good} good, {spent.bad} bad "
        f"labels); the {len(run.todo)} left will take about {seconds / 60:.0f} min and give about "
        f"{labels:.0f} labels"
    )
    if as_json:
        print_json(
            {"prompts": len(run.todo), "labels": round(labels), "seconds": round(seconds, 1)}
        )


def _mine(run: MiningRun, what: str, share: int) -> Cost:
    """Mine with progress and the time left on stderr."""
    total, labels, cost = len(run.prompts.jobs), 0, Cost()
    done = total - len(run.todo)
    with progress(what) as step:
        step(done, total)
        for spent in run.mine(share):
            cost.add(spent)
            labels += spent.good + spent.bad
            done += spent.prompts
            step(done, total, f"{labels} labels")
    return cost


def _report(cost: Cost, seconds: float, path: Path) -> None:
    labels = cost.good + cost.bad
    print(f"{path}: {labels} labels ({cost.good} good, {cost.bad} bad) of {cost.prompts} prompts")
    print(
        f"{seconds:.0f} s; target {cost.target_passes} passes over {cost.target_tokens} tokens, "
        f"draft {cost.draft_calls} calls for {cost.draft_tokens} tokens"
    )
