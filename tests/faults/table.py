"""The table of faults, from the JSON document of the runs."""

from __future__ import annotations

from typing import Any

TITLES = {
    "processes": "Ranks, stubs, server, launcher",
    "network": "Clients and connections",
    "disk": "Disks",
    "files": "Configuration, models, judges",
}
HEAD = """# Faults

`python -m tests.faults` breaks a real server in many ways, while a client reads a stream. The
server has a draft rank and a target rank (two where a row says so) and tiny random models. Each row
shows one fault and was checked: the exit code, the process that is named, and what remains. If the
server survives a fault, it must then write the same text as before and have every slot free.

- **seconds** is the time until the client knows, or until a server that does not start has ended.
  The values are upper bounds, measured on {cpu}.
- **left** lists processes, files in /dev/shm, the run folder and the ready file after the server's
  end, or slots in use if it continues.

Only a launcher that is killed with -9 leaves anything behind: its run folder in $TMPDIR and files
in /dev/shm, which disappear with a container.

A server that stops does not restart itself; use systemd or Kubernetes ([replicas.md](replicas.md)).

This page is generated. It was written at commit {git_sha}{changes}, {date}.
"""


def markdown(document: dict[str, Any]) -> str:
    source = document["provenance"]
    changes = " with local changes" if source["git_dirty"] else ""
    parts = [HEAD.format(**source, changes=changes)]
    results = document["results"]
    number = 0
    for group, title in TITLES.items():
        rows = [r for r in results if r["group"] == group]
        if not rows:
            continue
        parts.append(
            f"\n## {title}\n\n| # | fault | the client sees | seconds | the server | left |"
        )
        parts.append("|---|---|---|---|---|---|")
        for row in rows:
            number += 1
            cells = (
                row["name"],
                row["client"],
                f"{row['seconds']:.1f}",
                row["server"],
                row["left"],
            )
            parts.append(f"| {number} | " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"
