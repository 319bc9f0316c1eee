"""The table of faults, from the JSON document of the runs."""

from __future__ import annotations

import re
from typing import Any

SECTIONS = {
    "Ranks, stubs, server, launcher": ("processes", ""),
    "Clients and connections": ("network", ""),
    "Disks": ("disk", ""),
    "Configuration": ("files", "config: "),
    "Models and judges": ("files", "(?!config: )"),
}
"""Title -> the group of its faults, and a pattern that their names begin with."""
COLUMNS = {
    "name": "fault",
    "client": "the client sees",
    "seconds": "seconds",
    "server": "the server",
    "message": "its message",
}
EXIT = re.compile(r"(exit \d+): ")
LOST = "UNAVAILABLE: no server answers there (Stream removed (Socket closed))"
ALWAYS = "; everything is stopped"
HEAD = f"""# Faults

`python -m tests.faults` breaks a real server while a client reads a stream. The server has a draft
rank and a target rank (two where a row says so) and tiny random models. A server that survives must
then write the same text as before and have every slot free.

- **seconds** is the time until the client knows, or until a server that does not start has ended
  (upper bounds, measured on {{cpu}}).
- **exit** is the launcher's exit code when the server stops or does not start, with its message.
  What many messages share is left out: process numbers, the deployment's path, the prefix of the
  safetensors reader, and `{ALWAYS}`.
- `UNAVAILABLE` is short for `{LOST}`.
- After the server's end, no process, run folder, ready file or file in /dev/shm is left, unless the
  row says so.

A server that stops does not restart itself ([replicas.md](replicas.md)). This page is generated, at
commit {{commit}}{{changes}}, {{day}}.
"""


def markdown(document: dict[str, Any]) -> str:
    """The page. A column whose cells say much the same becomes a sentence above its table."""
    source = document["provenance"]
    changes = " with local changes" if source["git_dirty"] else ""
    page = HEAD.format(
        cpu=source["cpu"], commit=source["git_sha"][:12], changes=changes, day=source["date"][:10]
    )
    return page + "".join(
        section(title, rows)
        for title, (group, name) in SECTIONS.items()
        if (
            rows := [
                r for r in document["results"] if r["group"] == group and re.match(name, r["name"])
            ]
        )
    )


def section(title: str, results: list[dict[str, Any]]) -> str:
    rows = [cells(result) for result in results]
    said = {
        column: rows[0][column]
        for column in rows[0]
        if len(rows) > 1 and len({row[column] for row in rows}) == 1
    }
    seconds = [result["seconds"] for result in results]
    if len(rows) > 1 and max(seconds) < 5:
        bounds = dict.fromkeys(f"{bound:.1f}" for bound in (min(seconds), max(seconds)))
        said["seconds"] = " to ".join(bounds)
    exits = {match[1] if (match := EXIT.match(row["server"])) else "" for row in rows}
    if len(rows) > 1 and len(exits) == 1 and "" not in exits:
        said["server"] = exits.pop()
        rows = [row | {"message": EXIT.sub("", row["server"])} for row in rows]
    shown = [column for column in COLUMNS if column not in said and column in rows[0]]
    lines = [f"\n## {title}\n"]
    if said:
        told = "; ".join(f'{COLUMNS[column]} "{text}"' for column, text in said.items())
        lines.append(f"The same in all rows: {told}.\n")
    lines.append("| " + " | ".join(COLUMNS[column] for column in shown) + " |")
    lines.append("|---" * len(shown) + "|")
    lines += ["| " + " | ".join(row[column] for column in shown) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(result: dict[str, Any]) -> dict[str, str]:
    """One row's text by column, without what the page's head says of all rows."""
    server = re.sub(r" \(pid \d+\)", "", result["server"].replace(ALWAYS, ""))
    server = re.sub(r"^(stops|does not start), exit", "exit", server)
    # The runs cut long messages off: within their common end, or within a reason in brackets.
    server = re.sub(r"; e[a-z ]*\.\.\.`$", "`", server)
    server = re.sub(r"Error while deserializing header: |\.\.\./deployment\.yaml: ", "", server)
    server = re.sub(r";?\.\.\.`$|( \([^()]*)\.\.\.`$", "...`", server)
    left = "" if result["left"] == "nothing" else f"; leaves {result['left']}"
    client = result["client"].replace(LOST, "UNAVAILABLE")
    return {
        "name": result["name"],
        "client": client.replace(" (`length`)", ""),
        "seconds": f"{result['seconds']:.1f}",
        "server": server + left,
    }
