"""What the judge's training shows: figures and the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from judge_head import auc, threshold_curve
from numpy.typing import NDArray


def draw(
    folder: Path,
    scores: NDArray[Any],
    good: NDArray[np.bool_],
    chat: NDArray[np.bool_],
    document: dict[str, Any],
) -> None:
    """judge_roc.png, judge_threshold.png: over held-out tokens that the standard rule refuses."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.metrics import roc_curve

    folder.mkdir(parents=True, exist_ok=True)
    parts = (("all", np.ones(len(good), dtype=bool)), ("facts", ~chat), ("chat", chat))
    figure, axes = plt.subplots(figsize=(4.6, 4.4))
    for name, keep in parts:
        if good[keep].all() or not good[keep].any():
            continue
        wrong, right, _ = roc_curve(good[keep], scores[keep])
        axes.plot(wrong, right, label=f"{name} ({auc(scores[keep], good[keep]):.3f})")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="bad tokens accepted", ylabel="good tokens accepted")
    axes.legend(title="held-out tokens (AUC)", loc="lower right")
    _save(figure, folder / "judge_roc.png")

    figure, axes = plt.subplots(figsize=(5.4, 3.6))
    for name, keep in parts:
        curve = threshold_curve(scores[keep], good[keep])
        x = [p["threshold"] for p in curve]
        line = axes.plot(x, [p["good_accepted"] for p in curve], label=f"{name}: good accepted")
        axes.plot(
            x,
            [p["bad_rejected"] for p in curve],
            "--",
            color=line[0].get_color(),
            label=f"{name}: bad rejected",
        )
    axes.axvline(document["threshold"], color="0.5", linewidth=0.8)
    axes.set(xlabel="threshold", ylabel="share of refused tokens", ylim=(0, 1.02))
    axes.legend(fontsize=7)
    _save(figure, folder / "judge_threshold.png")


def _save(figure: Any, path: Path) -> None:
    # No software name or date inside: the same data must give the same file.
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})


def write_card(path: Path, document: dict[str, Any]) -> None:
    """The model card; build/judged_facts.py adds the gate's result."""
    counts, strength = document["training_tokens"], format(document["strength"], "g")
    unseen = document["auc_on_unseen_domain"]
    validated = "\n".join(
        f"| {name} | {part['good']} | {part['bad']} | {part['auc']:.3f} |".replace("nan", "-")
        for name, part in document["validated"].items()
    )
    rows = "\n".join(
        f"| {name} | {part['good']} | {part['bad']} | {part['auc']:.3f} | "
        f"{unseen.get(name, float('nan')):.3f} |".replace("nan", "-")
        for name, part in document["heldout"].items()
    )
    path.write_text(
        f"""# Judge for SmolLM2-135M-Instruct

A linear head on the target's last hidden state (`{document["feature"]}`, {document["dtype"]}), for
the demo deployment. It only fits the target named by the fingerprint in its header.

Made by `build/train_judge.py` on labels that `build/mine_labels.py` found among the draft's own
mismatches: on questions from facts that small packages carry (AutoJudge's search) and on requests
the target made up (SelfJudge's likelihood). No text from outside. Licence: Apache-2.0, as the
target's.

- logistic regression, C = {strength}, classes {document["class_weight"]}, trained on
  {counts["good"]} good and {counts["bad"]} bad tokens ({document["train_on"]})

## Cross-validated

Grouped by fact, on the training labels: tokens the draft really wrote and the target would not have
written.

| part | good | bad | AUC |
|---|---|---|---|
{validated}

## Held out

Labels of prompts and facts that were held out. "Unseen" is the AUC on a domain that was left out of
training altogether.

| domain | good | bad | AUC | unseen |
|---|---|---|---|---|
{rows}

## Limits

- Mistakes in kinds of text that it was not trained on (code, reasoning, other languages) pass more
  easily. A judge is only as good as its labels.
- In chat, "bad" means that the target finds token and continuation very unlikely; that is no check
  of sense, and the head can hardly predict it (see "mined chat").
- The target knows little: where it does not know a fact, its hidden state cannot tell.
""",
        encoding="utf-8",
    )
