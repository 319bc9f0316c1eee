"""Quality against speed: the judge's thresholds as a line, other rules as points, the Pareto front.

The front holds the systems that no other one beats in both. Open tasks have no accuracy, so the
target's log-likelihood of the text takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judge_decoding.errors import UserError
from judge_decoding.evaluation.systems import DRAFT

KINDS = (".png", ".svg", ".pdf")
_SPEEDS = (
    ("mean_acceptance_length", "mean acceptance length (bonus token included)"),
    ("tokens_per_s", "tokens/s, prefill included"),
)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one equals or beats in both values.

    They are in ascending order of the first value. Of equal points the first counts.
    """
    best: list[int] = []
    order = sorted(range(len(points)), key=lambda n: (-points[n][0], -points[n][1], n))
    for n in order:
        if not best or points[n][1] > points[best[-1]][1]:
            best.append(n)
    return best[::-1]


def check(path: Path) -> None:
    """UserError if `plot` would fail; to be called before a long run."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("plot: it needs matplotlib; pip install -e '.[build]'") from None
    if path.suffix not in KINDS:
        raise UserError(f"plot: {path} must end in {', '.join(KINDS)}")


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw a report of `evaluate.report` into a file; its suffix sets the format."""
    from matplotlib.figure import Figure

    quality, scale = "accuracy", 100.0
    if report["results"][0][quality] is None:
        quality, scale = "loglikelihood", 1.0
    # The draft alone is far off in both directions: its point would flatten all others.
    rows = [row for row in report["results"] if row[quality] is not None and row["rule"] != DRAFT]
    if not rows:
        raise UserError("plot: neither accuracy nor log-likelihood is known here")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    source = report["provenance"]
    figure.suptitle(
        f"{source['deployment']}, task {source['task']}: {source['items']} items, "
        f"{source['max_draft_len']} drafted, batch {source['batch']}",
        fontsize=10,
    )
    for axes, (speed, label) in zip(figure.subplots(1, 2, sharey=True), _SPEEDS, strict=True):
        _panel(axes, [row for row in rows if row[speed] is not None], speed, quality, scale)
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel(
        "right answers, %\nbars: 95 % of the difference to the target"
        if quality == "accuracy"
        else "target's log-likelihood a token, nats"
    )
    figure.savefig(path, dpi=150)


def _panel(
    axes: Any, rows: Sequence[dict[str, Any]], speed: str, quality: str, scale: float
) -> None:
    points = [(row[speed], scale * row[quality]) for row in rows]
    judged = sorted(n for n, row in enumerate(rows) if row["rule"] == "judge")
    judged.sort(key=lambda n: rows[n]["threshold"])
    axes.plot(*_columns(points, judged), color="C1", linewidth=1, zorder=1)
    front = pareto_front(points)
    axes.plot(*_columns(points, front), color="0.7", linestyle="--", zorder=0, label="Pareto front")
    others = (f"C{n}" for n in (0, 2, 3, 4, 5, 6, 7, 8, 9) * len(rows))
    for n, row in enumerate(rows):
        judge = row["rule"] == "judge"
        colour = "C1" if judge else next(others)
        bars = None
        if row["delta_ci"] is not None and quality == "accuracy":
            # Bars of the paired difference to the target: they leave out what both share.
            bars = [[abs(end - row["delta_vs_target"]) * scale] for end in row["delta_ci"]]
        style = {"fmt": "o", "color": colour, "capsize": 2, "elinewidth": 0.7}
        axes.errorbar(*points[n], yerr=bars, label=None if judge else row["name"], **style)
        if judge:
            name = f"{row['threshold']:g}"
            axes.annotate(name, points[n], xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.plot([], [], "o-", color="C1", label="judge, by threshold")
    axes.legend(fontsize=8)
    axes.margins(x=0.2)  # room for the names
    axes.grid(alpha=0.25)


def _columns(points: Sequence[tuple[float, float]], at: Sequence[int]) -> tuple[list[float], ...]:
    return [points[n][0] for n in at], [points[n][1] for n in at]
