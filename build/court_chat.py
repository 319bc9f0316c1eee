"""Court labels of prose: the target's own answers to ordinary requests, and some spoilt ones."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise, product

from court_split import split_of

from judge_decoding.console import progress, track
from judge_decoding.decoding import SpeculativeDecoder
from judge_decoding.engine.base import Acceptance, Sampling
from judge_decoding.engine.round import Engines
from judge_decoding.engine.torch_engine import TorchTarget
from judge_decoding.labels import LabelRecord, Span
from judge_decoding.sequence import Request
from judge_decoding.text import Tokenizer

CORRUPT_EVERY = 10
CORRUPT_LOGPROB = -6.0
"""A replaced token counts as a mistake only where the target finds it this unlikely."""

_TOPICS = (
    "a healthy breakfast, learning the guitar, saving money, a weekend in the mountains, growing "
    "tomatoes, how rainbows form, better sleep, a job interview, training a puppy, the water "
    "cycle, public speaking, packing for a trip, reading more books, baking bread, recycling at "
    "home, a birthday party, running for beginners, making new friends, electric cars, the "
    "history of chess, studying for an exam, houseplants, working from home, honey bees"
)
_REQUESTS = (
    "Give me three tips about {}.",
    "Write a short paragraph about {}.",
    "Can you tell me something interesting about {}?",
    "I am new to this: {}. Where should I start?",
    "Write a friendly message to a colleague about {}.",
    "Why do people care about {}?",
    "Explain {} to a child.",
    "Write a short story that begins with {}.",
    "What are common mistakes with {}?",
    "Make a list of five questions about {}.",
    "What are the pros and cons of {}?",
    "Write the first lines of a blog post about {}.",
)


def chat_prompts(seed: int, count: int) -> list[str]:
    made = [r.format(t) for r, t in product(_REQUESTS, _TOPICS.split(", "))]
    random.Random(seed).shuffle(made)
    return made[:count]


def answer_all(
    target: TorchTarget,
    prompts: Sequence[Sequence[int]],
    sampling: Sequence[Sampling],
    max_tokens: int,
) -> list[list[int]]:
    """The target's own answers, without their end token."""
    decoder = SpeculativeDecoder(Engines(None, target))
    answers: list[list[int]] = [[] for _ in prompts]
    numbers: dict[int, int] = {}
    waiting = list(reversed(range(len(prompts))))
    with progress("answers") as step:
        while waiting or decoder.num_active:
            while waiting and decoder.num_active < target.max_sequences:
                index = waiting.pop()
                rule = Acceptance(rule="none")
                request = Request(list(prompts[index]), max_tokens, rule, sampling[index])
                numbers[decoder.add(request)] = index
            for update in decoder.step():
                answers[numbers[update.sequence]] += [t.id for t in update.tokens]
            step(len(prompts) - len(waiting) - decoder.num_active, len(prompts))
    return [[i for i in ids if i not in target.end_ids] for ids in answers]


def corrupt(ids: Sequence[int], successors: dict[int, list[int]], rng: random.Random) -> dict:
    """position -> another token seen after the same token elsewhere, about every tenth."""
    found: dict[int, int] = {}
    for at in range(rng.randrange(3, CORRUPT_EVERY), len(ids), CORRUPT_EVERY):
        others = [t for t in successors[ids[at - 1]] if t != ids[at]]
        if others:
            found[at] = rng.choice(others)
    return found


def chat_records(
    target: TorchTarget, tokenizer: Tokenizer, *, seed: int, count: int, max_tokens: int
) -> Iterator[LabelRecord]:
    prompts = chat_prompts(seed, count)
    ids = [tokenizer.chat([{"role": "user", "content": p}]) for p in prompts]
    greedy = answer_all(target, ids, [Sampling()] * count, max_tokens)
    nucleus = [Sampling(temperature=0.7, top_p=0.8, seed=seed + n) for n in range(count)]
    sampled = answer_all(target, ids, nucleus, max_tokens)
    followers: dict[int, Counter[int]] = defaultdict(Counter)
    for answer in greedy:
        for one, two in pairwise(answer):
            followers[one][two] += 1
    successors = {one: sorted(seen.elements()) for one, seen in followers.items()}
    rng = random.Random(seed)
    for n, prompt in enumerate(track(prompts, "mistakes")):
        group = f"chat:{prompt}"
        name = hashlib.sha256(group.encode()).hexdigest()[:12]
        common = {
            "group": group,
            "domain": "chat",
            "prompt": prompt,
            "split": split_of(group, seed),
        }
        for origin, answer in (("target", greedy[n]), ("sampled", sampled[n])):
            if answer:
                span = Span(start=0, end=len(answer), label="good", origin=origin)
                yield LabelRecord(
                    id=f"{name}-{origin}",
                    response=tokenizer.decode(answer),
                    response_ids=answer,
                    spans=[span],
                    **common,
                )
        answer = list(greedy[n])
        swaps = corrupt(answer, successors, rng)
        for at, token in swaps.items():
            answer[at] = token
        if not swaps:
            continue
        logprob = target.teacher_forced(ids[n], answer).logprob
        spans = [
            Span(start=at, end=at + 1, label="bad", origin="corrupted")
            for at in swaps
            if float(logprob[at]) < CORRUPT_LOGPROB
        ]
        if spans:
            yield LabelRecord(
                id=f"{name}-corrupted",
                response=tokenizer.decode(answer),
                response_ids=answer,
                spans=spans,
                **common,
            )
