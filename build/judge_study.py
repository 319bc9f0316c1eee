"""What labels are worth: mined against court against both, noise, how many, and how else to train.

    python build/judge_study.py --mined cache:mined-facts.jsonl --mined cache:mined-chat.jsonl \
        --court cache:court.jsonl --second cache:mined-facts-likelihood.jsonl

The first --mined file is what is studied: every figure is an AUC over its mismatches (tokens that a
draft really wrote and the target would not), each scored by a head that saw nothing of its fact,
with a 95 % bootstrap interval over facts. Parts, one or more (--part), all by default:

sources    a head a source, tested on every file; what a head is worth that knows the domain alone,
           and the target's own likelihood of the token (no training)
variants   features, class weights, likely tokens only, court as a light addition, even domains
noise      training labels flipped with probability p
curve      fewer facts to train on
agreement  do two mining methods label the same token alike (--second)

Needs the hidden states that train_judge.py keeps in the cache, or the target to read them. Writes
DOCS/results/judge_study.json, part by part, and DOCS/figures/judge_study.png; prints the tables of
docs/training.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from court import resolve
from judge_agreement import agreement
from judge_features import Tokens, gather, hidden_of, join, likelihood_of
from judge_head import fit
from judge_measures import auc, interval, within
from judge_recipes import (
    DOMAINS_ALONE,
    FOLDS,
    LIKELIHOOD,
    Data,
    Recipe,
    best_scores,
    domain_scores,
    folds_of,
    splits,
)
from judge_study_report import draw, tables
from numpy.typing import NDArray

from judge_decoding.errors import UserError
from judge_decoding.labels import LabelRecord, labels_hash, read_labels
from judge_decoding.provenance import collect

PARTS = ("sources", "variants", "noise", "curve", "agreement")
FLIPPED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
GROUPS = (10, 20, 40, 80, 160)
STRENGTH = 1e-3  # of noise and curve: what cross-validation chose for all labels


def main(
    mined: Annotated[list[str], typer.Option(help="JSONL files; the first is studied")],
    court: Annotated[list[str] | None, typer.Option(help="JSONL files")] = None,
    second: Annotated[
        str | None, typer.Option(help="the first file's prompts, mined by another method")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help=", ".join(PARTS))] = None,
    target: str = "cache:smollm2-135m-instruct",
    docs: Annotated[Path, typer.Option(help="folder of results/ and figures/")] = Path("docs"),
    cache: Annotated[str, typer.Option(help="folder for hidden states")] = "cache:",
    seeds: Annotated[int, typer.Option(min=2, help="of noise and curve")] = 5,
    dtype: str = "bfloat16",
    block: Annotated[int, typer.Option(min=1, help="tokens a verify pass reads")] = 9,
) -> None:
    try:
        for name in part or ():
            if name not in PARTS:
                raise UserError(f"--part: {name!r} is not one of {', '.join(PARTS)}")
        files = [resolve(path) for path in [*mined, *(court or [])]]
        records = {path.stem: read_labels([path]) for path in files}
        if len(records) < len(files):
            raise UserError("judge_study: two label files have the same name")
        folder, kept = resolve(target), resolve(cache)
        hidden = {n: hidden_of(r, folder, kept, dtype, block) for n, r in records.items()}
        parsed = [path.stem for path in files[: len(mined)]]
        likely = {n: likelihood_of(records[n], folder, kept, dtype) for n in parsed}
        data = load(records, hidden, likely)
        studied = parsed[0]
        if not data.of(studied).any():
            raise UserError(f"judge_study: {files[0]} holds no labelled mismatches")
        other = read_labels([resolve(second)]) if second else None
    except UserError as error:
        raise SystemExit(f"judge_study: {error}") from None
    generated = [path.stem for path in files[len(mined) :]]
    wanted: dict[str, Callable[[], Any]] = {
        "sources": lambda: sources(data, parsed, generated),
        "variants": lambda: variants(data, studied, generated),
        "noise": lambda: noise(one_file(data, studied), seeds),
        "curve": lambda: curve(one_file(data, studied), seeds),
    }
    if other is not None:
        wanted["agreement"] = lambda: agreement(records[studied], other)
    out = docs / "results" / "judge_study.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    identity = {n: labels_hash(r) for n, r in records.items()}
    document: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    if document.get("labels") != identity or document.get("studied") != studied:
        document = {"studied": studied, "labels": identity, "folds": FOLDS, "parts": {}}
    for name, run in wanted.items():
        if part is None or name in part:
            document["parts"][name] = {"result": run(), "provenance": collect()}
            out.write_text(json.dumps(document, indent=1) + "\n")
    draw(docs / "figures" / "judge_study.png", document)
    print(tables(document))
    print(json.dumps(document))


def load(
    records: dict[str, list[LabelRecord]], hidden: dict[str, Any], likely: dict[str, Any]
) -> Data:
    """The mismatches of all files."""
    before, after, logprob = [], [], []
    for name, rows in records.items():
        every = gather(rows, hidden[name], "pre_norm", None, name)
        before.append(every.where(every.mismatch))
        post = gather(rows, hidden[name], "post_norm", None, name)
        after.append(post.hidden[post.mismatch])
        read = np.full(len(every.good), np.nan)
        if name in likely:
            kept = [label != "ignore" for r in rows for label, _ in spanned(r)]
            read = likely[name].numpy().astype(float)[np.array(kept)]
        logprob.append(read[every.mismatch])
    return Data(join(before), np.concatenate(after), np.concatenate(logprob))


def spanned(record: LabelRecord) -> list[tuple[str, str]]:
    labels = record.token_labels()
    return [labels[at] for span in record.spans for at in range(span.start, span.end)]


def one_file(data: Data, name: str) -> Tokens:
    return data.tokens.where(data.of(name))


def measured(scores: NDArray[Any], tokens: Tokens, against: NDArray[Any] | None) -> dict[str, Any]:
    """AUC, AUC within domains, and the difference of the first to other scores of the same rows."""
    good, domain = tokens.good, tokens.domain
    found = {
        "auc": interval(lambda w: auc(scores, good, w), tokens.group),
        "within_domains": interval(lambda w: within(scores, good, domain, w), tokens.group),
    }
    if against is not None:
        found["difference"] = interval(
            lambda w: auc(scores, good, w) - auc(against, good, w), tokens.group
        )
        found["difference_within"] = interval(
            lambda w: within(scores, good, domain, w) - within(against, good, domain, w),
            tokens.group,
        )
    return {name: value._asdict() for name, value in found.items()}


def compare(recipes: Sequence[Recipe], data: Data, tested: Sequence[str]) -> list[dict[str, Any]]:
    """Every recipe on every file's mismatches; differences are to the first recipe."""
    fold = folds_of(data.tokens.group, FOLDS, 0)
    rows: list[dict[str, Any]] = []
    first: NDArray[Any] | None = None
    for recipe in recipes:
        scores, strength = best_scores(recipe, data, fold)
        row: dict[str, Any] = {"recipe": recipe.name, "strength": strength, "on": {}}
        for name in tested:
            at = data.of(name)
            against = None if first is None else first[at]
            row["on"][name] = measured(scores[at], data.tokens.where(at), against)
        first = scores if first is None else first
        rows.append(row)
        print(f"{recipe.name}: {row['on'][tested[0]]['auc']['value']:.4f}", flush=True)
    return rows


def sources(data: Data, mined: Sequence[str], court: Sequence[str]) -> list[dict[str, Any]]:
    every = [*mined, *court]
    recipes = [Recipe(f"{mined[0]} alone", {mined[0]: 1})]
    if len(mined) > 1:
        recipes += [Recipe(f"{name} alone", {name: 1}) for name in mined[1:]]
        recipes.append(Recipe("all mined", dict.fromkeys(mined, 1.0)))
    if court:
        recipes.append(Recipe("court alone", dict.fromkeys(court, 1.0)))
        recipes.append(Recipe("mined and court", dict.fromkeys(every, 1.0)))
    rows = compare(recipes, data, every)
    fold = folds_of(data.tokens.group, FOLDS, 0)
    untrained = {DOMAINS_ALONE: domain_scores(data, fold, mined[0]), LIKELIHOOD: data.logprob}
    for name, scores in untrained.items():
        row: dict[str, Any] = {"recipe": name, "strength": None, "on": {}}
        for file in every:
            at = data.of(file)
            if not np.isnan(scores[at]).any():
                row["on"][file] = measured(scores[at], data.tokens.where(at), None)
        rows.append(row)
    return rows


def variants(data: Data, studied: str, court: Sequence[str]) -> list[dict[str, Any]]:
    alone = {studied: 1.0}
    recipes = [
        Recipe("as shipped", alone),
        Recipe("after the norm", alone, feature="post_norm"),
        Recipe("both features", alone, feature="both"),
        Recipe("classes as they are", alone, even="not"),
        Recipe("likely tokens only (p > exp(-4))", alone, least_logprob=-4),
        Recipe("domains evened", alone, even="domain"),
    ]
    for weight in (0.01, 0.03, 0.1, 0.3) if court else ():
        files = alone | dict.fromkeys(court, weight)
        recipes.append(Recipe(f"and court, weight {weight:g}", files))
        if weight == 0.1:
            recipes.append(Recipe("the same, domains evened", files, even="domain"))
    return compare(recipes, data, [studied])


def noise(tokens: Tokens, seeds: int) -> list[dict[str, Any]]:
    """Training labels flipped with probability p; tested on labels as they are."""
    rows = []
    for p in FLIPPED:
        found = []
        for seed in range(seeds):
            flip = np.random.default_rng(seed).random(len(tokens.good)) < p
            scores = np.zeros(len(flip))
            for train, test in splits(folds_of(tokens.group, FOLDS, seed)):
                lied = Tokens(**{**vars(tokens), "good": tokens.good ^ flip}).where(train)
                scores[test] = fit(lied, STRENGTH, "balanced").score(tokens.hidden[test])
            found.append(areas(scores, tokens))
        rows.append({"flipped": p, **spread(found)})
    return rows


def curve(tokens: Tokens, seeds: int) -> list[dict[str, Any]]:
    """Trained on so many groups of the folds that are not tested on, or on all of them."""
    rows = []
    for most in (*GROUPS, None):
        found, labels, groups = [], [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            scores = np.zeros(len(tokens.good))
            for train, test in splits(folds_of(tokens.group, FOLDS, seed)):
                known = rng.permutation(np.unique(tokens.group[train]))[:most]
                rows_ = train & np.isin(tokens.group, known)
                chosen = tokens.where(rows_)
                labels.append(int(rows_.sum()))
                groups.append(len(known))
                scores[test] = fit(chosen, STRENGTH, "balanced").score(tokens.hidden[test])
            found.append(areas(scores, tokens))
        if most is None or min(groups) == most:  # else there are no more, and "all" says it
            rows.append(
                {
                    "groups": float(np.mean(groups)),
                    "labels": float(np.mean(labels)),
                    **spread(found),
                }
            )
    return rows


def areas(scores: NDArray[Any], tokens: Tokens) -> tuple[float, float]:
    return auc(scores, tokens.good), within(scores, tokens.good, tokens.domain)


def spread(found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Mean, standard deviation over seeds, smallest and largest, of both areas."""
    return {
        name: {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "low": min(values),
            "high": max(values),
        }
        for name, values in zip(("auc", "within_domains"), zip(*found, strict=True), strict=True)
    }


if __name__ == "__main__":
    typer.run(main)
