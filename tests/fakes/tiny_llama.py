"""A tiny Llama as the model behind the fake executor."""

from __future__ import annotations

import torch

from judge_decoding.torch_engine.engine import TorchTarget
from tests.fakes import executor_fake as fake


class TinyLlama(fake.Model):
    """Reads text as verification does; greedy only (one-hot logits)."""

    vocab_size = padded_vocab_size = 256

    def __init__(self, target: TorchTarget) -> None:
        self.target = target

    def rows(self, text: list[int], drafted: list[int]) -> tuple[torch.Tensor, list[float]]:
        read = self.target.teacher_forced(text, [*drafted, 0], block=len(drafted) + 1)
        logits = torch.nn.functional.one_hot(read.argmax, 256) * 10.0
        judge = self.target.judge
        return logits, [] if judge is None else judge.score(read.pre_norm[:-1]).tolist()
