"""python -m clients.load.perf.recipes.prepare FOLDER: the chat prompts as both tools read them.

Writes FOLDER/prompts.jsonl, lines of {"text": prompt}, puts links to perf_analyzer's libraries into
FOLDER, and prints the LD_LIBRARY_PATH that finds them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clients.load.perf.analyzer import library_path
from judge_decoding.evaluation.prompts import read_prompts


def main(folder: Path) -> None:
    lines = "".join(f"{json.dumps({'text': prompt})}\n" for prompt in read_prompts(None))
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    print(library_path(folder).get("LD_LIBRARY_PATH", ""))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
