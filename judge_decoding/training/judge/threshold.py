"""Choosing the judge's threshold. The judge's metadata records the method:

--threshold 0.5          a fixed threshold; 0.5 is the paper's
--bad-recall 0.95        the smallest that rejects this share of the bad tokens that count, each
                         scored by a head that was not trained on its fact
--max-quality-drop 0.01  the smallest of several that loses at most this accuracy, by its upper
                         confidence bound, on a task that is answered through the real loop; 1, the
                         standard rule, if none does
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.decoding.judge import Judge
from judge_decoding.errors import UserError
from judge_decoding.evaluation.evaluate import evaluate
from judge_decoding.evaluation.gate import Trial, choose_threshold, groups_needed
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.statistics import Paired, worth
from judge_decoding.evaluation.systems import systems_of
from judge_decoding.evaluation.task import read_task
from judge_decoding.evaluation.tasks.humaneval import refuse_benchmark
from judge_decoding.pipeline import load_pipeline
from judge_decoding.progress import progress
from judge_decoding.training.judge.measures import Array, Flags, pick_threshold, threshold_curve


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, the method in words, the figures that decided, and those of all candidates."""

    threshold: float
    method: str
    figures: dict[str, float] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)

    def document(self, scores: Array, good: Flags) -> dict[str, Any]:
        """The choice as a dict for the report, with the threshold's effect on these tokens."""
        return {
            "threshold": self.threshold,
            "threshold_method": self.method,
            "threshold_figures": self.figures,
            "threshold_candidates": self.candidates,
            "at_threshold": threshold_curve(scores, good, (self.threshold,))[0],
        }


Chooser = Callable[[Judge, Array, Flags], ThresholdChoice]
"""(the judge, the cross-validated scores of the tokens that count, whether each is good) -> the
threshold."""


def chooser(
    threshold: float | None = None,
    bad_recall: float | None = None,
    max_quality_drop: float | None = None,
    *,
    deployment: Path | None = None,
    task: str | None = None,
    tried: Sequence[float] = (),
    batch: int | None = None,
    run_code: bool = False,
) -> Chooser:
    """The method of the option that is set, 95 % bad recall if none is. Everything is checked
    before anything takes long; UserError for what does not hold.

    deployment, task, tried, batch, run_code  for `max_quality_drop`: what answers which task, the
                                              thresholds to try, answers at a time, and whether a
                                              task's tests may run code that the models wrote
    """
    if sum(option is not None for option in (threshold, bad_recall, max_quality_drop)) > 1:
        raise UserError("give one of --threshold, --bad-recall and --max-quality-drop")
    if threshold is not None:
        return lambda judge, scores, good: fixed(threshold)
    if max_quality_drop is None:
        recall = 0.95 if bad_recall is None else bad_recall
        return lambda judge, scores, good: by_bad_recall(scores, good, recall)
    if deployment is None or task is None:
        raise UserError("--max-quality-drop needs --deployment and --task")
    if not 0 < max_quality_drop < 1:
        raise UserError(
            f"--max-quality-drop: {max_quality_drop:g} is not above 0 and below 1; one point is "
            "0.01"
        )
    calibration = Calibration.of(deployment, task, max_quality_drop, batch)
    return lambda judge, scores, good: calibration.choose(judge, tried, run_code)


def fixed(threshold: float) -> ThresholdChoice:
    return ThresholdChoice(threshold, "fixed by hand")


def by_bad_recall(scores: Array, good: Flags, recall: float) -> ThresholdChoice:
    """The smallest threshold that rejects `recall` of the bad tokens.

    scores  cross-validated: each token's by a head that was not trained on it
    """
    threshold = pick_threshold(threshold_curve(scores, good), recall)
    bad = int((~good).sum())
    asked = f"the smallest that refuses {100 * recall:g} % of {bad} bad tokens, cross-validated"
    if threshold == 1.0:
        asked = f"none refuses {100 * recall:g} % of {bad} bad tokens, so 1: the standard rule"
    reached = threshold_curve(scores, good, (threshold,))[0]
    keys = ("bad_rejected", "good_accepted", "precision")
    return ThresholdChoice(threshold, asked, {key: reached[key] for key in keys})


@dataclass(frozen=True)
class Calibration:
    """A task and the deployment that answers it, checked before anything takes long."""

    deployment: Deployment
    task: str
    items: list[Item]
    budget: float

    @classmethod
    def of(
        cls, deployment: Path, task: str, budget: float, batch: int | None = None
    ) -> Calibration:
        """Takes the items of split `calibrate`, or all if the task has no splits. UserError if no
        threshold could pass, or if the judge cannot be exchanged."""
        config = load_deployment(deployment)
        if config.draft is None:
            raise UserError(f"--deployment: {deployment} has no draft, so nothing is judged")
        if config.engine == "trtllm":
            raise UserError(
                f"--deployment: {deployment} has engine trtllm, which compiles the judge in; train "
                "with --bad-recall, build the engine, then choose by `judge-decoding eval`"
            )
        items = [item for item in read_task(task) if item.checked]
        refuse_benchmark(items, "to choose a threshold")
        if any(item.split for item in items):
            items = [item for item in items if item.split == "calibrate"]
        groups, needed = worth([item.group for item in items]), groups_needed(budget)
        if groups < needed:
            raise UserError(
                f"--task: {task} has groups to calibrate on that are worth {groups:.0f} of equal "
                f"size, and a drop of at most {budget:g} cannot be shown on fewer than {needed}; "
                "give more, or a larger budget"
            )
        limits = config.limits.model_dump()
        limits |= {} if batch is None else {"max_sequences": batch}
        config = config.override(draft_len_schedule={}, limits=limits)
        return cls(config, task, items, budget)

    def choose(
        self, judge: Judge, thresholds: Sequence[float], run_code: bool = False
    ) -> ThresholdChoice:
        """The smallest threshold within the budget. The target alone and this judge at each of the
        thresholds answer every item through the real loop."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "judge.safetensors"
            judge.save(path)
            pipeline = load_pipeline(self.deployment.override(judge={"path": path}))
        try:
            systems = systems_of(pipeline, ["none"], thresholds=thresholds)
            with progress("answers") as step:
                found = evaluate(pipeline, self.items, systems, run_code=run_code, progress=step)
        finally:
            pipeline.close()
        outcomes: dict[float, Paired] = {}
        for answers in found.answers[1:]:
            paired = found.paired(answers)
            assert paired is not None and answers.system.threshold is not None
            outcomes[answers.system.threshold] = paired
        return within_budget(outcomes, self.budget, Path(self.task).name)


def within_budget(outcomes: Mapping[float, Paired], budget: float, task: str) -> ThresholdChoice:
    """The smallest threshold that loses at most `budget` of accuracy by its confidence bound
    (`evaluation.gate`); 1, the standard rule, if none does."""
    gate = choose_threshold(outcomes, budget)
    passed = [trial for trial in gate.trials if trial.passed]
    sure = f"{100 * gate.confidence:g} % upper bound"
    where = f"{gate.items} items of {gate.groups} groups of task {task}"
    figures = {"budget": budget, "confidence": gate.confidence, "items": float(gate.items)}
    figures["groups"] = float(gate.groups)
    if passed:
        figures |= {"drop": passed[-1].drop, "drop_upper_bound": passed[-1].upper_bound}
        method = (
            f"quality budget: the smallest of {len(outcomes)} that loses at most {100 * budget:g} "
            f"points, {sure}, with all above it, on {where} ({_lost(passed[-1])})"
        )
    else:
        tried = gate.trials[0]
        method = (
            f"quality budget: none of {len(outcomes)} loses at most {100 * budget:g} points "
            f"({sure}) on {where}: so 1: the standard rule ({tried.threshold:g}: "
            f"{_lost(tried)})"
        )
    return ThresholdChoice(gate.threshold, method, figures, [vars(trial) for trial in gate.trials])


def _lost(trial: Trial) -> str:
    """The loss in points; + 0.0 turns a negative zero into a positive one."""
    return f"lost {100 * trial.drop + 0.0:.1f}, bound {100 * trial.upper_bound:.1f}"
