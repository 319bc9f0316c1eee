"""Distil a draft: a few layers of the target's width that predict the target's own text.

The draft is a Llama that shares the target's embeddings and LM head. They are frozen and therefore
not shipped. Its layers are copied from the target's, or from a draft that training continues from.
It is trained to the target's distribution over a short list of the most frequent ids (the full
head would be most of a small draft's step) and to the target's last hidden state, on answers that
the target wrote. Those states come from the text's `.states` file, or are computed once, when a
batch is first seen.

The text is the target's and not the draft's: under `strict` a draft only ever continues what the
target itself would have written.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from judge_decoding.checkpoint import EMBEDDING, HEAD, Checkpoint, save_tensors
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.training.draft.data import (
    TargetAnswer,
    batches,
    collate,
    figures,
    load_answers,
    most_frequent,
    split_held_out,
)

SLICE = 1024  # rows of the loss at a time; 8,000 logits per row take most of the memory
WARM_UP = 30  # steps
EVALUATE_EVERY = 300  # seconds
EMA = 0.99


class Distiller:
    """The teacher (the target), the student (the draft), and the tensors that they share."""

    def __init__(
        self,
        target: Path,
        layers: list[int],
        short_list: torch.Tensor,
        device: str,
        init: Path | None = None,
    ):
        """layers  the target's layers that the student starts from; unused with `init`
        init    folder of a draft to continue from
        """
        from transformers import LlamaConfig, LlamaModel

        whole = Checkpoint(target)
        tensors = whole.tensors
        if not whole.config.is_plain_llama:
            raise UserError(
                f"distil: {target} is a {whole.config.model_type} with biases; drafts are "
                "distilled from Llamas without biases only"
            )
        state = {n.removeprefix("model."): tensors.get(n) for n in tensors.names() if n != HEAD}
        config = LlamaConfig.from_dict(whole.config_json)
        self.device = device
        teacher: torch.nn.Module = LlamaModel(config)
        self.teacher = teacher.to(torch.bfloat16)
        self.teacher.load_state_dict(state)
        self.teacher.to(device).eval()
        begun = None if init is None else Checkpoint(init)
        count = len(layers) if begun is None else begun.config.num_layers
        config = LlamaConfig.from_dict(whole.config_json, num_hidden_layers=count)
        student: Any = LlamaModel(config)
        self.student = student.float()
        kept = {n: t for n, t in state.items() if not n.startswith("layers.")}
        if begun is not None:
            trained = begun.tensors
            kept |= {
                n.removeprefix("model."): trained.get(n)
                for n in trained.names()
                if n.startswith("model.")
            }
        for place, source in enumerate(layers if init is None else []):
            prefix = f"layers.{source}."
            kept |= {
                f"layers.{place}.{n.removeprefix(prefix)}": t
                for n, t in state.items()
                if n.startswith(prefix)
            }
        self.student.load_state_dict(kept)
        self.student.to(device)
        self.student.embed_tokens.weight.requires_grad_(False)
        self.short_list = short_list
        rows = tensors.get(EMBEDDING if whole.config.tie_word_embeddings else HEAD)[short_list]
        self.head = rows.to(device, torch.bfloat16)
        self.column = torch.full((config.vocab_size,), -1)
        self.column[short_list] = torch.arange(len(short_list))
        self.average = {n: p.detach().clone() for n, p in self.trainable()}

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self.student.named_parameters() if p.requires_grad)

    def states(self, model: torch.nn.Module, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            out = model(input_ids=ids.to(self.device), use_cache=False)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden.flatten(0, 1)[rows.to(self.device)]

    @torch.no_grad()
    def label(self, batch: Sequence[TargetAnswer]) -> None:
        """Compute the target's states for answers that lack them."""
        todo = [a for a in batch if a.states is None]
        if todo:
            ids, rows, _ = collate(todo)
            states = self.states(self.teacher, ids, rows).to("cpu", torch.bfloat16)
            parts = torch.split(states, [len(a.response) for a in todo])
            for a, part in zip(todo, parts, strict=True):
                a.states = part.clone()

    def loss(self, batch: Sequence[TargetAnswer]) -> torch.Tensor:
        """Cross-entropy to the target's distribution plus smooth-L1 to its state, per token."""
        self.label(batch)
        ids, rows, labels = collate(batch)
        mine = self.states(self.student, ids, rows)
        theirs = torch.cat([a.states for a in batch if a.states is not None]).to(self.device)
        total = torch.zeros((), device=self.device)
        for a, b in zip(torch.split(mine, SLICE), torch.split(theirs, SLICE), strict=True):
            with torch.autocast(self.device, dtype=torch.bfloat16):
                logits = F.linear(a, self.head)
            with torch.no_grad():
                wanted = F.linear(b, self.head).float().softmax(-1)
            total = total - (wanted * logits.float().log_softmax(-1)).sum()
            total = total + F.smooth_l1_loss(a.float(), b.float(), reduction="sum") / a.shape[-1]
        return total / len(labels)

    @torch.no_grad()
    def evaluate(self, answers: Sequence[TargetAnswer]) -> dict[str, float]:
        """`data.figures` of the averaged student."""
        live = {n: p.detach().clone() for n, p in self.trainable()}
        self._set(self.average)
        hits: list[list[bool]] = []
        for batch in batches(answers, None):
            ids, rows, labels = collate(batch)
            logits = F.linear(self.states(self.student, ids, rows).bfloat16(), self.head)
            right = self.short_list[logits.argmax(-1).cpu()] == labels
            parts = torch.split(right, [len(a.response) for a in batch])
            hits += [part.tolist() for part in parts]
        self._set(live)
        return figures(hits)

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.trainable():
            parameter.copy_(values[name])

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the moving average of the weights towards the current ones."""
        decay = min(EMA, 1 - 1 / (step + 1))
        for name, parameter in self.trainable():
            self.average[name].lerp_(parameter, 1 - decay)

    def save(self, folder: Path, target: Path) -> None:
        """Write the averaged draft."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"model.{n}": t.to("cpu", torch.bfloat16).contiguous() for n, t in self.average.items()
        }
        tensors["draft_vocab_ids"] = self.short_list.int()
        save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        config = dict(Checkpoint(target).config_json)
        config["num_hidden_layers"] = self.student.config.num_hidden_layers
        config["shared_with_target"] = [EMBEDDING, HEAD]
        config["draft_vocab_size"] = len(self.short_list)
        (folder / "config.json").write_text(json.dumps(config, indent=2))


def train(
    distiller: Distiller,
    answers: Sequence[TargetAnswer],
    minutes: float,
    rate: float,
    positions: int,
    seed: int,
) -> Iterator[tuple[int, int, float]]:
    """Cosine schedule over `minutes`; yields (step, tokens seen, loss) after every step.

    Muon trains the matrices (it orthogonalises their updates, and small models then learn faster),
    AdamW the norms.
    """
    parameters = [p for _, p in distiller.trainable()]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [p for p in parameters if p.ndim == 2],
            lr=rate,
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW([p for p in parameters if p.ndim == 1], lr=rate, weight_decay=0.0),
    ]
    rng, step, seen, began = random.Random(seed), 0, 0, time.monotonic()
    while True:
        for batch in batches(answers, rng, positions):
            done = (time.monotonic() - began) / (60 * minutes)
            if done >= 1:
                return
            cosine = 0.5 * (1 + math.cos(math.pi * done))
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * (0.03 + 0.97 * cosine)
            loss = distiller.loss(batch)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            distiller.follow(step)
            step += 1
            seen += sum(len(a.response) for a in batch)
            yield step, seen, loss.item()


def distil(
    text: Sequence[Path],
    out: Path,
    target: Path,
    *,
    layers: Sequence[int],
    init: Path | None,
    vocabulary: int,
    minutes: float,
    rate: float,
    positions: int,
    device: str,
    seed: int,
) -> dict[str, Any]:
    """Distil a draft from text files into the folder OUT; returns its figures.

    layers      the target's layers that the draft starts from; unused with `init`
    init        folder of a draft to continue from
    vocabulary  ids that the draft's head covers: the most frequent ones of the text
    positions   per step, padding included
    Progress goes to stdout. UserError if the text or the models do not fit.
    """
    torch.manual_seed(seed)
    config = Checkpoint(target).config
    answers, held = split_held_out(load_answers(text, Tokenizer(target), config.hidden_size), seed)
    short_list = most_frequent(answers, config.vocab_size, min(vocabulary, config.vocab_size))
    distiller = Distiller(target, list(layers), short_list, device, init)

    def evaluate() -> dict[str, dict[str, float]]:
        return {kind: distiller.evaluate(part) for kind, part in held.items()}

    print(
        f"{len(answers)} answers, {sum(len(a.response) for a in answers)} tokens; held out: "
        f"{ {kind: len(part) for kind, part in held.items()} }"
    )
    print("before", json.dumps(evaluate()), flush=True)
    began, evaluated = time.monotonic(), 0.0
    step = seen = 0
    for step, seen, loss in train(distiller, answers, minutes, rate, positions, seed):
        passed = time.monotonic() - began
        if step % 20 == 0:
            print(f"step {step}, {passed / 60:.1f} min, {seen} tokens, loss {loss:.3f}", flush=True)
        if passed - evaluated > EVALUATE_EVERY:
            print(json.dumps(evaluate()), flush=True)
            distiller.save(out, target)
            evaluated = passed
    distiller.save(out, target)
    return {"steps": step, "tokens_seen": seen, "held_out": evaluate()}
