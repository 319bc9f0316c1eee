"""A study of labels: mined, court or both, their noise and number, and other ways to train.

The first mined file is studied. Every figure is an AUC over its mismatches (tokens that a draft
wrote and the target would not), each scored by a head that was not trained on its fact, with a 95 %
bootstrap interval over facts. The parts:

sources    a head per source, tested on every file; a head that knows only the domain; and the
           target's own likelihood of the token (no training)
variants   features, class weights, likely tokens only, even domains
mixtures   court labels added with a small weight
noise      training labels flipped with probability p
curve      fewer facts to train on
agreement  whether two mining methods give a token the same label

The report is written row by row, so that an interrupted part can continue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.errors import UserError, check_choice
from judge_decoding.files import read_object, write_whole
from judge_decoding.provenance import collect
from judge_decoding.training.judge.features import (
    LabelledTokens,
    gather,
    hidden_of_all,
    join,
    likelihood_of,
    precision_of,
)
from judge_decoding.training.judge.head import fit
from judge_decoding.training.judge.measures import auc, interval, within
from judge_decoding.training.labels import LabelRecord, file_name, labels_hash, read_labels
from judge_decoding.training.studies.agreement import agreement
from judge_decoding.training.studies.labels_study_report import draw
from judge_decoding.training.studies.recipes import (
    DOMAINS_ALONE,
    FOLDS,
    LIKELIHOOD,
    Data,
    JudgeRecipe,
    best_scores,
    domain_scores,
    folds_of,
    splits,
)

PARTS = ("sources", "variants", "mixtures", "noise", "curve", "agreement")
FLIPPED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
GROUPS = (10, 20, 40, 80, 160)
Rows = Sequence[dict[str, Any]]
STRENGTH = 1e-3  # for noise and curve; cross-validation chose it for all labels


def run_study(
    mined: Sequence[Path],
    court: Sequence[Path],
    second: Path | None,
    *,
    parts: Sequence[str],
    target: Checkpoint,
    docs: Path,
    cache: Path,
    seeds: int,
    dtype: str,
    reader: str,
    block: int,
) -> dict[str, Any]:
    """Run the parts that are asked for, write the report and the figure under DOCS, and return the
    report.

    second  the first mined file's prompts, mined by another method
    parts   some of `PARTS`; empty: all
    seeds   number of seeds for noise and curve
    UserError for files that cannot be read, or that hold no labelled mismatches.
    """
    for name in parts:
        check_choice("--part", name, PARTS)
    files = [*mined, *court]
    records = {file_name(path): read_labels([path]) for path in files}
    if len(records) < len(files):
        raise UserError("labels study: two label files have the same name")
    precision = precision_of(dtype, reader)
    hidden = hidden_of_all(records, target, cache, precision, block, reader)
    parsed = [file_name(path) for path in mined]
    studied = parsed[0]
    data = load(
        records, hidden, {studied: likelihood_of(records[studied], target, cache, precision)}
    )
    if not data.of(studied).any():
        raise UserError(f"labels study: {files[0]} holds no labelled mismatches")
    generated = [file_name(path) for path in court]
    file = one_file(data, studied)
    wanted: dict[str, Callable[[Rows], Iterator[dict[str, Any]]]] = {
        "sources": lambda done: sources(data, parsed, generated, done),
        "variants": lambda done: variants(data, studied, done),
        "mixtures": lambda done: mixtures(data, studied, generated, done),
        "noise": lambda done: noise(file, seeds),
        "curve": lambda done: curve(file, seeds),
    }
    if second is not None:
        other = read_labels([second])
        wanted["agreement"] = lambda done: iter([agreement(records[studied], other)])
    out = docs / "results" / "judge_study.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    identity = {n: labels_hash(r) for n, r in records.items()}
    document: dict[str, Any] = read_object(out, "labels study") if out.is_file() else {}
    if document.get("labels") != identity or document.get("studied") != studied:
        document = {"studied": studied, "labels": identity, "folds": FOLDS, "parts": {}}
    for name, run in wanted.items():
        if parts and name not in parts:
            continue
        before = document["parts"].get(name, {"complete": True})
        rows: list[dict[str, Any]] = []
        for row in run(() if before["complete"] else before["result"]):
            rows.append(row)
            document["parts"][name] = {"result": rows, "complete": False}
            write_whole(out, json.dumps(document, indent=1) + "\n", "labels study")
        document["parts"][name] |= {"complete": True, "provenance": collect()}
        write_whole(out, json.dumps(document, indent=1) + "\n", "labels study")
    draw(docs / "figures" / "judge_study.png", document)
    return document


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


def one_file(data: Data, name: str) -> LabelledTokens:
    return data.tokens.where(data.of(name))


def measured(
    scores: NDArray[Any], tokens: LabelledTokens, against: NDArray[Any] | None, inside: bool
) -> dict[str, Any]:
    """AUC, with `inside` also within domains, and the difference to the scores `against`, if any.
    Each is a dict of `measures.Interval`."""
    good, domain = tokens.good, tokens.domain
    measures: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
        "auc": lambda s, w: auc(s, good, w)
    }
    if inside:
        measures["within_domains"] = lambda s, w: within(s, good, domain, w)
    found = {}
    for name, measure in measures.items():
        found[name] = interval(lambda w, m=measure: m(scores, w), tokens.group)  # type: ignore
        if against is not None:
            found[f"{name}_difference"] = interval(
                lambda w, m=measure: m(scores, w) - m(against, w),  # type: ignore
                tokens.group,
            )
    return {name: value._asdict() for name, value in found.items()}


def compare(
    recipes: Sequence[JudgeRecipe], data: Data, tested: Sequence[str], done: Rows = ()
) -> Iterator[dict[str, Any]]:
    """Yields a row per recipe: measured on every file's mismatches, within domains on the first
    file's. Differences are to the first recipe. Rows in `done` are yielded as they are."""
    fold = folds_of(data.tokens.group, FOLDS, 0)
    first: NDArray[Any] | None = None
    known = {row["recipe"]: row for row in done}
    for recipe in recipes:
        if first is not None and recipe.name in known:
            yield known[recipe.name]
            continue
        scores, strength = best_scores(recipe, data, fold)
        row: dict[str, Any] = {"recipe": recipe.name, "strength": strength, "on": {}}
        for name in tested:
            at = data.of(name)
            against = None if first is None else first[at]
            row["on"][name] = measured(
                scores[at], data.tokens.where(at), against, name == tested[0]
            )
        first = scores if first is None else first
        print(f"{recipe.name}: {row['on'][tested[0]]['auc']['value']:.4f}", flush=True)
        yield row


def sources(
    data: Data, mined: Sequence[str], court: Sequence[str], done: Rows
) -> Iterator[dict[str, Any]]:
    every = [*mined, *court]
    recipes = [JudgeRecipe(f"{mined[0]} alone", {mined[0]: 1})]
    if len(mined) > 1:
        recipes += [JudgeRecipe(f"{name} alone", {name: 1}) for name in mined[1:]]
        recipes.append(JudgeRecipe("all mined", dict.fromkeys(mined, 1.0)))
    if court:
        recipes.append(JudgeRecipe("court alone", dict.fromkeys(court, 1.0)))
        recipes.append(JudgeRecipe("mined and court", dict.fromkeys(every, 1.0)))
    yield from compare(recipes, data, every, done)
    fold = folds_of(data.tokens.group, FOLDS, 0)
    untrained = {DOMAINS_ALONE: domain_scores(data, fold, mined[0]), LIKELIHOOD: data.logprob}
    for name, scores in untrained.items():
        at = data.of(mined[0])
        found = measured(scores[at], data.tokens.where(at), None, True)
        yield {"recipe": name, "strength": None, "on": {mined[0]: found}}


def variants(data: Data, studied: str, done: Rows) -> Iterator[dict[str, Any]]:
    alone = {studied: 1.0}
    recipes = [
        JudgeRecipe("before the norm", alone),
        JudgeRecipe("after the norm", alone, feature="post_norm"),
        JudgeRecipe("both features", alone, feature="both"),
        JudgeRecipe("classes as they are", alone, even="not"),
        JudgeRecipe("likely tokens only (p > exp(-4))", alone, least_logprob=-4),
        JudgeRecipe("domains evened", alone, even="domain"),
    ]
    return compare(recipes, data, [studied], done)


def mixtures(
    data: Data, studied: str, court: Sequence[str], done: Rows
) -> Iterator[dict[str, Any]]:
    recipes = [JudgeRecipe("no court", {studied: 1.0})]
    for weight in (0.02, 0.1) if court else ():
        files = {studied: 1.0, **dict.fromkeys(court, weight)}
        recipes.append(JudgeRecipe(f"court, weight {weight:g}", files))
        recipes.append(
            JudgeRecipe(f"court, weight {weight:g}, domains evened", files, even="domain")
        )
    return compare(recipes, data, [studied], done)


def noise(tokens: LabelledTokens, seeds: int) -> Iterator[dict[str, Any]]:
    """Heads trained on labels flipped with probability p, tested on the original labels."""
    for p in FLIPPED:
        found = []
        for seed in range(seeds):
            flip = np.random.default_rng(seed).random(len(tokens.good)) < p
            scores = np.zeros(len(flip))
            for train, test in splits(folds_of(tokens.group, FOLDS, seed)):
                lied = LabelledTokens(**{**vars(tokens), "good": tokens.good ^ flip}).where(train)
                scores[test] = fit(lied, STRENGTH, "balanced").score(tokens.hidden[test])
            found.append(areas(scores, tokens))
        yield {"flipped": p, **spread(found)}


def curve(tokens: LabelledTokens, seeds: int) -> Iterator[dict[str, Any]]:
    """Heads trained on growing numbers of groups of the other folds, and on all of them."""
    for most in (*GROUPS, None):
        found, labels, groups = [], [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            scores = np.zeros(len(tokens.good))
            for train, test in splits(folds_of(tokens.group, FOLDS, seed)):
                known = rng.permutation(np.unique(tokens.group[train]))[:most]
                used = train & np.isin(tokens.group, known)
                chosen = tokens.where(used)
                labels.append(int(used.sum()))
                groups.append(len(known))
                scores[test] = fit(chosen, STRENGTH, "balanced").score(tokens.hidden[test])
            found.append(areas(scores, tokens))
        if most is None or min(groups) == most:  # otherwise it is the row of all groups
            counts = {"groups": float(np.mean(groups)), "labels": float(np.mean(labels))}
            yield counts | spread(found)


def areas(scores: NDArray[Any], tokens: LabelledTokens) -> tuple[float, float]:
    return auc(scores, tokens.good), within(scores, tokens.good, tokens.domain)


def spread(found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Mean, standard deviation, minimum and maximum over seeds, of both AUCs of `areas`."""
    return {
        name: {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "low": min(values),
            "high": max(values),
        }
        for name, values in zip(("auc", "within_domains"), zip(*found, strict=True), strict=True)
    }
