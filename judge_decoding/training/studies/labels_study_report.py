"""The results of the study of labels: one figure and Markdown tables, from its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from judge_decoding.training.judge.report import save


def draw(path: Path, document: dict[str, Any]) -> None:
    """Draw the parts that were run: sources and variants, noise, the learning curve."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    studied = document["studied"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.4), sharex=False)
    rows = [r for name in ("sources", "variants", "mixtures") for r in result(document, name) or []]
    rows = [row for row in rows if studied in row["on"]]
    places = np.arange(len(rows))[::-1]
    for offset, (key, label) in zip(
        (0.12, -0.12), (("auc", "all pairs"), ("within_domains", "within domains")), strict=True
    ):
        value = np.array([row["on"][studied][key]["value"] for row in rows])
        low = np.array([row["on"][studied][key]["low"] for row in rows])
        high = np.array([row["on"][studied][key]["high"] for row in rows])
        left.errorbar(
            value,
            places + offset,
            xerr=[value - low, high - value],
            fmt="o",
            markersize=4,
            label=label,
        )
    left.axvline(0.5, color="0.7", linewidth=0.8)
    left.set_yticks(places, [row["recipe"] for row in rows], fontsize=8)
    left.set(xlabel=f"AUC on {studied} (95 %)")
    left.legend(fontsize=8)
    for axes, name, x, label in (
        (middle, "noise", "flipped", "share of training labels flipped"),
        (right, "curve", "labels", "labels to train on"),
    ):
        found = result(document, name) or []
        for key, shown in (("auc", "all pairs"), ("within_domains", "within domains")):
            axes.errorbar(
                [row[x] for row in found],
                [row[key]["mean"] for row in found],
                yerr=[row[key]["sd"] for row in found],
                marker="o",
                markersize=4,
                label=shown,
            )
        axes.axhline(0.5, color="0.7", linewidth=0.8)
        axes.set(xlabel=label, ylabel=f"AUC on {studied} (bars: sd over seeds)")
        axes.legend(fontsize=8)
    if curve := result(document, "curve"):
        right.set_xscale("log")
        right.minorticks_off()
        ticks = [row["labels"] for row in curve]
        right.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks], fontsize=7)
    figure.tight_layout()
    save(figure, path)


def result(document: dict[str, Any], part: str) -> Any:
    """The result of a part; None if it was not run."""
    return document["parts"].get(part, {}).get("result")


def tables(document: dict[str, Any]) -> str:
    """Markdown tables of the parts that were run."""
    made = []
    studied = document["studied"]
    if rows := result(document, "sources"):
        made.append(sources_table(rows))
    for name in ("variants", "mixtures"):
        if rows := result(document, name):
            made.append(variants_table(rows, studied))
    if rows := result(document, "noise"):
        head = "| labels flipped | AUC | within domains |"
        made.append(spread_table(head, [f"{100 * row['flipped']:g} %" for row in rows], rows))
    if rows := result(document, "curve"):
        head = "| facts | labels | AUC | within domains |"
        names = [f"{row['groups']:.0f} | {row['labels']:.0f}" for row in rows]
        made.append(spread_table(head, names, rows))
    if found := result(document, "agreement"):
        made.append(agreement_table(found[0]))
    return "\n\n".join(made)


def span(part: dict[str, float], signed: bool = False) -> str:
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(part["value"], part["low"], part["high"])


def sources_table(rows: list[dict[str, Any]]) -> str:
    """One row per source: AUC on each file, and last the AUC within domains on the first file."""
    files = list(rows[0]["on"])
    lines = ["| trained on | C | " + " | ".join(f"AUC on {name}" for name in files) + " |"]
    lines[0] += f" {files[0]}, within domains |"
    lines.append("|" + "---|" * (len(files) + 3))
    for row in rows:
        strength = "-" if row["strength"] is None else f"{row['strength']:g}"
        cells = [span(row["on"][f]["auc"]) if f in row["on"] else "-" for f in files]
        inside = span(row["on"][files[0]]["within_domains"]) if files[0] in row["on"] else "-"
        lines.append("| " + " | ".join([row["recipe"], strength, *cells, inside]) + " |")
    return "\n".join(lines)


def variants_table(rows: list[dict[str, Any]], studied: str) -> str:
    lines = ["| variant | C | AUC | difference | within domains | difference |", "|" + "---|" * 6]
    for row in rows:
        on = row["on"][studied]
        signed = [
            span(on[key], signed=True) if key in on else "-"
            for key in ("auc_difference", "within_domains_difference")
        ]
        cells = [span(on["auc"]), signed[0], span(on["within_domains"]), signed[1]]
        lines.append(f"| {row['recipe']} | {row['strength']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread_table(head: str, names: list[str], rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds."""
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for name, row in zip(names, rows, strict=True):
        cells = [f"{row[k]['mean']:.3f} ± {row[k]['sd']:.3f}" for k in ("auc", "within_domains")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement_table(found: dict[str, Any]) -> str:
    counts = found["counts"]
    lines = ["| first method | second: good | second: bad |", "|---|---|---|"]
    for label in ("good", "bad"):
        lines.append(
            f"| {label} | {counts.get(f'{label} good', 0)} | {counts.get(f'{label} bad', 0)} |"
        )
    same, kappa = span(found["same"]), span(found["kappa"], signed=True)
    lines += ["", f"{found['tokens']} tokens of {found['groups']} facts: the same label for {same}"]
    lines[-1] += f" of them, Cohen's kappa {kappa}."
    return "\n".join(lines)
