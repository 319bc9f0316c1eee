"""Let the target write the text that the draft is distilled on.

    python build/distil_text.py text.jsonl.gz --count 6000 --self-chat 0.4

Two kinds of user turns: *self-chat*, sampled from the target itself after `<|im_start|>user`, and
*templated* ones from distil_prompts.yaml (varied prompts matter more than many: a draft trained on
self-chat alone agrees well there and poorly on a person's prompts). The target answers all of them
greedily, since that is what a draft must foresee. One line an answer: {"prompt", "response_ids"}.
A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
import yaml
from torch.nn import functional as F

from judge_decoding.config import cache_folder
from judge_decoding.engine.base import Sampling
from judge_decoding.engine.llama import Llama
from judge_decoding.engine.weights import Tensors, read_config
from judge_decoding.errors import UserError
from judge_decoding.sampling import greedy, probabilities
from judge_decoding.text import Tokenizer

BATCH = 96  # rows a step: the matrix kernels' throughput is flat from here on
KINDS = ["country", "element", "function", "sentence", "thing", "role", "occasion", "skill"]
MASKED = -1e30  # a finite "never": a row of padding alone must not become NaN


class BatchWriter:
    """Continues many prompts of different lengths at once, all for the same number of steps.

    The serving engine attends per sequence, for latency; here throughput counts: prompts are
    padded on the left to one length, so that one attention call serves the batch.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.config = read_config(folder)
        context = min(self.config.max_position_embeddings, 2048)
        self.model = Llama(self.config, Tensors(folder), dtype=dtype, context=context)
        self.end_ids = torch.tensor(self.config.end_ids)

    @torch.inference_mode()
    def write(
        self, prompts: Sequence[Sequence[int]], steps: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """-> the new ids of each prompt, its end token included where one was reached."""
        config, rows = self.config, len(prompts)
        width = max(len(p) for p in prompts)
        padding = torch.tensor([width - len(p) for p in prompts])
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        shape = (config.num_layers, rows, 2 * config.num_kv_heads, width + steps, config.head_dim)
        cache = torch.zeros(shape, dtype=self.model.dtype)
        hidden = torch.arange(width + steps) < padding.unsqueeze(1)
        mask = torch.where(hidden, MASKED, 0.0).to(self.model.dtype)
        generator = torch.Generator().manual_seed(sampling.seed if sampling else 0)
        done = torch.zeros(rows, dtype=torch.bool)
        written: list[torch.Tensor] = []
        at = 0
        while True:
            last = self._read(ids, at, padding, mask, cache)
            at += ids.shape[1]
            logits = self.model.logits(self.model.final_norm(last).contiguous())
            if sampling is None:
                token = greedy(logits)
            else:
                p = probabilities(logits, sampling)
                token = torch.multinomial(p, 1, generator=generator)[:, 0]
            written.append(token)
            done |= torch.isin(token, self.end_ids)
            if len(written) == steps or bool(done.all()):
                break
            ids = token.unsqueeze(1)
        table = torch.stack(written, 1)
        ends = torch.isin(table, self.end_ids)
        return [_cut(row, end) for row, end in zip(table.tolist(), ends.tolist(), strict=True)]

    def _read(
        self,
        ids: torch.Tensor,
        start: int,
        padding: torch.Tensor,
        mask: torch.Tensor,
        cache: torch.Tensor,
    ) -> torch.Tensor:
        """One pass over ids [rows, n] at `start`: the last position's hidden states [rows, H]."""
        config, model = self.config, self.model
        rows, n = ids.shape
        heads, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
        group = heads // kv
        at = (torch.arange(start, start + n) - padding.unsqueeze(1)).clamp_min(0)
        cos, sin = model.cos[at], model.sin[at]
        seen = mask[:, None, None, : start + n]
        if n > 1:
            future = torch.full((n, n), MASKED, dtype=mask.dtype).triu(1)
            seen = (mask[:, None, :n] + future).clamp_min(MASKED).repeat(1, group, 1).unsqueeze(1)
        x = F.embedding(ids, model.embedding).view(rows * n, -1)
        for index, layer in enumerate(model.layers):
            qkv = layer.qkv(layer.attention_norm(x)).view(rows, n, heads + 2 * kv, size)
            qk = qkv[:, :, : heads + kv]
            qk.copy_(torch.addcmul(qk * cos, qk.roll(size // 2, -1), sin))
            cache[index, :, :, start : start + n] = qkv[:, :, heads:].transpose(1, 2)
            queries = qkv[:, :, :heads].view(rows, n, kv, group, size).permute(0, 2, 3, 1, 4)
            attended = F.scaled_dot_product_attention(
                queries.reshape(rows, kv, group * n, size),
                cache[index, :, :kv, : start + n],
                cache[index, :, kv:, : start + n],
                attn_mask=seen,
            )
            attended = attended.view(rows, kv, group, n, size).permute(0, 3, 1, 2, 4)
            x = layer.out.plus(attended.reshape(rows * n, heads * size), x)
            h = layer.mlp_norm(x)
            x = layer.down.plus(layer.up.times(h, layer.gate.silu(h)), x)
        return x.view(rows, n, -1)[:, -1]


def _cut(row: list[int], ends: list[bool]) -> list[int]:
    return row[: ends.index(True) + 1] if True in ends else row


def templated_prompts(seed: int) -> list[str]:
    """All templated user turns, shuffled."""
    parts: dict[str, list[str]] = yaml.safe_load(
        (Path(__file__).parent / "distil_prompts.yaml").read_text()
    )
    rng = random.Random(seed)
    topics = parts["topics"]
    found = [
        template.format(t=topic, u=rng.choice(topics))
        for topic in topics
        for template in parts["topic_templates"]
    ]
    plurals = {"country": "countries"}
    for kind in KINDS:
        entries = parts[plurals.get(kind, kind + "s")]
        templates = parts[f"{kind}_templates"]
        found += [t.format(x=x, t=rng.choice(topics)) for x in entries for t in templates]
    found += [
        template.format(a=rng.randint(2, 99), b=rng.randint(2, 30))
        for template in parts["sum_templates"]
        for _ in range(60)
    ]
    rng.shuffle(found)
    return list(dict.fromkeys(found))


def self_chat_prompts(
    writer: BatchWriter, tokenizer: Tokenizer, count: int, seed: int
) -> Iterator[str]:
    """User turns that the target makes up: sampled after the beginning of a user's turn."""
    conversation = tokenizer.chat([{"role": "user", "content": "|"}])
    text = tokenizer.decode(conversation)
    if "|" not in text:
        raise UserError("distil: the chat template hides the user's text; no self-chat possible")
    start = conversation[: conversation.index(tokenizer.encode("|", special=False)[0])]
    made = 0
    for batch in range(10**6):
        sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed + batch)
        for ids in writer.write([start] * BATCH, 80, sampling):
            prompt = tokenizer.decode(ids).strip()
            # A turn that did not end in 80 tokens is no request but an essay.
            if int(ids[-1]) in writer.end_ids.tolist() and len(prompt) > 8:
                yield prompt
                made += 1
                if made == count:
                    return


def read_text(path: Path) -> list[dict[str, Any]]:
    """The lines of a text file, gzipped or not; a last line cut off by an interrupt is dropped."""
    rows = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                rows.append(json.loads(line))
    except (EOFError, json.JSONDecodeError):
        pass
    return rows


def main(
    out: Path,
    target: Path | None = typer.Option(None, help="default: the demo target"),
    count: int = typer.Option(6000, min=1, help="answers"),
    self_chat: float = typer.Option(0.4, min=0, max=1, help="share of self-chat prompts"),
    tokens: int = typer.Option(160, min=1, help="new tokens of an answer at most"),
    seed: int = 0,
) -> None:
    """Write `count` prompts and answers to OUT."""
    folder = target or cache_folder() / "smollm2-135m-instruct"
    try:
        writer, tokenizer = BatchWriter(folder), Tokenizer(folder)
        rows = read_text(out) if out.exists() else []
        templated = templated_prompts(seed)[: round(count * (1 - self_chat))]
        own = self_chat_prompts(writer, tokenizer, count - len(templated), seed)
        known = {row["prompt"] for row in rows}
        todo: list[str] = [p for p in templated if p not in known]
        missing = count - len(rows) - len(todo)
        todo += [p for _, p in zip(range(missing), own, strict=False)]
    except UserError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    encoded = [(p, tokenizer.chat([{"role": "user", "content": p}])) for p in todo]
    began, written = time.monotonic(), 0
    with gzip.open(out, "wt", encoding="utf-8") as file:
        for row in rows:  # written anew: a gzip that was cut off cannot be appended to
            file.write(json.dumps(row) + "\n")
        for start in range(0, len(encoded), BATCH):
            batch = encoded[start : start + BATCH]
            answers = writer.write([ids for _, ids in batch], tokens)
            for (prompt, _), ids in zip(batch, answers, strict=True):
                file.write(json.dumps({"prompt": prompt, "response_ids": ids}) + "\n")
                written += len(ids)
            file.flush()
            speed = written / (time.monotonic() - began)
            print(f"{len(rows) + start + len(batch)}/{count} answers, {speed:.0f} tokens/s")


if __name__ == "__main__":
    typer.run(main)
