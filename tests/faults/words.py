"""Messages as the table shows them."""

from __future__ import annotations

from pathlib import Path


def shorten(text: str, width: int = 110) -> str:
    """One line, without what differs between runs."""
    text = " ".join(text.split()).replace("|", "/").replace("`", "'")
    for prefix in ("/tmp/", str(Path.home())):
        while (at := text.find(prefix)) >= 0:
            end = at
            while end < len(text) and text[end] not in " ,;:)'\"":
                end += 1
            text = text[:at] + ".../" + text[at:end].rpartition("/")[2] + text[end:]
    return text if len(text) <= width else text[: width - 3] + "..."
