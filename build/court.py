"""Write labelled answers for the judge: answers as tokens, each good, bad or not to be used.

    python build/court.py --target cache:smollm2-135m-instruct --out cache:court.jsonl

The labels that the shipped judge is trained on come from mine_labels.py; these are what it is
reported on (docs/quality.md says why).

Two kinds of records, in the style of the paper's TokenCourt (question, correct answer, wrong
answer, the error located):

facts  questions whose answer is known (court_facts.py), answered rightly in several wordings
       and wrongly with exactly one mistake, whose tokens are marked
chat   the target's own greedy answers to ordinary requests, and answers sampled from it: prose
       that is good though often not the target's first choice; and greedy answers with single
       tokens replaced by ones that fit the word before but not the text

The split is by fact: all questions about one country or element are trained on, or held out.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated

import typer
from court_facts import Question, questions
from court_split import split_in, split_of

from judge_decoding.config import cache_folder
from judge_decoding.decoding import SpeculativeDecoder
from judge_decoding.engine.base import Acceptance, Sampling
from judge_decoding.engine.torch_engine import TorchTarget, load_target
from judge_decoding.errors import UserError
from judge_decoding.labels import (
    AFTER_ERROR_ORIGIN,
    AfterError,
    LabelRecord,
    Span,
    after_error_label,
    write_labels,
)
from judge_decoding.sequence import Request
from judge_decoding.text import Tokenizer

LEADS = ("", "", "", "Sure! ", "Good question. ", "Of course. ", "The answer is simple. ")
TAILS = ("", "", " I hope this helps!", " Let me know if you would like to know more.")
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


def fact_records(
    asked: Iterable[Question],
    tokenizer: Tokenizer,
    *,
    seed: int,
    answers: int,
    after_error: AfterError,
) -> Iterator[LabelRecord]:
    """`answers` correct and as many wrong answers a question."""
    for q in asked:
        rng = random.Random(f"{seed} {q.prompt}")
        # The first sentence is the target's habit, where a draft's mistakes will be: always there.
        styles = [q.sentences[0], *rng.sample(q.sentences[1:], len(q.sentences) - 1)]
        for n in range(answers):
            style = styles[n % len(styles)]
            lead, tail = (rng.choice(LEADS), rng.choice(TAILS)) if n else ("", rng.choice(TAILS))
            right = spell(lead, style, q.answer, tail)
            ids = tokenizer.encode(right, special=False)
            name = hashlib.sha256(f"{q.prompt} {n}".encode()).hexdigest()[:12]
            common = {
                "group": q.group,
                "domain": q.domain,
                "prompt": q.prompt,
                "split": split_in(q.domain, q.group, seed),
            }
            yield LabelRecord(
                id=f"{name}-right",
                response=right,
                response_ids=ids,
                spans=[Span(start=0, end=len(ids), label="good", origin="correct")],
                **common,
            )
            mistake = q.wrong[n % len(q.wrong)]
            wrong = spell(lead, style, mistake, tail)
            wrong_ids = tokenizer.encode(wrong, special=False)
            until = len(lead) + style.index("{a}") + len(mistake)
            spans = mistake_spans(wrong_ids, ids, until, tokenizer, after_error)
            if spans:
                yield LabelRecord(
                    id=f"{name}-wrong",
                    response=wrong,
                    response_ids=wrong_ids,
                    spans=spans,
                    **common,
                )


def spell(lead: str, sentence: str, answer: str, tail: str) -> str:
    if sentence.startswith("{a}"):
        answer = answer[0].upper() + answer[1:]
    return lead + sentence.replace("{a}", answer) + tail


def mistake_spans(
    wrong: Sequence[int],
    right: Sequence[int],
    until: int,
    tokenizer: Tokenizer,
    after_error: AfterError,
) -> list[Span]:
    """The mistake runs from the first token that differs from the right answer's to the wrong
    answer's last character, number `until` of the text. [] where no token within it differs."""
    start = 0
    while start < min(len(wrong), len(right)) and wrong[start] == right[start]:
        start += 1
    end = start
    while len(tokenizer.decode(wrong[:end]).rstrip("\ufffd")) < until:
        end += 1
    if start == end:  # "12" for "120": the error is in what follows, not in a token of its own
        return []
    spans = [Span(start=start, end=end, label="bad", origin="error")]
    if start:
        spans.insert(0, Span(start=0, end=start, label="good", origin="before_error"))
    if end < len(wrong):
        label = after_error_label(after_error)
        spans.append(Span(start=end, end=len(wrong), label=label, origin=AFTER_ERROR_ORIGIN))
    return spans


def answer_all(
    target: TorchTarget,
    prompts: Sequence[Sequence[int]],
    sampling: Sequence[Sampling],
    max_tokens: int,
) -> list[list[int]]:
    """The target's own answers, without their end token."""
    from rich.progress import Progress

    decoder = SpeculativeDecoder(None, target)
    answers: list[list[int]] = [[] for _ in prompts]
    numbers: dict[int, int] = {}
    waiting = list(reversed(range(len(prompts))))
    with Progress() as progress:
        task = progress.add_task("answers", total=len(prompts))
        while waiting or decoder.num_active:
            while waiting and decoder.num_active < target.max_sequences:
                index = waiting.pop()
                rule = Acceptance(rule="none")
                request = Request(list(prompts[index]), max_tokens, rule, sampling[index])
                numbers[decoder.add(request)] = index
            for update in decoder.step():
                answers[numbers[update.sequence]] += [t.id for t in update.tokens]
                progress.advance(task, int(update.finish_reason is not None))
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
    from rich.progress import track

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
    for n, prompt in enumerate(track(prompts, description="mistakes")):
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


def resolve(path: str) -> Path:
    if path.startswith("cache:"):
        return cache_folder() / path.removeprefix("cache:")
    return Path(path).expanduser()


def main(
    target: Annotated[str, typer.Option(help="Hugging Face Llama folder")] = (
        "cache:smollm2-135m-instruct"
    ),
    out: Annotated[str, typer.Option(help="JSONL file to write")] = "cache:court.jsonl",
    seed: int = 0,
    limit: Annotated[int, typer.Option(min=0, help="questions, 0 for all")] = 0,
    answers: Annotated[int, typer.Option(min=1, help="right and wrong ones a question")] = 2,
    chat: Annotated[int, typer.Option(min=0, help="ordinary requests to answer")] = 240,
    chat_tokens: Annotated[int, typer.Option(min=8)] = 56,
    after_error: Annotated[str, typer.Option(help="negative, ignore or error_only")] = "ignore",
    dtype: str = "bfloat16",
) -> None:
    try:
        if after_error not in ("negative", "ignore", "error_only"):
            raise UserError(f"--after-error: {after_error!r} is not negative, ignore or error_only")
        folder = resolve(target)
        tokenizer = Tokenizer(folder)
        records = list(
            fact_records(
                questions(seed)[: limit or None],
                tokenizer,
                seed=seed,
                answers=answers,
                after_error=after_error,
            )  # type: ignore[arg-type]
        )
        if chat:
            engine = load_target(folder, dtype=dtype, max_sequences=8, max_context=512)
            records += chat_records(
                engine, tokenizer, seed=seed, count=chat, max_tokens=chat_tokens
            )
        write_labels(resolve(out), records)
    except UserError as error:
        raise SystemExit(f"court: {error}") from None
    counts = Counter((r.domain, r.split) for r in records)
    for domain in sorted({r.domain for r in records}):
        train, heldout = counts[domain, "train"], counts[domain, "heldout"]
        print(f"{domain:15} {train:5} answers to train on, {heldout:4} held out")
    labels = Counter(label for r in records for label, _ in r.token_labels())
    print(f"{out}: {len(records)} answers, tokens {dict(labels)}")


if __name__ == "__main__":
    typer.run(main)
