"""python -m clients.load.perf.recipes.prepare FOLDER: the chat prompts as both tools read them.

Writes FOLDER/prompts.jsonl, lines of {"text": prompt}, and the demo target's tokenizer, puts links
to perf_analyzer's libraries into FOLDER, and prints the LD_LIBRARY_PATH that finds them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clients.load.perf.analyzer import library_path
from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.evaluation.prompts import read_prompts


def main(folder: Path) -> None:
    lines = "".join(f"{json.dumps({'text': prompt})}\n" for prompt in read_prompts(None))
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    demo = Checkpoint(resolve(DEMO_TARGET))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer.json").write_text(json.dumps(demo.tokenizer_json), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    print(library_path(folder).get("LD_LIBRARY_PATH", ""))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
