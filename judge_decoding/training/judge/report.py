"""The results of the judge's training: figures and the model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge_decoding.training.judge.measures import (
    auc,
    average_precision,
    calibration_error,
    reliability,
    threshold_curve,
)

Series = dict[str, tuple[NDArray[Any], NDArray[np.bool_]]]
"""Name of a curve -> scores [n] and labels [n] of its tokens."""

FIGURES = {
    "judge_roc.png": "ROC: bad tokens accepted, good tokens accepted",
    "judge_pr.png": "Precision and recall",
    "judge_reliability.png": "Reliability: the predicted and the found share of good tokens",
    "judge_threshold.png": "Share of bad tokens refused and good tokens accepted by threshold",
}


def draw(folder: Path, series: Series, threshold: float) -> None:
    """Draw the four figures, over tokens that the standard rule refuses; series with only one class
    are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.metrics import precision_recall_curve, roc_curve

    folder.mkdir(parents=True, exist_ok=True)
    series = {n: (s, g) for n, (s, g) in series.items() if g.any() and not g.all()}

    figure, axes = plt.subplots(figsize=(4.6, 4.4))
    for name, (scores, good) in series.items():
        wrong, right, _ = roc_curve(good, scores)
        axes.plot(wrong, right, label=f"{name} ({auc(scores, good):.3f})")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="bad tokens accepted", ylabel="good tokens accepted")
    axes.legend(title="tokens (AUC)", loc="lower right", fontsize=8)
    save(figure, folder / "judge_roc.png")

    figure, axes = plt.subplots(figsize=(4.6, 4.4))
    for name, (scores, good) in series.items():
        precision, recall, _ = precision_recall_curve(good, scores)
        label = f"{name} ({average_precision(scores, good):.3f})"
        [line] = axes.plot(recall, precision, label=label)
        axes.axhline(good.mean(), color=line.get_color(), linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="recall: good tokens accepted",
        ylabel="precision: good among the accepted",
        ylim=(0, 1.02),
    )
    axes.legend(title="tokens (average precision); dotted: chance", loc="lower left", fontsize=8)
    save(figure, folder / "judge_pr.png")

    figure, axes = plt.subplots(figsize=(4.6, 4.4))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    for name, (scores, good) in series.items():
        rows = reliability(scores, good)
        axes.plot(
            [row["predicted"] for row in rows],
            [row["good"] for row in rows],
            marker="o",
            markersize=4,
            label=f"{name} ({calibration_error(rows):.3f})",
        )
    axes.set(xlabel="score", ylabel="share of good tokens", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(title="tokens (ECE)", fontsize=8)
    save(figure, folder / "judge_reliability.png")

    figure, axes = plt.subplots(figsize=(5.4, 3.6))
    for name, (scores, good) in series.items():
        curve = threshold_curve(scores, good)
        x = [p["threshold"] for p in curve]
        [line] = axes.plot(x, [p["good_accepted"] for p in curve], label=f"{name}: good accepted")
        refused = [p["bad_rejected"] for p in curve]
        axes.plot(x, refused, "--", color=line.get_color(), label=f"{name}: bad refused")
    axes.axvline(threshold, color="0.5", linewidth=0.8)
    axes.set(xlabel="threshold", ylabel="share of refused tokens", ylim=(0, 1.02))
    axes.legend(fontsize=7)
    save(figure, folder / "judge_threshold.png")


def save(figure: Any, path: Path) -> None:
    """Write a PNG without software name or date, so that the same data gives the same file."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def measures_table(report: dict[str, Any], unseen: dict[str, float] | None = None) -> str:
    """Markdown of `measures.report_on`; `unseen` adds `head.held_out_domains`."""
    head = "| part | good | bad | groups | AUC (95 %) | within domains | avg. precision | ECE |"
    lines = [head, "|" + "---|" * 8]
    if unseen is not None:
        lines = [head + " never trained on |", "|" + "---|" * 9]
    for name, part in report.items():
        span = f"{part['auc']:.3f} [{part['auc_low']:.3f}, {part['auc_high']:.3f}]"
        inside = part["auc_within_domains"] if _spans_domains(name) else float("nan")
        cells = [name, part["good"], part["bad"], part["groups"], span, f"{inside:.3f}"]
        cells += [f"{part['average_precision']:.3f}", f"{part['ece']:.3f}"]
        if unseen is not None:
            cells.append(f"{unseen.get(name, float('nan')):.3f}")
        line = "| " + " | ".join(map(str, cells)) + " |"
        lines.append(line.replace("nan [nan, nan]", "-").replace(" nan ", " - "))
    return "\n".join(lines)


def _spans_domains(part: str) -> bool:
    return part == "all" or part.startswith("file ")


def write_card(path: Path, document: dict[str, Any], figures: Path) -> None:
    """Write the model card; a later quality gate may add its section."""
    counts, at = document["training_tokens"], document["at_threshold"]
    files = "\n".join(f"| {row} | {n} |" for row, n in document["training_origins"].items())
    new = document["domains_never_trained_on"]
    where = Path(os.path.relpath(figures, path.parent)).as_posix()
    drawn = "\n".join(f"![{text}]({where}/{name})" for name, text in FIGURES.items())
    heldout = measures_table(document["heldout"]) if document["heldout"] else "No labels were."
    path.write_text(
        f"""# Judge for {document["target"]}

A linear head on the target's last hidden state (`{document["feature"]}`, {document["dtype"]}),
read through its verify pass. It only fits the target named by the fingerprint in its header.

Made by `build/train_judge.py`: standard scaler and logistic regression, folded into one vector and
a bias; C = {document["strength"]:g} by cross-validation, classes {document["class_weight"]},
{counts["good"]} good and {counts["bad"]} bad tokens ({document["train_on"]}):

| label file, origin, label | tokens |
|---|---|
{files}

## Threshold

**{document["threshold"]:g}**: {document["threshold_method"]}.

There the judge refuses {100 * at["bad_rejected"]:.1f} % of the bad tokens and accepts
{100 * at["good_accepted"]:.1f} % of the good ones (cross-validated, over tokens that the standard
rule refuses); {100 * at["precision"]:.1f} % of what it accepts is good.

## Cross-validated

On the training labels, {document["folds"]} folds grouped by fact or prompt; AUC with a bootstrap
interval over groups. "Within domains" counts pairs of one domain only: what is left of the AUC when
telling domains apart earns nothing. "Never trained on" is the AUC on a whole domain by a head that
saw none of it. ECE: the mean gap between score and share of good tokens, {document["bins"]} bins.

{measures_table(document["validated"], document["auc_on_unseen_domain"])}

## Held out

Groups that were held out of training.{_new_domains(new)}

{heldout}

{drawn}

## Limits

- Mistakes in kinds of text that it was not trained on (code, reasoning, other languages) pass more
  easily. A judge is only as good as its labels.
- A score is no probability: with balanced classes the head is trained for another share of good
  tokens than it meets (see ECE). Only the threshold gives it a meaning.
- What the target does not know, its hidden state cannot tell.
""",
        encoding="utf-8",
    )


def _new_domains(names: list[str]) -> str:
    if not names:
        return ""
    return f" Domains that no training label is from: {', '.join(names)}."
