"""The text that a draft is distilled on, written by the target.

There are two kinds of user turns, both from prompts.yaml: templated ones, and the target's own. The
target samples its own turns after `<|im_start|>user` and an opener ("My landlord", "Help me").
Variety of prompts matters more than their number: a draft trained only on templates agrees well
there and poorly on a person's prompts. The target answers all turns greedily, since a draft must
predict exactly that.

Each line holds one answer: {"prompt", "response_ids", "held_out"}. `held_out` is "source" if the
opener or template is kept from training, and "prompt" if only the prompt is. OUT.states, beside
OUT, holds the target's post-norm states that predicted the tokens of the answers, as raw bf16; they
save the training a pass. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import judge_decoding
from judge_decoding.checkpoint import Checkpoint
from judge_decoding.cpu import fast_dtype
from judge_decoding.decoding.contracts import Sampling
from judge_decoding.decoding.sampling import greedy, probabilities
from judge_decoding.errors import UserError
from judge_decoding.files import GrowingFile, JsonError, parse_json, read_lines, write_whole
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import DTYPES
from judge_decoding.torch_engine.llama import Llama

BATCH = 96  # rows per step; more do not raise the matrix kernels' throughput
KINDS = ["country", "element", "function", "sentence", "thing", "role", "occasion", "skill"]
BENCHMARK = Path(judge_decoding.__file__).parent / "data" / "chat_prompts.jsonl"
"""Prompts that the draft is measured with; never written, never trained on."""
PROMPT_STEPS = 48  # own turns that do not end within so many tokens are dropped
HELD_OUT_BYTES = 8  # of 256: the share of own prompts that is never trained on
MASKED = -1e30  # finite, so that softmax over a row of padding alone is not NaN


class BatchWriter:
    """Continues many prompts of different lengths at once, all for the same number of steps.

    The serving engine attends per sequence, for latency. Here throughput counts, so prompts are
    padded on the left to one length and one attention call serves the batch.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """dtype  None: this CPU's fastest"""
        checkpoint = Checkpoint(folder)
        self.config = checkpoint.config
        context = min(self.config.max_position_embeddings, 2048)
        self.model = Llama(checkpoint, dtype=dtype or DTYPES[fast_dtype()], context=context)
        self.end_ids = torch.tensor(self.config.end_ids)

    def write(
        self, prompts: Sequence[Sequence[int]], steps: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """-> each prompt's new ids, with the end token if one was reached."""
        return [ids for ids, _ in self.write_with_states(prompts, steps, sampling)]

    @torch.inference_mode()
    def write_with_states(
        self, prompts: Sequence[Sequence[int]], steps: int, sampling: Sampling | None = None
    ) -> list[tuple[list[int], torch.Tensor]]:
        """-> also the post-norm states [n, H] that predicted the ids."""
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
        states: list[torch.Tensor] = []
        at = 0
        while True:
            last = self._read(ids, at, padding, mask, cache)
            at += ids.shape[1]
            states.append(self.model.final_norm(last).contiguous())
            logits = self.model.logits(states[-1])
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
        cut = [_cut(row, end) for row, end in zip(table.tolist(), ends.tolist(), strict=True)]
        return [(ids, torch.stack(states[: len(ids)])[:, row]) for row, ids in enumerate(cut)]

    def _read(
        self,
        ids: torch.Tensor,
        start: int,
        padding: torch.Tensor,
        mask: torch.Tensor,
        cache: torch.Tensor,
    ) -> torch.Tensor:
        """One pass over ids [rows, n] at `start` -> the last position's hidden states [rows, H]."""
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
            x = layer.down.plus(layer.gate_up(h), x)
        return x.view(rows, n, -1)[:, -1]


def _cut(row: list[int], ends: list[bool]) -> list[int]:
    return row[: ends.index(True) + 1] if True in ends else row


def prompt_parts() -> dict[str, list[str]]:
    import yaml

    found: dict[str, list[str]] = yaml.safe_load(
        (Path(__file__).parent / "prompts.yaml").read_text(encoding="utf-8")
    )
    return found


def templated_prompts(seed: int) -> dict[str, str | None]:
    """Templated user turn -> "source" if its template is held out, else None; in random order."""
    parts, rng = prompt_parts(), random.Random(seed)
    topics = parts["topics"]

    def filled(templates: Sequence[str]) -> list[str]:
        return [x.format(t=topic, u=rng.choice(topics)) for topic in topics for x in templates]

    found = filled(parts["topic_templates"])
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
    pairs: list[tuple[str, str | None]] = [(p, None) for p in found]
    # One in ten of the held-out templates' prompts is enough to measure with.
    pairs += [(p, "source") for p in filled(parts["held_out_topic_templates"])[::10]]
    rng.shuffle(pairs)
    return dict(pairs)


def own_prompts(
    writer: BatchWriter, tokenizer: Tokenizer, seed: int, seen: Collection[str]
) -> Iterator[tuple[str, str | None]]:
    """Endless user turns that the target writes after an opener, as (turn, held out).

    UserError if the chat template hides the user's text.
    """
    conversation = tokenizer.chat([{"role": "user", "content": "|"}])
    text = tokenizer.decode(conversation)
    if "|" not in text:
        raise UserError("distil: the chat template hides the user's text; no own prompts possible")
    start = conversation[: conversation.index(tokenizer.encode("|", special=False)[0])]
    parts = prompt_parts()
    kept_out = set(parts["held_out_openers"])
    openers = [*parts["openers"], *kept_out]
    rng, made = random.Random(seed), set(seen)
    for batch in range(10**6):
        begun = [rng.choice(openers) for _ in range(BATCH)]
        ids = [tokenizer.encode(opener, special=False) for opener in begun]
        sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed + batch)
        written = writer.write([start + i for i in ids], PROMPT_STEPS, sampling)
        for opener, head, tail in zip(begun, ids, written, strict=True):
            prompt = tokenizer.decode(head + tail).strip()
            if tail[-1] in writer.end_ids.tolist() and len(prompt) > 8 and prompt not in made:
                made.add(prompt)
                yield prompt, "source" if opener in kept_out else held_out_prompt(prompt)


def held_out_prompt(prompt: str) -> str | None:
    digest = hashlib.sha256(prompt.encode()).digest()
    return "prompt" if digest[0] < HELD_OUT_BYTES else None


def read_text(path: Path) -> list[dict[str, Any]]:
    """The lines of a text file, gzipped or not; a last line that an interrupt cut off is dropped.
    UserError for any other line without a prompt, and for a file that cannot be read."""
    rows = []
    for line in read_lines(path, "text", torn=True, blank=True):
        try:
            row = parse_json(line.text)
        except JsonError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("prompt"), str):
            rows.append(row)
        elif line.whole:
            raise UserError(f'{path}:{line.number}: no object with "prompt"; mend or remove it')
    return rows


def open_states(out: Path, rows: Sequence[dict[str, Any]], width: int) -> GrowingFile:
    """OUT.states, cut to the states of `rows`. UserError if too short."""
    path = out.with_name(out.name + ".states")
    file = GrowingFile(path, lines=False)
    size = sum(len(row["response_ids"]) for row in rows) * width * 2
    if file.size < size:
        file.close()
        raise UserError(f"distil: {path} is shorter than {out} needs; remove both and start anew")
    file.cut(size)
    return file


def _packed(out: Path, rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as bytes to append to OUT; a gzipped file may consist of several members."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(data) if out.suffix == ".gz" else data


def write_text(
    out: Path,
    target: Path,
    *,
    count: int,
    own: float,
    tokens: int,
    seed: int,
    without: Sequence[Path] = (),
) -> Iterator[tuple[int, float]]:
    """Write `count` prompts with their answers to OUT, after those that it already holds.

    own      share of the target's own prompts; the others are templated
    tokens   maximum of new tokens per answer
    without  text or prompt files whose prompts are not used
    Yields (answers in OUT, tokens per second) after every batch.
    """
    writer, tokenizer = BatchWriter(target), Tokenizer(target)
    rows = read_text(out) if out.exists() else []
    states = open_states(out, rows, writer.config.hidden_size)
    known = {row["prompt"] for path in [*without, BENCHMARK] for row in read_text(path)}
    known |= {row["prompt"] for row in rows}
    templated = (pair for pair in templated_prompts(seed).items() if pair[0] not in known)
    made = own_prompts(writer, tokenizer, seed + len(rows), known)
    began, written, rng = time.monotonic(), 0, random.Random(seed + len(rows))
    # Rewrite them, because a truncated gzip cannot be appended to, and not in place.
    write_whole(out, _packed(out, rows), "distil")
    with GrowingFile(out, lines=False) as file, states:
        for start in range(len(rows), count, BATCH):
            batch = []
            for _ in range(min(BATCH, count - start)):
                pair = next(templated, None) if rng.random() >= own else None
                batch.append(pair or next(made))
            ids = [tokenizer.chat([{"role": "user", "content": p}]) for p, _ in batch]
            answers = writer.write_with_states(ids, tokens)
            new = [
                {"prompt": prompt, "response_ids": answer}
                | ({"held_out": held_out} if held_out else {})
                for (prompt, held_out), (answer, _) in zip(batch, answers, strict=True)
            ]
            raw = (state.bfloat16().view(torch.int16).numpy().tobytes() for _, state in answers)
            try:
                states.append(b"".join(raw))
                file.append(_packed(out, new))
            except OSError as error:
                raise UserError(
                    f"distil: cannot write {out} ({error.strerror}); what it holds is whole: make "
                    "space and run again"
                ) from None
            written += sum(len(answer) for answer, _ in answers)
            yield start + len(batch), written / (time.monotonic() - began)
