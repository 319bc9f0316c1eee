"""How well drafts foresee the target: agreement and the acceptance length of `strict`.

    python build/distil_eval.py models/smollm2-135m-draft other/ --text text.jsonl.gz

On what the text holds out (build/distil_text.py) and on the benchmark's first 40 prompts, which the
target answers first. Both are exact without a loop: greedy verification reads the target's own
text, so that it is enough to know where the draft, fed that text, foresees the next token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import cache_folder
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import TorchDrafter, load_drafter
from judge_decoding.training.draft.data import Answer, figures, load_answers, split_held_out
from judge_decoding.training.draft.target_text import BENCHMARK, BatchWriter, read_text

LENGTHS = (1, 2, 3, 4, 5, 6, 8)
FRESH = 40
CONTEXT = 512


class ReadingDrafter(TorchDrafter):
    """A draft that says what it would write after every token of a given text."""

    @torch.inference_mode()
    def foresees(self, prompt: Sequence[int], response: Sequence[int]) -> list[bool]:
        """Whether it writes response[i] after prompt + response[:i], for every i."""
        hidden = self._read([(0, 0, [*prompt, *response[:-1]])], [len(response)])
        logits = self.model.logits(self.model.final_norm(hidden).contiguous())
        self.release(0)
        columns = logits.argmax(-1)
        ids = columns if self.vocab_ids is None else self.vocab_ids[columns]
        found: list[bool] = (ids == torch.tensor(response)).tolist()
        return found


def answers_to(
    prompts: Sequence[str], folder: Path, tokenizer: Tokenizer, tokens: int
) -> list[Answer]:
    """The target's own greedy answers."""
    ids = [tokenizer.chat([{"role": "user", "content": p}]) for p in prompts]
    written = BatchWriter(folder).write(ids, tokens)
    return [Answer(prompt, answer) for prompt, answer in zip(ids, written, strict=True)]


def main(
    drafts: list[Path],
    text: list[Path] = typer.Option([], help="its held-out answers are measured on"),
    target: Path | None = typer.Option(None, help="default: the demo target"),
    fresh: int = typer.Option(FRESH, min=0, help="prompts of the benchmark"),
    tokens: int = typer.Option(128, min=1, help="of a fresh answer at most"),
    dtype: str = "bfloat16",
) -> None:
    """Measure DRAFTS."""
    folder = target or cache_folder() / "smollm2-135m-instruct"
    checkpoint = Checkpoint(folder)
    try:
        tokenizer = Tokenizer(folder)
        parts: dict[str, list[Answer]] = {}
        if text:
            width = checkpoint.config.hidden_size
            parts = split_held_out(load_answers(text, tokenizer, width), 0)[1]
        if fresh:
            prompts = [row["prompt"] for row in read_text(BENCHMARK)][:fresh]
            parts["fresh"] = answers_to(prompts, folder, tokenizer, tokens)
        found = {}
        for draft in drafts:
            drafter = load_drafter(
                Checkpoint(draft),
                target=checkpoint,
                dtype=dtype,
                max_sequences=1,
                max_context=CONTEXT,
            )
            reader = ReadingDrafter(
                drafter.model, vocab_ids=drafter.vocab_ids, max_sequences=1, max_context=CONTEXT
            )
            found[str(draft)] = {
                name: figures([reader.foresees(a.prompt, a.response) for a in part], LENGTHS)
                for name, part in parts.items()
            }
    except UserError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    for draft, named in found.items():
        for name, row in named.items():
            shown = "  ".join(f"k={k} {row[f'strict_length_k{k}']:.2f}" for k in LENGTHS)
            print(f"{draft} {name:8} {row['tokens']:6} tokens  {row['agreement']:.3f}  {shown}")
    print(json.dumps(found))
