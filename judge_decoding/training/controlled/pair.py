"""The controlled pair: a small target that can do the task, and a draft that sometimes errs.

Both are Llamas trained from scratch on text of the controlled task, each in its own writer's
wording, with a loss only on the answers. Muon trains the matrices, AdamW the embeddings and norms.
The target reads text without slips first and with slips later. Both folders hold the same
tokenizer: every word and every number is one token.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from judge_decoding.checkpoint import HEAD, Checkpoint, save_tensors
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import load_target
from judge_decoding.training.controlled.task import (
    MAX_TOKENS,
    Problem,
    first_false,
    make_problem,
    problems,
    write,
)
from judge_decoding.training.controlled.wordings import PUNCTUATION, vocabulary, words_of

SPECIAL = ("<unk>", "<|end|>", "<|user|>", "<|assistant|>")
UNKNOWN, END, USER, ASSISTANT = range(4)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 512
WARM_UP = 50  # steps
TEST_SEED = 2
IGNORED = -100


@dataclass(frozen=True)
class PairRecipe:
    """Size and training of one model. `slips_from` is the share of the steps whose text has no
    slips yet; `autocast` computes in bfloat16, which makes products seven times as slow on a CPU
    without AVX-512."""

    writer: str
    hidden: int
    layers: int
    heads: int
    inner: int
    steps: int
    problems: int
    rate: float
    slips_from: float
    seed: int
    autocast: bool


RECIPES = {
    "target": PairRecipe("target", 128, 4, 4, 320, 2000, 24, 5e-3, 0.2, 0, False),
    "draft": PairRecipe("draft", 96, 2, 3, 256, 600, 24, 5e-3, 1.0, 1, True),
}


def make_tokenizer(folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`. The tokens are words, each with the
    space before it, and punctuation marks."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    words = [word if word in PUNCTUATION else " " + word for word in vocabulary()]
    ids = {word: i for i, word in enumerate([*SPECIAL, *words])}
    fast = Fast(models.WordLevel(ids, unk_token=SPECIAL[UNKNOWN]))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]"), "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[UNKNOWN],
        "eos_token": SPECIAL[END],
        "pad_token": SPECIAL[END],
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


class Example(NamedTuple):
    """A prompt and its answer as ids; the end token is part of the answer."""

    prompt: list[int]
    answer: list[int]


class Encoder:
    """Maps words to ids without calling the tokenizer for every example."""

    def __init__(self) -> None:
        self._ids = {word: i for i, word in enumerate(vocabulary(), len(SPECIAL))}
        self.size = len(SPECIAL) + len(self._ids)

    def __call__(self, words: Sequence[str]) -> list[int]:
        return [self._ids[word] for word in words]

    def example(self, problem: Problem, writer: str, rng: random.Random, slips: bool) -> Example:
        prompt = [USER, *self(words_of(problem.question)), END, ASSISTANT]
        return Example(prompt, [*self(write(problem, writer, rng, slips=slips)), END])


def batches(recipe: PairRecipe, encoder: Encoder) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (ids, labels) int64 [problems, T] for every step; the problems of a batch have the
    same number of changes."""
    rng = random.Random(recipe.seed)
    waiting: dict[int, list[Problem]] = {}
    for step in range(recipe.steps):
        slips = step >= recipe.slips_from * recipe.steps
        while True:
            problem = make_problem(rng)
            if problem.held_out:
                continue
            same = waiting.setdefault(len(problem.changes), [])
            same.append(problem)
            if len(same) == recipe.problems:
                break
        waiting[len(problem.changes)] = []
        examples = [encoder.example(p, recipe.writer, rng, slips) for p in same]
        yield collate(examples)


def collate(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels) of a batch; labels are the next ids.

    Padding is on the right, so causal attention needs no mask, and to a multiple of 32, since
    kernels are compiled for every new shape.
    """
    longest = -(-max(len(e.prompt) + len(e.answer) for e in examples) // 32) * 32
    ids = torch.full((len(examples), longest), END)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, (prompt, answer) in enumerate(examples):
        text = prompt + answer
        ids[row, : len(text) - 1] = torch.tensor(text[:-1])
        labels[row, len(prompt) - 1 : len(text) - 1] = torch.tensor(answer)
    return ids, labels


def make_model(recipe: PairRecipe, vocab_size: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        initializer_range=0.05,
        rms_norm_eps=1e-5,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # twice as fast as fused at 128 positions on a CPU
    return model


def train(recipe: PairRecipe, model: Any, encoder: Encoder) -> Iterator[tuple[int, int, float]]:
    """Yields (steps done, answer tokens seen, loss) after every step. The schedule is a cosine."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=recipe.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    seen = 0
    for step, (ids, labels) in enumerate(batches(recipe, encoder), 1):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = recipe.rate * min(1.0, step / WARM_UP) * (0.02 + 0.98 * cosine)
        wanted = labels != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.autocast):
            logits = model.lm_head(model.model(input_ids=ids).last_hidden_state[wanted])
        loss = F.cross_entropy(logits.float(), labels[wanted])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += int(wanted.sum())
        yield step, seen, loss.item()


def save(model: Any, folder: Path) -> None:
    """Write a Llama folder in bfloat16, with the tokenizer."""
    make_tokenizer(folder)
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != HEAD  # tied to the embeddings
    }
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config["use_cache"] = True
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def accuracy(folder: Path, asked: Sequence[Problem]) -> dict[str, float]:
    """Greedy answers of a model alone, through the project's engine in bfloat16.

    `accuracy` is the share of right final numbers, `true` that of answers with no false word.
    """
    target = load_target(
        Checkpoint(folder), dtype="bfloat16", max_context=CONTEXT, max_sequences=32
    )
    tokenizer = Tokenizer(folder)
    decoder = SpeculativeDecoder(Engines(None, target), tokenizer=tokenizer)
    requests = [
        Request(
            tokenizer.chat([{"role": "user", "content": problem.question}]),
            MAX_TOKENS,
            Acceptance("none"),
        )
        for problem in asked
    ]
    texts = [words_of(result.text) for result in decoder.generate(requests)]
    right = [w[-2:-1] == [str(p.answer)] for p, w in zip(asked, texts, strict=True)]
    true = [first_false(p, w) is None for p, w in zip(asked, texts, strict=True)]
    return {"accuracy": sum(right) / len(asked), "true": sum(true) / len(asked)}


def train_model(
    which: str, folder: Path, *, before_slips: Path | None, steps: int | None, test: int
) -> dict[str, Any]:
    """Train `target` or `draft` into `folder`, and report its accuracy on `test` held-out problems.

    before_slips  folder for a copy of the target from before slips are mixed in
    steps         None: the recipe's
    Progress goes to stdout. UserError for any other name.
    """
    if which not in RECIPES:
        raise UserError(f"controlled pair: {which!r} is not one of {', '.join(RECIPES)}")
    recipe = RECIPES[which] if steps is None else replace(RECIPES[which], steps=steps)
    torch.manual_seed(recipe.seed)
    encoder = Encoder()
    model = make_model(recipe, encoder.size)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{which}: {parameters} parameters, {asdict(recipe)}", flush=True)
    began, seen = time.process_time(), 0
    for step, seen, loss in train(recipe, model, encoder):
        if step % 20 == 0:
            spent = time.process_time() - began
            print(f"step {step}, {spent:.0f} CPU s, {seen} tokens, loss {loss:.4f}", flush=True)
        if before_slips is not None and step == int(recipe.slips_from * recipe.steps):
            save(model, before_slips)
        if step % 200 == 0 or step == recipe.steps:
            save(model, folder)
    asked = list(itertools.islice(problems(TEST_SEED, held_out=True), test))
    found = accuracy(folder, asked)
    return asdict(recipe) | {
        "parameters": parameters,
        "answer_tokens_seen": seen,
        "cpu_seconds": round(time.process_time() - began),
        **found,
    }
