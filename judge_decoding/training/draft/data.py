"""The distillation's data: answers with the target's states, the held-out split, batches."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.training.draft.target_text import read_text

POSITIONS = 4096  # per batch, padding included
HELD_OUT = 70  # answers kept for evaluation if the text marks none itself
LONGEST_PROMPT = 200


@dataclass
class TargetAnswer:
    """A prompt's ids, its answer's ids [n], and the target's post-norm states bfloat16 [n, H] that
    predict them (None until computed). `held_out` is "source", "prompt" or "" (`target_text`)."""

    prompt: list[int]
    response: list[int]
    states: torch.Tensor | None = None
    held_out: str = ""


def load_answers(paths: Iterable[Path], tokenizer: Tokenizer, width: int) -> list[TargetAnswer]:
    """All answers of the text files, one per prompt: that of the first file with the prompt.

    The states beside a text file (`.states`, bf16 rows of `width`) are memory-mapped.
    UserError for a states file that is too short, or for too few answers.
    """
    found: dict[str, TargetAnswer] = {}
    for path in paths:
        side, at = path.with_name(path.name + ".states"), 0
        states = None
        if side.is_file():
            flat = np.memmap(side, np.int16, "c")
            states = flat[: len(flat) // width * width].reshape(-1, width)
        for row in read_text(path):
            ids = row["response_ids"]
            if states is not None and at + len(ids) > len(states):
                raise UserError(f"distil: {side} is shorter than {path} needs; write both anew")
            if ids and row["prompt"] not in found:
                prompt = tokenizer.chat([{"role": "user", "content": row["prompt"]}])
                answer = TargetAnswer(prompt, ids, held_out=row.get("held_out", ""))
                if states is not None:
                    part = torch.from_numpy(states[at : at + len(ids)])
                    answer.states = part.view(torch.bfloat16)
                found[row["prompt"]] = answer
            at += len(ids)
    if len(found) <= HELD_OUT:
        raise UserError(
            f"distil: {len(found)} answers are too few; write more with build/distil_text.py"
        )
    return [answer for answer in found.values() if len(answer.prompt) <= LONGEST_PROMPT]


def split_held_out(
    answers: Sequence[TargetAnswer], seed: int
) -> tuple[list[TargetAnswer], dict[str, list[TargetAnswer]]]:
    """-> the answers to train on, and the held-out ones by kind: "source" and "prompt", or "all" if
    no text marks any."""
    order = list(answers)
    random.Random(seed).shuffle(order)
    held: dict[str, list[TargetAnswer]] = {}
    for answer in order:
        if answer.held_out:
            held.setdefault(answer.held_out, []).append(answer)
    if not held:
        return order[HELD_OUT:], {"all": order[:HELD_OUT]}
    return [a for a in order if not a.held_out], held


def batches(
    answers: Sequence[TargetAnswer], rng: random.Random | None, positions: int = POSITIONS
) -> list[list[TargetAnswer]]:
    """Batches of at most `positions`; answers of similar length share one. Shuffled by `rng`."""
    order = list(answers)
    if rng is not None:
        rng.shuffle(order)
    made = []
    for start in range(0, len(order), 512):
        batch: list[TargetAnswer] = []
        near = sorted(order[start : start + 512], key=lambda a: len(a.prompt) + len(a.response))
        for answer in near:
            length = len(answer.prompt) + len(answer.response)
            if batch and length * (len(batch) + 1) > positions:
                made.append(batch)
                batch = []
            batch.append(answer)
        made.append(batch)
    if rng is not None:
        rng.shuffle(made)
    return made


def collate(batch: Sequence[TargetAnswer]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> ids [B, L] padded right; rows [n], the flat positions that predict; labels [n]."""
    width = max(len(a.prompt) + len(a.response) - 1 for a in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    rows, labels = [], []
    for i, a in enumerate(batch):
        text = torch.tensor(a.prompt + a.response[:-1])
        ids[i, : len(text)] = text
        rows.append(i * width + torch.arange(len(a.prompt) - 1, len(text)))
        labels.append(torch.tensor(a.response))
    return ids, torch.cat(rows), torch.cat(labels)


def most_frequent(answers: Iterable[TargetAnswer], vocab_size: int, size: int) -> torch.Tensor:
    """The `size` ids that the answers use most, ascending."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for answer in answers:
        counts += torch.bincount(torch.tensor(answer.response), minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def rounds_of(hits: Sequence[bool], k: int) -> Iterator[int]:
    """Accepted draft tokens of each round; hits[i] says whether the draft predicts token i."""
    at = 0
    while at < len(hits):
        n = 0
        while n < k and at + n < len(hits) - 1 and hits[at + n]:
            n += 1
        yield n
        at += n + 1


def figures(hits: Sequence[Sequence[bool]], lengths: Sequence[int] = (4, 8)) -> dict[str, float]:
    """A draft's figures on answers, from the tokens that it predicts: the share predicted and, for
    each draft length, the mean acceptance length of `strict`. That is exact, since greedy
    verification reads the target's own text."""
    tokens = sum(len(h) for h in hits)
    found = {"tokens": tokens, "agreement": sum(map(sum, hits)) / tokens}
    for k in lengths:
        rounds = sum(len(list(rounds_of(h, k))) for h in hits)
        found[f"strict_length_k{k}"] = tokens / rounds
    return found
