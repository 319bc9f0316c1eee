"""python -m tests.mutants: see the package."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

# Before importing PyTorch, since a process that has started threads must not be forked.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import yaml

from tests.mutants import runner
from tests.mutants.operators import Mutant, mutants

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SLACK_S = 60.0
"""Added to five times the time of a module's tests, since other programs may need the CPU."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Change one token; the tests must notice.")
    parser.add_argument("--only", action="append", help="a module's name in modules.yaml")
    parser.add_argument("--count", type=int, default=24, help="mutants of a module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.92, help="share that must be noticed")
    options = parser.parse_args()
    os.chdir(ROOT)
    modules: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "modules.yaml").read_text())
    if unknown := set(options.only or ()) - set(modules):
        parser.error(f"--only: no module {', '.join(unknown)}; there are {', '.join(modules)}")
    chosen = {name: m for name, m in modules.items() if not options.only or name in options.only}
    # 1. The sample, without the mutants that are known to be equivalent.
    known = equivalents()
    sample: dict[str, list[Mutant]] = {}
    for name, module in chosen.items():
        every = mutants(module["file"], Path(module["file"]).read_text())
        if stale := {k for k in known if k[0] == module["file"]} - {m.key for m in every}:
            parser.error(f"equivalent.yaml: no such mutant any more: {stale}")
        count = min(options.count or len(every), len(every))
        sample[name] = random.Random(f"{options.seed} {name}").sample(every, count)
    # 2. The tests on the unchanged modules: their time, and that they pass.
    runner.warm_up()
    limits: dict[str, float] = {}
    tests = {name: tuple(module["tests"]) for name, module in chosen.items()}
    names = {tests[name]: name for name in chosen}
    for task, outcome, seconds in runner.run(
        [runner.Task(None, one, 600.0) for one in names], options.workers
    ):
        if outcome != "survived":
            print(f"mutants: the tests of {names[task.tests]} fail already", file=sys.stderr)
            return 2
        limits |= {name: 5 * seconds + SLACK_S for name in chosen if tests[name] == task.tests}
    # 3. The mutants.
    owner = {mutant: name for name, sampled in sample.items() for mutant in sampled}
    tasks = [
        runner.Task(mutant, tests[name], limits[name])
        for mutant, name in owner.items()
        if mutant.key not in known
    ]
    survivors: dict[str, list[Mutant]] = {name: [] for name in chosen}
    for task, outcome, seconds in runner.run(tasks, options.workers):
        assert task.mutant is not None
        if outcome == "survived":
            survivors[owner[task.mutant]].append(task.mutant)
        where = f"{task.mutant.path}:{task.mutant.line}"
        print(f"{outcome:9s}{seconds:6.1f} s  {where}  {task.mutant.change}", file=sys.stderr)
    # 4. The table.
    document = {
        name: {
            "sampled": len(sampled),
            "equivalent": sum(mutant.key in known for mutant in sampled),
            "survived": len(survivors[name]),
            "survivors": [f"{m.path}:{m.line}  {m.change}" for m in survivors[name]],
        }
        for name, sampled in sample.items()
    }
    rates = {name: rate(**row) for name, row in document.items()}
    print(f"{'module':16s}{'sampled':>9s}{'equivalent':>12s}{'survived':>10s}{'noticed':>10s}")
    for name, row in document.items():
        numbers = f"{row['sampled']:9d}{row['equivalent']:12d}{row['survived']:10d}"
        print(f"{name:16s}{numbers}{rates[name]:10.0%}")
        for survivor in row["survivors"]:
            print(f"    {survivor}")
    print(json.dumps({"seed": options.seed, "modules": document, "rates": rates}))
    return 1 if min(rates.values()) < options.least else 0


def rate(sampled: int, equivalent: int, survived: int, **_: object) -> float:
    """The share of noticed mutants among those that are not equivalent."""
    different = sampled - equivalent
    return 1 - survived / different if different else 1.0


def equivalents() -> set[tuple[str, str, str]]:
    document = yaml.safe_load((HERE / "equivalent.yaml").read_text()) or []
    return {(one["file"], one["line"], one["change"]) for one in document}


if __name__ == "__main__":
    sys.exit(main())
