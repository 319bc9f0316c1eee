"""Train the judge: a linear head on the target's hidden states that knows a correct token.

    python build/train_judge.py --labels cache:court.jsonl --target cache:smollm2-135m-instruct

Features are read through the target's verify pass, in the dtype of inference, at each token's own
position. StandardScaler and L2 logistic regression; the strength is chosen by cross-validation
grouped by fact, on the tokens that matter: those that are not the target's own choice, since all
others are accepted anyway. The scaler is folded into weight and bias. Writes the judge, its card,
docs/results/judge_training.json and docs/figures/judge_*.png.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from court import resolve
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from judge_decoding.engine.torch_engine import TorchTarget, load_target
from judge_decoding.engine.weights import fingerprint, tokenizer_hash
from judge_decoding.errors import UserError
from judge_decoding.judge import Judge, JudgeMetadata
from judge_decoding.labels import AfterError, LabelRecord, labels_hash, read_labels
from judge_decoding.provenance import collect
from judge_decoding.text import Tokenizer

STRENGTHS = (1e-4, 1e-3, 1e-2)
FOLDS = 3
THRESHOLDS = (*(round(0.02 * i, 2) for i in range(1, 50)), 0.99, 0.995, 0.999)


@dataclass(frozen=True)
class Tokens:
    """Labelled tokens, one row each.

    hidden    float32 [n, H]
    good      bool, the label
    mismatch  bool, the token is not the target's own choice: the judge's word decides
    group, domain, origin  str; heldout bool
    """

    hidden: NDArray[np.float32]
    good: NDArray[np.bool_]
    mismatch: NDArray[np.bool_]
    group: NDArray[np.str_]
    domain: NDArray[np.str_]
    origin: NDArray[np.str_]
    heldout: NDArray[np.bool_]

    def where(self, keep: NDArray[np.bool_]) -> Tokens:
        return replace(self, **{name: value[keep] for name, value in vars(self).items()})


def read_hidden(
    records: Sequence[LabelRecord], target: TorchTarget, tokenizer: Tokenizer, block: int
) -> dict[str, torch.Tensor]:
    """What the target makes of all answers, one after the other; takes minutes."""
    from rich.progress import track

    columns: dict[str, list[torch.Tensor]] = {"pre_norm": [], "post_norm": [], "argmax": []}
    for record in track(records, description="hidden states"):
        prompt = tokenizer.chat([{"role": "user", "content": record.prompt}])
        read = target.teacher_forced(prompt, record.response_ids, block=block)
        # bf16 states lose nothing in bf16; float32 ones are rounded to what serving would use.
        columns["pre_norm"].append(read.pre_norm.to(target.model.dtype))
        columns["post_norm"].append(read.post_norm.to(target.model.dtype))
        columns["argmax"].append(read.argmax)
    return {name: torch.cat(parts) for name, parts in columns.items()}


def hidden_of(
    records: Sequence[LabelRecord], folder: Path, cache: Path, *, dtype: str, block: int
) -> dict[str, torch.Tensor]:
    identity = f"{labels_hash(records)} {fingerprint(folder)} {dtype} {block}"
    order = hashlib.sha256(" ".join(r.id for r in records).encode()).hexdigest()
    path = (
        cache
        / f"hidden-{hashlib.sha256(f'{identity} {order}'.encode()).hexdigest()[:16]}.safetensors"
    )
    if path.is_file():
        return load_file(path)
    target = load_target(folder, dtype=dtype, max_sequences=1, max_context=512)
    hidden = read_hidden(records, target, Tokenizer(folder), block)
    cache.mkdir(parents=True, exist_ok=True)
    save_file(hidden, path)
    return hidden


def gather(
    records: Sequence[LabelRecord],
    hidden: dict[str, torch.Tensor],
    feature: str,
    after_error: AfterError | None,
) -> Tokens:
    """The labelled tokens of all records; ignored ones are left out."""
    labels = [pair for record in records for pair in record.token_labels(after_error)]
    lengths = [len(record.response_ids) for record in records]
    ids = np.array([i for record in records for i in record.response_ids])
    kept = np.array([label != "ignore" for label, _ in labels])

    def spread(values: Sequence[Any]) -> NDArray[Any]:
        return np.repeat(np.array(values), lengths)[kept]

    return Tokens(
        hidden=hidden[feature][torch.from_numpy(kept)].float().numpy(),
        good=np.array([label == "good" for label, _ in labels])[kept],
        mismatch=(ids != hidden["argmax"].numpy())[kept],
        group=spread([r.group for r in records]),
        domain=spread([r.domain for r in records]),
        origin=np.array([origin for _, origin in labels])[kept],
        heldout=spread([r.split == "heldout" for r in records]),
    )


class Head(NamedTuple):
    """A linear head on raw hidden states: sigmoid(hidden @ weight + bias) = P(good)."""

    weight: NDArray[np.float64]
    bias: float

    def score(self, hidden: NDArray[Any]) -> NDArray[np.float64]:
        return 1.0 / (1.0 + np.exp(-(hidden @ self.weight + self.bias)))


def fit(tokens: Tokens, strength: float, class_weight: str | None) -> Head:
    """Scaler and regression, folded into one head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(tokens.hidden)
    model = LogisticRegression(C=strength, class_weight=class_weight, max_iter=300, tol=1e-3)
    model.fit(scaler.transform(tokens.hidden), tokens.good)
    return fold(model.coef_[0], float(model.intercept_[0]), scaler.mean_, scaler.scale_)


def fold(
    coefficients: NDArray[Any], intercept: float, mean: NDArray[Any], scale: NDArray[Any]
) -> Head:
    """w . (h - mean) / scale + b  =  (w / scale) . h + (b - w . mean / scale)."""
    weight = np.asarray(coefficients, dtype=np.float64) / scale
    return Head(weight, intercept - float(weight @ mean))


def auc(scores: NDArray[Any], good: NDArray[np.bool_]) -> float:
    """Area under the ROC curve; NaN where only one class is there."""
    from sklearn.metrics import roc_auc_score

    if good.all() or not good.any():
        return float("nan")
    return float(roc_auc_score(good, scores))


def cross_validate(tokens: Tokens, strength: float, class_weight: str | None) -> float:
    """AUC over mismatches, all folds together, no fact in training and test of one fold."""
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(len(tokens.good))
    for train, test in GroupKFold(FOLDS).split(tokens.hidden, groups=tokens.group):
        keep = np.zeros(len(tokens.good), dtype=bool)
        keep[train] = True
        scores[test] = fit(tokens.where(keep), strength, class_weight).score(tokens.hidden[test])
    return auc(scores[tokens.mismatch], tokens.good[tokens.mismatch])


def threshold_curve(
    scores: NDArray[Any], good: NDArray[np.bool_], thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """What a threshold costs and gains on tokens the standard rule refuses.

    bad_rejected   share of the bad tokens that the judge refuses (score <= threshold)
    good_accepted  share of the good ones that it takes: its gain over the standard rule
    """
    return [
        {
            "threshold": threshold,
            "bad_rejected": float(np.mean(scores[~good] <= threshold)) if (~good).any() else 1.0,
            "good_accepted": float(np.mean(scores[good] > threshold)) if good.any() else 0.0,
        }
        for threshold in thresholds
    ]


def pick_threshold(curve: Sequence[dict[str, float]], bad_rejected: float) -> float:
    """The smallest threshold that refuses this share of the bad tokens; 1 where none does."""
    fitting = [p["threshold"] for p in curve if p["bad_rejected"] >= bad_rejected]
    return min(fitting, default=1.0)


def report_on(head: Head, tokens: Tokens) -> dict[str, Any]:
    """AUC and counts over the mismatches: all, facts, chat, and each domain."""
    found: dict[str, Any] = {}
    parts = {"all": np.ones(len(tokens.good), dtype=bool), "facts": tokens.domain != "chat"}
    parts |= {domain: tokens.domain == domain for domain in np.unique(tokens.domain)}
    for name, keep in parts.items():
        part = tokens.where(keep & tokens.mismatch)
        found[str(name)] = {
            "auc": auc(head.score(part.hidden), part.good) if len(part.good) else float("nan"),
            "good": int(part.good.sum()),
            "bad": int((~part.good).sum()),
        }
    return found


def held_out_domains(
    train: Tokens, heldout: Tokens, strength: float, class_weight: str | None
) -> dict[str, float]:
    """AUC on a whole domain that the head never saw, one domain at a time."""
    found = {}
    for domain in np.unique(train.domain):
        head = fit(train.where(train.domain != domain), strength, class_weight)
        test = heldout.where((heldout.domain == domain) & heldout.mismatch)
        found[str(domain)] = auc(head.score(test.hidden), test.good)
    return found


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
    rows = "\n".join(
        f"| {name} | {part['good']} | {part['bad']} | {part['auc']:.3f} | "
        f"{document['auc_on_unseen_domain'].get(name, float('nan')):.3f} |".replace("nan", "-")
        for name, part in document["heldout"].items()
    )
    path.write_text(
        f"""# Judge for SmolLM2-135M-Instruct

A linear head on the target's last hidden state (`{document["feature"]}`, {document["dtype"]}), for
the demo deployment. It only fits the target named by the fingerprint in its header.

Made by `python build/court.py` and `python build/train_judge.py` from facts that small packages
carry and from the target's own answers; no text from outside. Licence: Apache-2.0, as the target's.

- logistic regression, C = {strength}, classes {document["class_weight"]}, trained on
  {counts["good"]} good and {counts["bad"]} bad tokens ({document["train_on"]})
- cross-validation grouped by fact: AUC {document["cross_validation"][strength]:.3f}

## Held-out facts

Tokens that are not the target's own choice, the only ones on which a judge's word counts.
"Unseen" is the AUC on a domain that was left out of training altogether.

| domain | good | bad | AUC | unseen |
|---|---|---|---|---|
{rows}

## Limits

- Mistakes in kinds of text that it was not trained on (code, reasoning, other languages) pass more
  easily: see the column "unseen". A judge is only as good as its labels.
- In ordinary prose, "bad" means a token the target finds very unlikely; that is no check of sense.
- The target knows little: where it does not know a fact, its hidden state cannot tell.
""",
        encoding="utf-8",
    )


def main(
    labels: Annotated[list[str] | None, typer.Option(help="JSONL files")] = None,
    target: str = "cache:smollm2-135m-instruct",
    out: Path = Path("models/smollm2-135m-judge.safetensors"),
    docs: Annotated[Path, typer.Option(help="folder of results/ and figures/")] = Path("docs"),
    cache: Annotated[str, typer.Option(help="folder for hidden states")] = "cache:",
    feature: str = "pre_norm",
    after_error: Annotated[str | None, typer.Option(help="overrules the labels' own")] = None,
    train_on: Annotated[str, typer.Option(help="mismatch (refused tokens) or all")] = "mismatch",
    class_weight: Annotated[str, typer.Option(help="balanced or none")] = "balanced",
    bad_rejected: Annotated[float, typer.Option(help="sets the threshold until the gate")] = 0.95,
    dtype: str = "bfloat16",
    block: Annotated[int, typer.Option(help="tokens a verify pass reads")] = 9,
) -> None:
    try:
        check_choice("--feature", feature, ("pre_norm", "post_norm"))
        check_choice("--after-error", after_error, (None, "negative", "ignore", "error_only"))
        check_choice("--train-on", train_on, ("all", "mismatch"))
        check_choice("--class-weight", class_weight, ("balanced", "none"))
        folder = resolve(target)
        records = read_labels([resolve(p) for p in labels or ["cache:court.jsonl"]])
        hidden = hidden_of(records, folder, resolve(cache), dtype=dtype, block=block)
    except UserError as error:
        raise SystemExit(f"train_judge: {error}") from None
    tokens = gather(records, hidden, feature, after_error)  # type: ignore[arg-type]
    train, heldout = tokens.where(~tokens.heldout), tokens.where(tokens.heldout)
    if train_on == "mismatch":
        train = train.where(train.mismatch)
    weight = None if class_weight == "none" else class_weight
    # 1. The strength, by grouped cross-validation.
    validation = {}
    for strength in STRENGTHS:
        validation[strength] = cross_validate(train, strength, weight)
        print(f"C = {strength:g}: AUC {validation[strength]:.4f} over mismatches", flush=True)
    best = max(validation, key=lambda c: validation[c])
    # 2. The head, on all training tokens; its curve on held-out facts.
    head = fit(train, best, weight)
    report = report_on(head, heldout)
    test = heldout.where(heldout.mismatch)
    scores = head.score(test.hidden)
    curve = threshold_curve(scores, test.good)
    threshold = pick_threshold(curve, bad_rejected)
    at = next((p for p in curve if p["threshold"] == threshold), None)
    document = {
        "feature": feature,
        "dtype": dtype,
        "train_on": train_on,
        "class_weight": class_weight,
        "after_error": after_error or "as in the labels",
        "strength": best,
        "cross_validation": {f"{c:g}": v for c, v in validation.items()},
        "training_tokens": {"good": int(train.good.sum()), "bad": int((~train.good).sum())},
        "heldout": report,
        "curve": curve,
        "threshold": threshold,
        "auc_on_unseen_domain": held_out_domains(train, heldout, best, weight),
        "provenance": collect(),
    }
    # 3. What is shipped.
    metrics = {
        "auc": report["all"]["auc"],
        "auc_facts": report["facts"]["auc"],
        "cross_validation_auc": validation[best],
    }
    metrics |= {key: at[key] for key in ("bad_rejected", "good_accepted")} if at else {}
    judge = Judge(
        torch.tensor(head.weight, dtype=torch.float32),
        head.bias,
        JudgeMetadata(
            feature=feature,
            hidden_size=len(head.weight),  # type: ignore[arg-type]
            target_fingerprint=fingerprint(folder),
            tokenizer_hash=tokenizer_hash(folder),
            threshold=threshold,
            training_data_hash=labels_hash(records),
            metrics=metrics,
        ),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    judge.save(out)
    write_card(out.with_suffix(".md"), document)
    draw(docs / "figures", scores, test.good, test.domain == "chat", document)
    (docs / "results").mkdir(parents=True, exist_ok=True)
    (docs / "results" / "judge_training.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({k: v for k, v in document.items() if k != "curve"}))


def check_choice(option: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        raise UserError(f"{option}: {value!r} is not one of {[c for c in choices if c]}")


if __name__ == "__main__":
    typer.run(main)
