"""The requests of the golden answers: every rule, every end of an answer, several draft lengths."""

from __future__ import annotations

import json
from itertools import cycle
from typing import Any

QUESTIONS = [
    "Mia has 9 cards. On Monday she loses 2. On Tuesday she makes 3. On Wednesday she loses 2. "
    "How many cards does Mia have now?",
    "Nora has 15 books. Monday: she trades 3. Tuesday: she buys 4. Wednesday: she drops 3. "
    "Thursday: she buys 6. Friday: she trades 2. How many books does Nora have now?",
    "Carl has 6 beads. On Monday he loses 5. On Tuesday he wins 4. On Wednesday he donates 4. "
    "On Thursday he makes 6. What is the number of beads now?",
    "Ben has 2 books. On Monday he trades 2. On Tuesday he buys 4. On Wednesday he finds 3. "
    "On Thursday he donates 2. How many books does Ben have now?",
    "Ana has 7 shells. Monday: she collects 2. Tuesday: she donates 4. Wednesday: she wins 3. "
    "How many shells does Ana have now?",
    "Lena has 12 pens. On Monday she collects 6. On Tuesday she trades 6. On Wednesday she buys 3. "
    "How many pens does Lena have now?",
    "Rosa has 18 marbles. On Monday she drops 5. On Tuesday she buys 2. On Wednesday she donates "
    "6. On Thursday she trades 2. On Friday she donates 2. What is the number of marbles now?",
    "Omar has 17 pens. Monday: he trades 3. Tuesday: he buys 6. Wednesday: he donates 4. "
    "What is the number of pens now?",
]
"""Questions of the controlled task."""
TALK = json.dumps(
    [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": "Mia starts with 9 cards . So the answer is 8 ."},
        {"role": "user", "content": QUESTIONS[1]},
    ]
)

Values = dict[str, Any]


def _warm(temperature: float, seed: int, **changes: Any) -> Values:
    return {"temperature": temperature, "seed": seed} | changes


def _ends(rule: str) -> list[Values]:
    """Requests that end an answer in every way, for one rule."""
    return [
        {"acceptance_rule": rule, "max_tokens": 1},
        {"acceptance_rule": rule, "max_tokens": 7},
        {"acceptance_rule": rule, "stop_words": [" Tuesday"]},
        {"acceptance_rule": rule, "stop_words": ["is now", "which makes", "in all", "never in it"]},
        {"acceptance_rule": rule, "ignore_eos": True, "max_tokens": 90},
        {"acceptance_rule": rule, "min_tokens": 70, "max_tokens": 100},
    ]


STANDARD: list[Values] = [
    {"acceptance_rule": "none"},
    {"acceptance_rule": "none", "chat": False},
    {"acceptance_rule": "none", "stop_words": ["So the"]},
    {"acceptance_rule": "none"} | _warm(0.8, 3),
    {"acceptance_rule": "none"} | _warm(1.5, 4, top_k=8, top_p=0.9),
    *({"acceptance_rule": "strict", "max_draft_len": k} for k in (0, 1, 2, 5, 16)),
    {"acceptance_rule": "strict", "chat": False, "max_tokens": 40},
    {"acceptance_rule": "strict", "messages": TALK},
    *_ends("strict"),
    {"acceptance_rule": "rejection"},
    {"acceptance_rule": "rejection"} | _warm(0.4, 1),
    {"acceptance_rule": "rejection"} | _warm(1.0, 2),
    {"acceptance_rule": "rejection"} | _warm(1.0, 2, chat=False, max_tokens=40),
    {"acceptance_rule": "rejection"} | _warm(1.0, 2**62 + 7, max_draft_len=1),
    {"acceptance_rule": "rejection"} | _warm(1.0, 5, max_draft_len=4),
    {"acceptance_rule": "rejection"} | _warm(0.7, 6, top_p=0.9, max_draft_len=8),
    {"acceptance_rule": "rejection"} | _warm(1.0, 7, top_k=5),
    {"acceptance_rule": "rejection"} | _warm(1.5, 8, top_k=20, top_p=0.8),
    {"acceptance_rule": "rejection"} | _warm(2.5, 9, max_tokens=50),
    {"acceptance_rule": "rejection"} | _warm(2.5, 10, top_p=0.5, max_draft_len=3),
    {"acceptance_rule": "rejection"} | _warm(1.0, 11, stop_words=["Tuesday"]),
    {"acceptance_rule": "rejection"} | _warm(1.0, 12, ignore_eos=True, max_tokens=70),
    {"acceptance_rule": "rejection"} | _warm(1.0, 13, messages=TALK),
]
JUDGED: list[Values] = [
    {},  # the deployment's own rule and threshold
    *({"acceptance_rule": "judge", "judge_threshold": t} for t in (0.0, 0.2, 0.5, 0.8, 0.97, 1.0)),
    *({"acceptance_rule": "judge", "max_draft_len": k} for k in (1, 3, 8)),
    {"acceptance_rule": "judge", "judge_threshold": 0.3, "chat": False, "max_tokens": 40},
    {"acceptance_rule": "judge", "judge_threshold": 0.3, "messages": TALK},
    {"acceptance_rule": "judge"} | _warm(0.7, 21),
    {"acceptance_rule": "judge", "judge_threshold": 0.4} | _warm(1.2, 22, top_p=0.9),
    {"acceptance_rule": "judge", "judge_threshold": 0.9} | _warm(1.0, 23, top_k=6, max_draft_len=4),
    *_ends("judge"),
]
LOSSY: list[Values] = [
    *({"acceptance_rule": "topk", "max_draft_len": k} for k in (2, 8, 16)),
    {"acceptance_rule": "topk", "chat": False, "max_tokens": 40},
    {"acceptance_rule": "topk"} | _warm(1.0, 31, top_p=0.9),
    *({"acceptance_rule": "typical", "max_draft_len": k} for k in (2, 8, 16)),
    {"acceptance_rule": "typical"} | _warm(0.6, 32),
    {"acceptance_rule": "typical"} | _warm(1.3, 33, top_k=10, top_p=0.95, max_draft_len=5),
    {"acceptance_rule": "typical", "stop_words": ["Tuesday", "Wednesday"]},
    *({"acceptance_rule": "kl", "max_draft_len": k} for k in (2, 8, 16)),
    {"acceptance_rule": "kl"} | _warm(0.8, 34),
    {"acceptance_rule": "kl"} | _warm(1.3, 35, top_k=10, max_draft_len=5),
    {"acceptance_rule": "kl", "ignore_eos": True, "max_tokens": 90},
    *({"acceptance_rule": "fly", "max_draft_len": k} for k in (7, 10, 16)),
    {"acceptance_rule": "fly", "chat": False, "max_tokens": 60},
    {"acceptance_rule": "fly"} | _warm(0.8, 36),
    {"acceptance_rule": "synthetic", "seed": 41},
    {"acceptance_rule": "synthetic", "seed": 42, "max_draft_len": 2},
    {"acceptance_rule": "synthetic", "ignore_eos": True, "seed": 43, "max_tokens": 60},
    {"acceptance_rule": "synthetic"} | _warm(1.0, 44, max_tokens=60),
]
OTHER_PARAMETERS: list[Values] = [
    *({"acceptance_rule": rule} for rule in ("judge", "topk", "typical", "kl", "fly")),
    *({"acceptance_rule": rule} | _warm(1.0, 51) for rule in ("topk", "typical", "kl", "fly")),
    {"acceptance_rule": "judge", "judge_threshold": 0.0},
    {"acceptance_rule": "synthetic", "seed": 52},
    {"acceptance_rule": "synthetic", "seed": 53, "ignore_eos": True, "max_tokens": 50},
]
SCHEDULED: list[Values] = [
    {"acceptance_rule": "none", "max_tokens": 10},
    {"acceptance_rule": "strict"},
    {"acceptance_rule": "judge"},
    {"acceptance_rule": "judge", "judge_threshold": 0.2, "max_draft_len": 4},
    {"acceptance_rule": "rejection", "max_tokens": 30} | _warm(1.0, 61),
    {"acceptance_rule": "topk", "max_tokens": 20},
    {"acceptance_rule": "typical"},
    {"acceptance_rule": "kl", "max_tokens": 40},
    {"acceptance_rule": "fly"},
    {"acceptance_rule": "synthetic", "seed": 62},
    {"acceptance_rule": "strict", "max_tokens": 9},
    {"acceptance_rule": "judge"} | _warm(1.0, 63),
]
DEMO: list[Values] = [
    {"text_input": "What is the capital of Norway?", "acceptance_rule": "strict"},
    {"text_input": "Write a two-line poem about the sea.", "acceptance_rule": "judge"},
    {
        "text_input": "List three uses of copper.",
        "acceptance_rule": "judge",
        "judge_threshold": 0.3,
        "stop_words": ["2."],
    },
    {"text_input": "Reply with five emojis: ☀️ 🌊 🐟", "acceptance_rule": "typical"},
    {"text_input": "Translate 'cheese' to French.", "acceptance_rule": "rejection"}
    | _warm(0.7, 71, top_p=0.9),
    {"text_input": "The capital of France is", "chat": False, "acceptance_rule": "kl"},
    {"text_input": "Once upon a time", "chat": False, "acceptance_rule": "none"},
    {"text_input": "Why is the sky blue?", "acceptance_rule": "topk", "max_draft_len": 2},
]


def groups() -> list[Values]:
    """The groups without answers. `ways` are alone (one by one), together (eight at a time, in this
    process) and served (by Triton and MPI ranks, with the unchanged deployment file)."""
    controlled = "configs/controlled.yaml"
    parameters = {
        "rule": "typical",
        "top_k": 2,
        "typical_epsilon": 0.3,
        "typical_delta": 0.6,
        "kl_tau": 1.0,
        "kl_confident": 0.99,
        "fly_entropy": 0.1,
        "fly_window": 2,
        "synthetic_length": 2.5,
        "protect_end_ids": False,
    }
    schedule = {"draft_len_schedule": {3: 12, 5: 6, 7: 3}}
    both, scheduled = ["alone", "together"], _asked(SCHEDULED)
    return [
        _group("standard", controlled, {}, [*both, "served"], _asked(STANDARD)),
        _group("judged", controlled, {}, [*both, "served"], _asked(JUDGED)),
        _group("lossy", controlled, {}, [*both, "served"], _asked(LOSSY)),
        _group(
            "parameters", controlled, {"acceptance": parameters}, both, _asked(OTHER_PARAMETERS)
        ),
        # A schedule makes an answer depend on how many sequences are active.
        _group("schedule, one active", controlled, schedule, ["alone"], scheduled),
        _group("schedule, eight active", controlled, schedule, ["together"], scheduled),
        _group(
            "demo",
            "configs/demo.yaml",
            {"dtype": "float32", "draft_len_schedule": {}},
            both,
            [{"chat": True, "max_tokens": 32} | values for values in DEMO],
        ),
    ]


def _asked(table: list[Values]) -> list[Values]:
    """Requests with the next question each, as a chat of up to 120 tokens unless they say
    otherwise.

    `text_input` is the server's only required input."""
    return [
        ({"text_input": ""} if "messages" in values else {"text_input": question, "chat": True})
        | {"max_tokens": 120}
        | values
        for values, question in zip(table, cycle(QUESTIONS))
    ]


def _group(
    name: str, config: str, settings: Values, ways: list[str], requests: list[Values]
) -> Values:
    return {
        "name": name,
        "config": config,
        "settings": settings,
        "ways": ways,
        "requests": requests,
    }
