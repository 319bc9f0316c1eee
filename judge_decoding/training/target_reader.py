"""Reading given tokens with the target: their log-likelihoods, and the target's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.progress import track
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import DTYPES, TorchTarget
from judge_decoding.torch_engine.llama import Llama
from judge_decoding.torch_engine.weights import Weights
from judge_decoding.training.labels import LabelRecord


class ReadRequest(NamedTuple):
    """Read `tokens` after `keep` cached positions -> float32 [len(tokens) - 1], the log-likelihood
    of each of them but the first."""

    sequence: int
    keep: int
    tokens: list[int]


class ReadingTarget(TorchTarget):
    """A target that also returns its rows, and not only verdicts."""

    @torch.inference_mode()
    def likelihood(self, requests: Sequence[ReadRequest]) -> list[torch.Tensor]:
        rows = [len(r.tokens) for r in requests]
        hidden = self._read([(r.sequence, r.keep, r.tokens) for r in requests], rows)
        found = []
        for request, part in zip(requests, torch.split(hidden, rows), strict=True):
            logits = self.model.logits(self.model.final_norm(part[:-1]).contiguous()).float()
            wanted = torch.tensor(request.tokens[1:]).unsqueeze(-1)
            found.append(logits.log_softmax(-1).gather(-1, wanted)[:, 0])
        return found


def load_reader(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    max_context: int,
    max_sequences: int,
    weights: Weights | None = None,
) -> ReadingTarget:
    model = Llama(checkpoint, dtype=DTYPES[dtype], context=max_context, weights=weights)
    return ReadingTarget(model, max_context=max_context, max_sequences=max_sequences)


def in_span(record: LabelRecord) -> list[int]:
    """The places of the tokens that lie in a span, whatever its label."""
    return [at for span in record.spans for at in range(span.start, span.end)]


def read_states(
    records: Sequence[LabelRecord], target: ReadingTarget, tokenizer: Tokenizer, block: int
) -> dict[str, torch.Tensor]:
    """pre_norm [n, H], post_norm [n, H] and argmax [n] of all n tokens in spans, record by record.

    Records are read in the order of their text, so that each reuses the cached prefix that it
    shares with its predecessor: answers to one question agree up to their first difference.
    """
    names = ("pre_norm", "post_norm", "argmax")
    prompts = {(r.prompt, r.chat): r.prompt_ids(tokenizer) for r in records}
    begins = [prompts[r.prompt, r.chat] for r in records]
    texts = [[*begin, *r.response_ids] for begin, r in zip(begins, records, strict=True)]
    found: dict[int, list[torch.Tensor]] = {}
    held: list[int] = []
    order = sorted((n for n, r in enumerate(records) if r.spans), key=lambda n: texts[n])
    for n in track(order, "hidden states"):
        begin, wanted = len(begins[n]), in_span(records[n])
        text = texts[n][: begin + wanted[-1] + 1]
        first = begin + wanted[0]
        shared = 0
        while shared < min(len(held), first - 1) and held[shared] == text[shared]:
            shared += 1
        read = target.teacher_forced(text[:first], text[first:], block, sequence=0, keep=shared)
        places = torch.tensor([at - wanted[0] for at in wanted])
        found[n] = [getattr(read, name)[places] for name in names]
        held = text
    target.release(0)
    return {
        name: torch.cat([found[n][column] for n in range(len(records)) if n in found])
        for column, name in enumerate(names)
    }
