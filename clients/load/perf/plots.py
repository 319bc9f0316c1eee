"""The report's figure: throughput and latencies against the load, one line per rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from judge_client.errors import JudgeClientError

AXES = {"concurrency": "streams", "request_rate": "requests a second (Poisson)"}


def draw(document: dict[str, Any], path: Path) -> None:
    """A row of panels for each kind of load."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise JudgeClientError("out: its figure needs matplotlib; pip install matplotlib") from None
    good = [row for row in document["results"] if "error" not in row]
    modes = [mode for mode in AXES if any(row["mode"] == mode for row in good)]
    figure = Figure(figsize=(13, 3.6 * len(modes)), layout="constrained")
    grid = figure.subplots(len(modes), 3, squeeze=False)
    for mode, panels in zip(modes, grid, strict=True):
        speed, first, pace = panels
        for rule in dict.fromkeys(row["rule"] for row in good):
            rows = [row for row in good if row["rule"] == rule and row["mode"] == mode]
            at = [row["value"] for row in rows]
            speed.plot(at, [row["tokens_per_s"] for row in rows], marker="o", label=rule)
            for panel, key in ((first, "ttft_ms"), (pace, "tpot_ms")):
                known = [(row["value"], row[key]) for row in rows if row[key]]
                where = [value for value, _ in known]
                (line,) = panel.plot(where, [s["p50"] for _, s in known], marker="o", label=rule)
                tail = [s["p99"] for _, s in known]
                panel.plot(where, tail, linestyle=":", color=line.get_color())
        titles = ("tokens a second", "TTFT, ms: p50, dotted p99", "TPOT, ms: p50, dotted p99")
        for panel, heading in zip(panels, titles, strict=True):
            panel.set(title=heading, xlabel=AXES[mode], ylim=(0, None))
            panel.grid(alpha=0.3)
        if mode == "concurrency":
            for panel in panels:
                panel.set_xscale("log", base=2)
                ticks = sorted({row["value"] for row in good if row["mode"] == mode})
                panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        speed.legend()
    figure.savefig(path, dpi=110)
