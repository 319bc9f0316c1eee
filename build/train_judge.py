"""Train the judge: a linear head on the target's hidden states that knows a correct token.

    python build/train_judge.py --labels cache:court.jsonl --labels cache:mined-facts.jsonl \
        --labels cache:mined-chat.jsonl --target cache:smollm2-135m-instruct

StandardScaler and L2 logistic regression on features read through the target's verify pass. The
feature (before or after the final norm) and the strength are chosen by cross-validation grouped by
fact, on the tokens that matter: mismatches, since all others are accepted anyway, and of them the
mined ones where there are any, which are the draft's own. Writes the judge, its card,
docs/results/judge_training.json and docs/figures/judge_*.png.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from court import resolve
from judge_features import Tokens, gather, hidden_of, join
from judge_head import (
    cross_scores,
    cross_validate,
    fit,
    held_out_domains,
    pick_threshold,
    report_on,
    threshold_curve,
)
from judge_report import draw, write_card

from judge_decoding.engine.weights import fingerprint, tokenizer_hash
from judge_decoding.errors import UserError
from judge_decoding.judge import Judge, JudgeMetadata
from judge_decoding.labels import labels_hash, read_labels
from judge_decoding.provenance import collect

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TIE = 0.002  # of AUC: less than folds differ by
FEATURES = ("pre_norm", "post_norm")


def main(
    labels: Annotated[list[str] | None, typer.Option(help="JSONL files")] = None,
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
    bad_rejected: Annotated[float, typer.Option(help="sets the threshold until the gate")] = 0.95,
    dtype: str = "bfloat16",
    block: Annotated[int, typer.Option(help="tokens a verify pass reads")] = 9,
) -> None:
    try:
        check_choice("--feature", feature, (*FEATURES, "best"))
        check_choice("--after-error", after_error, (None, "negative", "ignore", "error_only"))
        check_choice("--train-on", train_on, ("all", "mismatch"))
        check_choice("--class-weight", class_weight, ("balanced", "none"))
        folder = resolve(target)
        paths = [resolve(p) for p in labels or ["cache:court.jsonl"]]
        reported = [resolve(p) for p in held_out_labels or []]
        read_labels(paths + reported)  # all together: no id twice, no fact in both splits
        parts = {
            path: (r := read_labels([path]), hidden_of(r, folder, resolve(cache), dtype, block))
            for path in paths + reported
        }
    except UserError as error:
        raise SystemExit(f"train_judge: {error}") from None
    records = [record for path in paths for record in parts[path][0]]

    def tokens_of(name: str, wanted: Sequence[Path]) -> Tokens:
        every = [gather(*parts[path], name, after_error) for path in wanted]  # type: ignore[arg-type]
        return join(every)

    names = FEATURES if feature == "best" else (feature,)
    sets = {name: tokens_of(name, paths) for name in names}
    weight = None if class_weight == "none" else class_weight
    # 1. The feature and the strength, by grouped cross-validation.
    validation = {}
    for name, tokens in sets.items():
        keep = ~tokens.heldout & (tokens.mismatch | (train_on == "all"))
        for strength in STRENGTHS:
            found = cross_validate(tokens.where(keep), strength, weight)
            validation[f"{name} {strength:g}"] = found
            print(f"{name}, C = {strength:g}: AUC {found:.4f}", flush=True)
    # The first of those that are as good: before the norm, as in the paper, and the stronger L2.
    best = next(c for c, found in validation.items() if found >= max(validation.values()) - TIE)
    feature, strength = best.split()[0], float(best.split()[1])
    tokens = sets[feature]
    train, heldout = tokens.where(~tokens.heldout), tokens.where(tokens.heldout)
    if train_on == "mismatch":
        train = train.where(train.mismatch)
    # 2. The head, on all training tokens; its curve on held-out facts.
    head = fit(train, strength, weight)
    validated = report_on(cross_scores(train, strength, weight), train)
    if reported:
        extra = tokens_of(feature, reported)
        heldout = join([heldout, extra.where(extra.heldout)])
    report = report_on(head.score(heldout.hidden), heldout)
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
        "strength": strength,
        "cross_validation": validation,
        "training_tokens": {"good": int(train.good.sum()), "bad": int((~train.good).sum())},
        "training_origins": dict(
            sorted(
                Counter(
                    f"{o} {'good' if g else 'bad'}"
                    for o, g in zip(train.origin.tolist(), train.good.tolist(), strict=True)
                ).items()
            )
        ),
        "validated": validated,
        "heldout": report,
        "curve": curve,
        "threshold": threshold,
        "auc_on_unseen_domain": held_out_domains(train, heldout, strength, weight),
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
