"""How well drafts predict the target: agreement, and the acceptance length of `strict`.

Both are measured on the held-out answers of text files and on the benchmark's first prompts, which
the target answers first. They are exact without the decoding loop: greedy verification reads the
target's own text, so it is enough to know where the draft, given that text, predicts the next
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import TorchDrafter, load_drafter
from judge_decoding.training.draft.data import TargetAnswer, figures, load_answers, split_held_out
from judge_decoding.training.draft.target_text import BENCHMARK, BatchWriter, read_text

LENGTHS = (1, 2, 3, 4, 5, 6, 8)
FRESH = 40
CONTEXT = 512


class ReadingDrafter(TorchDrafter):
    """A draft that also predicts the token after every token of a given text."""

    @torch.inference_mode()
    def foresees(self, prompt: Sequence[int], response: Sequence[int]) -> list[bool]:
        """For every i, whether it writes response[i] after prompt + response[:i]."""
        hidden = self._read([(0, 0, [*prompt, *response[:-1]])], [len(response)])
        logits = self.model.logits(self.model.final_norm(hidden).contiguous())
        self.release(0)
        columns = logits.argmax(-1)
        ids = columns if self.vocab_ids is None else self.vocab_ids[columns]
        found: list[bool] = (ids == torch.tensor(response)).tolist()
        return found


def answers_to(
    prompts: Sequence[str], folder: Path, tokenizer: Tokenizer, tokens: int
) -> list[TargetAnswer]:
    """The target's own greedy answers."""
    ids = [tokenizer.chat([{"role": "user", "content": p}]) for p in prompts]
    written = BatchWriter(folder).write(ids, tokens)
    return [TargetAnswer(prompt, answer) for prompt, answer in zip(ids, written, strict=True)]


def measure_drafts(
    drafts: Sequence[Path],
    target: Path,
    *,
    text: Sequence[Path],
    fresh: int,
    tokens: int,
    dtype: str,
) -> dict[str, dict[str, dict[str, float]]]:
    """Draft -> part of the text -> its figures (`data.figures`).

    text    files; drafts are measured on their held-out answers
    fresh   prompts of the benchmark that the target answers first, with at most `tokens` tokens
    """
    checkpoint, tokenizer = Checkpoint(target), Tokenizer(target)
    parts: dict[str, list[TargetAnswer]] = {}
    if text:
        width = checkpoint.config.hidden_size
        parts = split_held_out(load_answers(text, tokenizer, width), 0)[1]
    if fresh:
        prompts = [row["prompt"] for row in read_text(BENCHMARK)][:fresh]
        parts["fresh"] = answers_to(prompts, target, tokenizer, tokens)
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
    return found
