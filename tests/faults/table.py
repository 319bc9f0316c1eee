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

What happens when something breaks, as it happened in runs of `python -m tests.faults` (the
commands are in `tests/faults/__init__.py`): a real server with a draft rank and a target rank (two
where it says so) on tiny random models, and a client in the middle of a stream. Each row was
checked: the exit code, who is named, that what should be left is left, and for faults that the
server survives that it then writes the same text as before and every slot is free.

- **seconds**: from the fault to the client's knowing, or for what does not start to its end; on
  {cpu}; upper bounds, since a test looks now and then.
- **left**: processes, files in /dev/shm, run folder and ready file after a server's end; slots in
  use where it goes on.

Only where the launcher itself is killed -9 does anything stay: its run folder in $TMPDIR and the
files of its processes in /dev/shm, which a container takes along.

A server that stops is started again by whoever runs it (systemd, Kubernetes: `replicas.md`).
Written at commit {git_sha}{changes}, {date}.
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
