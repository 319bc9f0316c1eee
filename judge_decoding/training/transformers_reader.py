"""Reads the target's states with transformers, for targets that are too large for the CPU.

The states are those of `TorchTarget.teacher_forced`, read in the same passes (the last token and
`block` drafted ones at a time, over a cache that rolls back). `device_map` spreads the layers over
all GPUs. Tested against the PyTorch engine on the CPU
(tests/training/test_judge_features.py); not executed on a GPU here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from judge_decoding.decoding.sampling import greedy
from judge_decoding.torch_engine.engine import DTYPES, TeacherForced
from judge_decoding.training.target_reader import ReadRequest


class TransformersReader:
    """A `LlamaForCausalLM` folder, read one sequence at a time."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from transformers import AutoModelForCausalLM, DynamicCache

        devices = {"device_map": "auto"} if torch.cuda.is_available() else {}
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **devices)
        self._model = model.eval()
        self._new_cache = DynamicCache
        self._cache = DynamicCache()
        self._before: torch.Tensor | None = None
        model.model.norm.register_forward_pre_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Keeps the final norm's input, [1, tokens, H]."""
        self._before = inputs[0]

    def release(self, sequence: int) -> None:
        self._cache = self._new_cache()

    def _read(self, keep: int, tokens: Sequence[int]) -> torch.Tensor:
        """States [tokens, H] after the final norm; the first `keep` cached positions are reused."""
        held = self._cache.get_seq_length()
        if keep < held:
            self._cache.crop(keep - held)  # tokens to remove, as a negative number
        ids = torch.tensor([list(tokens)], device=self._model.device)
        # By position: the fourth argument is `past_key_values` in transformers 4, `cache` in 5.
        found = self._model.model(ids, None, None, self._cache, use_cache=True)
        hidden: torch.Tensor = found.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def likelihood(self, requests: Sequence[ReadRequest]) -> list[torch.Tensor]:
        """As `target_reader.ReadingTarget.likelihood`, on the CPU."""
        found = []
        for request in requests:
            post = self._read(request.keep, request.tokens)
            likely = self._model.lm_head(post[:-1]).float().log_softmax(-1)
            wanted = torch.tensor(request.tokens[1:], device=likely.device).unsqueeze(-1)
            found.append(likely.gather(-1, wanted)[:, 0].cpu())
        return found

    @torch.inference_mode()
    def teacher_forced(
        self,
        prompt: Sequence[int],
        response: Sequence[int],
        block: int = 9,
        *,
        sequence: int = 0,
        keep: int = 0,
    ) -> TeacherForced:
        """As `TorchTarget.teacher_forced`, on the CPU; the only sequence stays cached."""
        text, first = [*prompt, *response], len(prompt)
        parts: list[tuple[torch.Tensor, ...]] = []
        for start in range(first, len(text), block):
            end = min(start + block, len(text))
            rows = end - start + 1
            post = self._read(keep, text[keep:end])[-rows:]
            keep = end - 1  # read again: its row is the first of the next pass
            assert self._before is not None
            logits = self._model.lm_head(post[:-1]).float()
            read = torch.tensor(text[start:end], device=logits.device).unsqueeze(-1)
            logprob = logits.log_softmax(-1).gather(-1, read)[:, 0].cpu()
            pre = self._before[0, -rows:][1:].cpu()
            parts.append((pre, post[1:].cpu(), greedy(logits.cpu()), logprob))
        return TeacherForced(*(torch.cat(column) for column in zip(*parts, strict=True)))
