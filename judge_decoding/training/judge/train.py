"""Training the judge: a linear head on the target's hidden states that recognizes correct tokens.

The model is a StandardScaler and an L2 logistic regression, on features that are read through the
target's verify pass. The feature (before or after the final norm) and the strength are chosen by
cross-validation grouped by fact. It counts only mismatches, since all other tokens are accepted
anyway, and only mined ones if there are any, because those were written by the draft.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import check_choice
from judge_decoding.files import write_whole
from judge_decoding.provenance import collect
from judge_decoding.training.judge.features import (
    READERS,
    LabelledTokens,
    Precision,
    gather,
    hidden_of_all,
    join,
    precision_of,
)
from judge_decoding.training.judge.head import (
    FOLDS,
    Head,
    check_trainable,
    counted,
    cross_scores,
    cross_validate,
    fit,
    held_out_domains,
)
from judge_decoding.training.judge.measures import (
    BINS,
    auc,
    calibration_error,
    interval,
    reliability,
    report_on,
    threshold_curve,
    without_nan,
)
from judge_decoding.training.judge.report import FIGURES, Series, draw, write_card
from judge_decoding.training.judge.threshold import Chooser, ThresholdChoice
from judge_decoding.training.labels import (
    AFTER_ERROR,
    AfterError,
    LabelRecord,
    file_name,
    labels_hash,
    read_labels,
)

Feature = Literal["pre_norm", "post_norm"]
Say = Callable[[str], None]
"""Shows the user a line about the training's progress."""

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TIE = 0.002  # AUC; folds differ by more
FEATURES: tuple[Feature, ...] = ("pre_norm", "post_norm")


@dataclass(frozen=True)
class TrainingOptions:
    """How a head is trained; UserError for an unknown choice.

    feature       `pre_norm`, `post_norm`, or `best` of both
    after_error   overrides the labels of tokens after an error; None: keep them
    train_on      `mismatch` (tokens that the standard rule refuses) or `all`
    class_weight  `balanced` or `none`
    dtype         of inference: `auto`, `float32`, `bfloat16`
    reader        `torch` (CPU) or `transformers` (GPUs)
    weights       the deployment's `target.weights`; None for `dtype`
    block         tokens per verify pass
    """

    feature: str = "best"
    after_error: AfterError | None = None
    train_on: str = "mismatch"
    class_weight: str = "balanced"
    dtype: str = "auto"
    reader: str = "torch"
    weights: str | None = None
    block: int = 9

    def __post_init__(self) -> None:
        check_choice("--feature", self.feature, (*FEATURES, "best"))
        check_choice("--reader", self.reader, READERS)
        if self.after_error is not None:
            check_choice("--after-error", self.after_error, AFTER_ERROR)
        check_choice("--train-on", self.train_on, ("all", "mismatch"))
        check_choice("--class-weight", self.class_weight, ("balanced", "none"))

    @property
    def weight(self) -> str | None:
        """scikit-learn's class_weight."""
        return None if self.class_weight == "none" else self.class_weight

    @property
    def features(self) -> tuple[Feature, ...]:
        return tuple(name for name in FEATURES if self.feature in (name, "best"))


@dataclass(frozen=True)
class TrainingData:
    """Label files and the target's hidden states at their tokens. labels: files to train on;
    reported: files that are only reported on."""

    target: Checkpoint
    labels: Sequence[Path]
    reported: Sequence[Path]
    records: Mapping[Path, list[LabelRecord]]
    hidden: Mapping[str, dict[str, torch.Tensor]]
    precision: Precision

    def tokens(
        self, feature: Feature, files: Sequence[Path], after_error: AfterError | None
    ) -> LabelledTokens:
        return join(
            [
                gather(self.records[f], self.hidden[str(f)], feature, after_error, file_name(f))
                for f in files
            ]
        )


def read_data(
    labels: Sequence[Path],
    reported: Sequence[Path],
    target: Checkpoint,
    cache: Path,
    options: TrainingOptions,
    say: Say,
) -> TrainingData:
    """Read label files, and the target's states at their tokens unless the cache has them.

    UserError for files that cannot be read, a repeated id, or a fact in both splits.
    """
    precision = precision_of(options.dtype, options.reader, options.weights)
    files = [*labels, *reported]
    read_labels(files)
    records = {file: read_labels([file]) for file in files}
    named = {str(file): rows for file, rows in records.items()}
    answers = sum(bool(record.spans) for rows in records.values() for record in rows)
    say(
        f"1/4 hidden states: {answers} labelled answers, one pass of the target over each; "
        f"kept in {cache}, so that a second training skips this"
    )
    hidden = hidden_of_all(named, target, cache, precision, options.block, options.reader)
    return TrainingData(target, labels, reported, records, hidden, precision)


@dataclass(frozen=True)
class TrainedJudge:
    """judge has its threshold; document is the report, without NaN; series are the curves."""

    judge: Judge
    choice: ThresholdChoice
    document: dict[str, Any]
    series: Series

    def warnings(self) -> list[str]:
        """Reasons against using the judge, one sentence each."""
        found = []
        area = self.document["counted"]
        if area["low"] <= 0.5:
            found.append(
                f"the AUC is {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}] on the "
                "tokens that count, and 0.5 is chance: these labels may have taught the judge "
                "nothing; mine more of them"
            )
        if not accepts(self.document["at_threshold"]):
            found.append(
                f"at threshold {self.choice.threshold:g} the judge accepts none of the labelled "
                "tokens, so rule judge will decode as strict does; lower the threshold, or mine "
                "more labels"
            )
        return found


def accepts(at_threshold: Mapping[str, float]) -> bool:
    """Whether any token is accepted (a row of `measures.threshold_curve`)."""
    return at_threshold["good_accepted"] > 0 or at_threshold["bad_rejected"] < 1


def train_judge(
    data: TrainingData, options: TrainingOptions, choose: Chooser, say: Say
) -> TrainedJudge:
    """Choose feature and strength, fit the head, choose the threshold, and measure.

    UserError if the labels cannot be trained on, or the threshold cannot be chosen.
    """
    weight, target = options.weight, data.target
    sets = {}
    for name in options.features:
        every = data.tokens(name, data.labels, options.after_error)
        kept = ~every.heldout & (every.mismatch | (options.train_on == "all"))
        sets[name] = every.where(kept)
    check_trainable(sets[options.features[0]])
    feature, strength, validation = select(sets, weight, say)
    train = sets[feature]
    heldout = data.tokens(feature, [*data.labels, *data.reported], options.after_error)
    heldout = heldout.where(heldout.heldout & heldout.mismatch)
    head = fit(train, strength, weight)
    cross = cross_scores(train, strength, weight)
    used = labels_hash(r for file in data.labels for r in data.records[file])
    metadata = JudgeMetadata(
        feature=feature,
        hidden_size=len(head.weight),
        target_fingerprint=target.fingerprint,
        tokenizer_hash=target.tokenizer_hash,
        threshold=1.0,
        training_data_hash=used,
        weights=data.precision.weights or data.precision.dtype,
    )
    judge = Judge(torch.tensor(head.weight, dtype=torch.float32), head.bias, metadata)
    at = counted(train)
    say("3/4 threshold")
    choice = choose(judge, cross[at], train.good[at])
    say("4/4 measures and their bootstrap intervals")
    document = {
        "target": target.folder.name,
        "feature": feature,
        "dtype": str(data.precision),
        "train_on": options.train_on,
        "class_weight": options.class_weight,
        "after_error": options.after_error or "as in the labels",
        "strength": strength,
        "cross_validation": validation,
        **report(train, heldout, head, cross, strength, weight),
        **choice.document(cross[at], train.good[at]),
        "provenance": collect(),
    }
    series = {"cross-validated": (cross[at], train.good[at])}
    for source in np.unique(heldout.source):
        test = heldout.where(heldout.source == source)
        series[f"{source}, held out"] = (head.score(test.hidden), test.good)
    return TrainedJudge(with_threshold(judge, choice, document), choice, document, series)


def write_judge(trained: TrainedJudge, out: Path, docs: Path) -> list[Path]:
    """Write the judge to OUT, its card beside it, and the report and figures under DOCS.

    Returns what was written.
    """
    card, results = out.with_suffix(".md"), docs / "results" / "judge_training.json"
    for file in (out, results):
        file.parent.mkdir(parents=True, exist_ok=True)
    trained.judge.save(out)
    draw(docs / "figures", trained.series, trained.choice.threshold)
    write_card(card, trained.document, docs / "figures")
    write_whole(results, json.dumps(without_nan(trained.document), indent=1) + "\n", "train")
    return [out, card, results, *(docs / "figures" / name for name in FIGURES)]


def select(
    sets: Mapping[Feature, LabelledTokens], class_weight: str | None, say: Say
) -> tuple[Feature, float, dict[str, float]]:
    """Feature and strength by grouped cross-validation, and the AUC of every candidate.

    Of candidates within TIE of the best the first is taken: before the norm, as in the paper, and
    with stronger L2.
    """
    found: dict[tuple[Feature, float], float] = {}
    count = len(sets) * len(STRENGTHS)
    say(f"2/4 cross-validation: {count} settings, {FOLDS} fits each")
    began = time.monotonic()
    for name, tokens in sets.items():
        for strength in STRENGTHS:
            found[name, strength] = cross_validate(tokens, strength, class_weight)
            left = (time.monotonic() - began) / len(found) * (count - len(found))
            line = f"{name}, C = {strength:g}: AUC {found[name, strength]:.4f}"
            say(f"{line}, about {left:.0f} s left" if left >= 1 else line)
    feature, strength = next(c for c, area in found.items() if area >= max(found.values()) - TIE)
    return feature, strength, {f"{name} {c:g}": area for (name, c), area in found.items()}


def report(
    train: LabelledTokens,
    heldout: LabelledTokens,
    head: Head,
    cross: Any,
    strength: float,
    class_weight: str | None,
) -> dict[str, Any]:
    """Counts of the training data, and measures: cross-validated, held out, on unseen domains."""
    rows = zip(train.source.tolist(), train.origin.tolist(), train.good.tolist(), strict=True)
    origins = Counter(f"{s}, {o}, {'good' if g else 'bad'}" for s, o, g in rows)
    scores = head.score(heldout.hidden)
    at = counted(train)
    return {
        "training_tokens": {"good": int(train.good.sum()), "bad": int((~train.good).sum())},
        "training_origins": dict(sorted(origins.items())),
        "folds": FOLDS,
        "bins": BINS,
        "validated": report_on(cross, train),
        "counted": interval(lambda w: auc(cross[at], train.good[at], w), train.group[at])._asdict(),
        "heldout": report_on(scores, heldout) if len(heldout.good) else {},
        "auc_on_unseen_domain": held_out_domains(train, heldout, strength, class_weight),
        "domains_never_trained_on": sorted(
            set(heldout.domain.tolist()) - set(train.domain.tolist())
        ),
        "reliability": {
            "cross_validated": reliability(cross[at], train.good[at]),
            "heldout": reliability(scores, heldout.good),
        },
        "curve": threshold_curve(cross[at], train.good[at]),
        "heldout_curve": threshold_curve(scores, heldout.good) if len(heldout.good) else [],
    }


def with_threshold(judge: Judge, choice: ThresholdChoice, document: dict[str, Any]) -> Judge:
    """The judge with its threshold, the method of that choice, and the main measures."""
    metrics = {
        "auc": document["counted"]["value"],
        "auc_low": document["counted"]["low"],
        "auc_high": document["counted"]["high"],
        "auc_within_domains": document["validated"]["all"]["auc_within_domains"],
        "auc_heldout": document["heldout"].get("all", {}).get("auc", math.nan),
        "ece": calibration_error(document["reliability"]["cross_validated"]),
        **{f"threshold_{key}": value for key, value in choice.figures.items()},
    }
    update = {
        "threshold": choice.threshold,
        "threshold_method": choice.method,
        "metrics": {key: value for key, value in metrics.items() if not math.isnan(value)},
    }
    return Judge(judge.weight, judge.bias, judge.metadata.model_copy(update=update))
