"""Train the judge: a linear head on the target's hidden states that knows a correct token.

    python build/train_judge.py --labels cache:mined-facts.jsonl --labels cache:mined-chat.jsonl \
        --held-out-labels cache:court.jsonl --target cache:smollm2-135m-instruct

StandardScaler and L2 logistic regression on features read through the target's verify pass. The
feature (before or after the final norm) and the strength are chosen by cross-validation grouped by
fact, on the tokens that matter: mismatches, since all others are accepted anyway, and of them the
mined ones where there are any, which are the draft's own. The threshold, one of:

--bad-recall 0.95        (default) the smallest that refuses this share of the bad tokens that
                         count, each scored by a head that saw nothing of its fact
--threshold 0.5          fixed; the paper's
--max-quality-drop 0.01  the smallest of --try that loses at most this accuracy, upper confidence
                         bound, on a task answered through the real loop (--deployment, --task);
                         1, the standard rule, where none does

Writes the judge, its card beside it, DOCS/results/judge_training.json and DOCS/figures/judge_*.png.
See docs/training.md.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config.paths import resolve
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError
from judge_decoding.evaluation.systems import parse_numbers
from judge_decoding.provenance import collect
from judge_decoding.training.judge.features import (
    READERS,
    Tokens,
    gather,
    hidden_of_all,
    inference_dtype,
    join,
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
from judge_decoding.training.judge.report import draw, measures_table, write_card
from judge_decoding.training.judge.threshold import Calibration, Choice, by_bad_recall, fixed
from judge_decoding.training.labels import file_name, labels_hash, read_labels

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TIE = 0.002  # of AUC: less than folds differ by
FEATURES = ("pre_norm", "post_norm")


def main(
    labels: Annotated[list[str] | None, typer.Option(help="JSONL files; repeatable")] = None,
    held_out_labels: Annotated[
        list[str] | None, typer.Option(help="JSONL files to report on, not to train on")
    ] = None,
    target: str = "cache:smollm2-135m-instruct",
    out: Path = Path("models/smollm2-135m-judge.safetensors"),
    docs: Annotated[Path, typer.Option(help="folder of results/ and figures/")] = Path("docs"),
    cache: Annotated[str, typer.Option(help="folder for hidden states")] = "cache:",
    feature: Annotated[str, typer.Option(help="pre_norm, post_norm or best")] = "best",
    after_error: Annotated[str | None, typer.Option(help="overrules the labels' own")] = None,
    train_on: Annotated[str, typer.Option(help="mismatch (refused tokens) or all")] = "mismatch",
    class_weight: Annotated[str, typer.Option(help="balanced or none")] = "balanced",
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="fixed")] = None,
    bad_recall: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    max_quality_drop: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    deployment: Annotated[
        Path | None, typer.Option(help="YAML whose draft and target answer the task")
    ] = None,
    task: Annotated[str | None, typer.Option(help="name or JSONL file")] = None,
    tried: Annotated[
        str, typer.Option("--try", help="thresholds for --max-quality-drop")
    ] = "0.5,0.6,0.7,0.8,0.9",
    batch: Annotated[int | None, typer.Option(min=1, help="answers to the task at a time")] = None,
    run_code: Annotated[bool, typer.Option(help="let a task's tests run written code")] = False,
    dtype: Annotated[str, typer.Option(help="of inference: auto, float32, bfloat16")] = "auto",
    reader: Annotated[str, typer.Option(help="torch (CPU) or transformers (GPUs)")] = "torch",
    block: Annotated[int, typer.Option(min=1, help="tokens a verify pass reads")] = 9,
) -> None:
    try:
        check_choice("--feature", feature, (*FEATURES, "best"))
        check_choice("--reader", reader, READERS)
        check_choice("--after-error", after_error, (None, "negative", "ignore", "error_only"))
        check_choice("--train-on", train_on, ("all", "mismatch"))
        check_choice("--class-weight", class_weight, ("balanced", "none"))
        if sum(option is not None for option in (threshold, bad_recall, max_quality_drop)) > 1:
            raise UserError("give one of --threshold, --bad-recall and --max-quality-drop")
        if max_quality_drop is not None and (deployment is None or task is None):
            raise UserError("--max-quality-drop needs --deployment and --task")
        if max_quality_drop is not None and not 0 < max_quality_drop < 1:
            raise UserError(
                f"--max-quality-drop: {max_quality_drop:g} is not above 0 and below 1; one point "
                "is 0.01"
            )
        thresholds = parse_numbers(tried, "--try")
        for value in thresholds:
            if not 0 <= value <= 1:
                raise UserError(f"--try: {value:g} is not in [0, 1]")
        calibration = None
        if max_quality_drop is not None and deployment is not None and task is not None:
            calibration = Calibration.of(deployment, task, max_quality_drop, batch)
        model, dtype = Checkpoint(resolve(target)), inference_dtype(dtype, reader)
        paths = [resolve(p) for p in labels or ["cache:mined-facts.jsonl"]]
        reported = [resolve(p) for p in held_out_labels or []]
        read_labels(paths + reported)  # all together: no id twice, no fact in both splits
        records = {path: read_labels([path]) for path in paths + reported}
        named = {str(path): r for path, r in records.items()}
        hidden = hidden_of_all(named, model, resolve(cache), dtype, block, reader)

        def tokens_of(name: str, wanted: Sequence[Path]) -> Tokens:
            return join(
                [
                    gather(records[p], hidden[str(p)], name, after_error, file_name(p))  # type: ignore[arg-type]
                    for p in wanted
                ]
            )

        weight = None if class_weight == "none" else class_weight
        names = FEATURES if feature == "best" else (feature,)
        sets = {}
        for name in names:
            every = tokens_of(name, paths)
            sets[name] = every.where(~every.heldout & (every.mismatch | (train_on == "all")))
        check_trainable(sets[names[0]])
        feature, strength, validation = select(sets, weight)
        train = sets[feature]
        heldout = tokens_of(feature, paths + reported)
        heldout = heldout.where(heldout.heldout & heldout.mismatch)
        head = fit(train, strength, weight)
        cross = cross_scores(train, strength, weight)
        judge = Judge(
            torch.tensor(head.weight, dtype=torch.float32),
            head.bias,
            JudgeMetadata(
                feature=feature,  # type: ignore[arg-type]
                hidden_size=len(head.weight),
                target_fingerprint=model.fingerprint,
                tokenizer_hash=model.tokenizer_hash,
                threshold=1.0,
                training_data_hash=labels_hash(r for path in paths for r in records[path]),
            ),
        )
        at = counted(train)
        if threshold is not None:
            choice = fixed(threshold)
        elif calibration is not None:
            choice = calibration.choose(judge, thresholds, run_code)
        else:
            recall = 0.95 if bad_recall is None else bad_recall
            choice = by_bad_recall(cross[at], train.good[at], recall)
    except UserError as error:
        raise SystemExit(f"train_judge: {error}") from None
    document = {
        "target": model.folder.name,
        "feature": feature,
        "dtype": dtype,
        "train_on": train_on,
        "class_weight": class_weight,
        "after_error": after_error or "as in the labels",
        "strength": strength,
        "cross_validation": validation,
        **report(train, heldout, head, cross, strength, weight),
        **choice.document(cross[at], train.good[at]),
        "provenance": collect(),
    }
    ship(judge, choice, document, out)
    series = {"cross-validated": (cross[at], train.good[at])}
    for name in np.unique(heldout.source):
        test = heldout.where(heldout.source == name)
        series[f"{name}, held out"] = (head.score(test.hidden), test.good)
    draw(docs / "figures", series, choice.threshold)
    write_card(out.with_suffix(".md"), document, docs / "figures")
    (docs / "results").mkdir(parents=True, exist_ok=True)
    plain = without_nan(document)
    (docs / "results" / "judge_training.json").write_text(json.dumps(plain, indent=1) + "\n")
    print(measures_table(document["validated"], document["auc_on_unseen_domain"]))
    print(f"threshold {choice.threshold:g}: {choice.method}")
    print(json.dumps(plain))


def check_choice(option: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        raise UserError(f"{option}: {value!r} is not one of {[c for c in choices if c]}")


def select(
    sets: dict[str, Tokens], class_weight: str | None
) -> tuple[str, float, dict[str, float]]:
    """Feature and strength by grouped cross-validation, and every AUC that was found.

    The first that is as good as the best: before the norm, as in the paper, and the stronger L2.
    """
    found = {}
    for name, tokens in sets.items():
        for strength in STRENGTHS:
            found[name, strength] = cross_validate(tokens, strength, class_weight)
            print(f"{name}, C = {strength:g}: AUC {found[name, strength]:.4f}", flush=True)
    feature, strength = next(c for c, area in found.items() if area >= max(found.values()) - TIE)
    return feature, strength, {f"{name} {c:g}": area for (name, c), area in found.items()}


def report(
    train: Tokens,
    heldout: Tokens,
    head: Head,
    cross: Any,
    strength: float,
    class_weight: str | None,
) -> dict[str, Any]:
    """What was trained on, and how good it is: cross-validated, held out, on an unseen domain."""
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


def ship(judge: Judge, choice: Choice, document: dict[str, Any], out: Path) -> None:
    """The judge's file, with its threshold, how that was chosen, and the main measures."""
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
    out.parent.mkdir(parents=True, exist_ok=True)
    Judge(judge.weight, judge.bias, judge.metadata.model_copy(update=update)).save(out)
