"""Makes the table of faults from the JSON document of the runs."""

from __future__ import annotations

import re
from typing import Any

SECTIONS = {
    "Ranks, stubs, server, launcher": ("processes", ""),
    "Clients and connections": ("network", ""),
    "Requests": ("requests", ""),
    "Many requests, ids, gRPC": ("crowds", ""),
    "HTTP": ("http", ""),
    "HTTP/2 by hand": ("http2", ""),
    "Disks": ("disk", ""),
    "Configuration": ("files", "config: "),
    "Models and judges": ("files", "(?!config: )"),
}
"""Title -> the group of its faults, and a pattern for the start of their names."""
COLUMNS = {"name": "fault", "client": "the client sees", "server": "the server"}
SOON = 5.0
LONG_GAP = 0.5
"""Seconds without text in another client's stream that the table mentions."""
LOST = "UNAVAILABLE: no server answers there (Stream removed (Socket closed))"
ALWAYS = "; everything is stopped"
HEAD = f"""# Faults

`python -m tests.faults` breaks a real server while a client reads a stream. The server has a draft
rank and a target rank (two where a row says so, none where only the launcher matters) and tiny
random models. A server that survives must then write the same text as before and have every slot
free.

- The client knows, or a server that does not start has ended, within {SOON:.0f} seconds unless the
  row gives the time (measured on {{cpu}}).
- A message in the last column is the launcher's: the server stops or does not start, with exit code
  1 unless the row gives another. Process numbers, some paths and `{ALWAYS}` are
  left out.
- Requests and connections are tried beside another client's stream, whose text must not change. Its
  longest wait between two chunks is in the row where it is over {LONG_GAP:g} s.
- `UNAVAILABLE` is short for `{LOST}`.
- After the server's end, no process, run folder, ready file or file in /dev/shm is left, unless the
  row says so.

A server that stops does not restart itself ([replicas.md](replicas.md)). This page is generated, at
commit {{commit}}{{changes}}, {{day}}.
"""


def markdown(document: dict[str, Any]) -> str:
    """The page. A column whose cells are all equal becomes a sentence above its table."""
    source = document["provenance"]
    changes = " with local changes" if source["git_dirty"] else ""
    page = HEAD.format(
        cpu=source["cpu"], commit=source["git_sha"][:12], changes=changes, day=source["date"][:10]
    )
    for title, (group, name) in SECTIONS.items():
        results = [r for r in document["results"] if r["group"] == group]
        rows = [cells(r) for r in results if re.match(name, r["name"])]
        page += section(title, rows) if rows else ""
    return page


def section(title: str, rows: list[dict[str, str]]) -> str:
    same = [c for c in COLUMNS if len(rows) > 1 and len({row[c] for row in rows}) == 1]
    shown = [column for column in COLUMNS if column not in same]
    lines = [f"\n## {title}\n"]
    lines += [f'In all rows, {COLUMNS[column]} "{rows[0][column]}".\n' for column in same]
    lines.append("| " + " | ".join(COLUMNS[column] for column in shown) + " |")
    lines.append("|---" * len(shown) + "|")
    lines += ["| " + " | ".join(row[column] for column in shown) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(result: dict[str, Any]) -> dict[str, str]:
    """One row's text by column, without what the head of the page says for all rows."""
    server = re.sub(r" \(pid \d+\)", "", result["server"].replace(ALWAYS, ""))
    server = re.sub(r"^(stops|does not start), (exit 1: )?", "", server)
    # The runs truncate long messages: within their common end, or within a reason in brackets.
    server = re.sub(r"; e[a-z ]*\.\.\.`$", "`", server)
    server = re.sub(r"Error while deserializing header: |\.\.\./deployment\.yaml: ", "", server)
    server = re.sub(r";?\.\.\.`$|( \([^()]*)\.\.\.`$", "...`", server)
    left = "" if result["left"] == "nothing" else f"; leaves {result['left']}"
    client = result["client"].replace(LOST, "UNAVAILABLE").replace(" (`length`)", "")
    late = "" if result["seconds"] < SOON else f", {result['seconds']:.0f} s"
    gap = result.get("gap_s") or 0.0
    late += f"; another stream waits {gap:.1f} s" if gap > LONG_GAP else ""
    return {"name": result["name"], "client": client + late, "server": server + left}
