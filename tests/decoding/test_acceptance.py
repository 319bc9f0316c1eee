"""Acceptance rules on hand-built logits: exact tokens, invariants, distributions."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from judge_decoding.decoding import acceptance as rules
from judge_decoding.decoding.contracts import Acceptance, Proposal, Sampling, VerifyRequest
from judge_decoding.decoding.sampling import probabilities
from judge_decoding.decoding.verdict import decide

V = 8


def rows(*winners: int, margin: float = 5.0) -> torch.Tensor:
    """Logits [len(winners), V] with the given argmax in each row."""
    logits = torch.zeros(len(winners), V)
    logits[torch.arange(len(winners)), torch.tensor(winners)] = margin
    return logits


class Decided(NamedTuple):
    """A `Verdict` without log-probabilities."""

    accepted: int
    overridden: list[bool]
    scores: list[float]
    next_token: int


def verdict(
    logits: torch.Tensor,
    draft: list[int],
    *,
    scores: list[float] | None = None,
    probs: torch.Tensor | None = None,
    vocab_ids: torch.Tensor | None = None,
    end_ids: tuple[int, ...] = (),
    sampling: Sampling | None = None,
    seed: int = 0,
    **acceptance: Any,
) -> Any:
    params = Acceptance(**acceptance)
    request = VerifyRequest(
        sequence=0,
        keep=0,
        tokens=[0],
        draft=Proposal(draft, probs, vocab_ids),
        sampling=sampling or Sampling(),
        acceptance=params,
    )
    threshold = 0.5 if params.threshold is None else params.threshold
    found = decide(
        request,
        logits,
        logits.argmax(-1),
        None if scores is None else torch.tensor(scores),
        threshold,
        end_ids,
        torch.Generator().manual_seed(seed),
    )
    assert found.logprobs == ()  # not asked for
    return Decided(*found[:4])


def test_strict_never_sometimes_always() -> None:
    logits = rows(1, 2, 3, 4)
    assert verdict(logits, [5, 2, 3])[:2] == (0, [])
    assert verdict(logits, [5, 2, 3]).next_token == 1
    assert verdict(logits, [1, 5, 3]) == (1, [False], [], 2)
    assert verdict(logits, [1, 2, 3]) == (3, [False] * 3, [], 4)


def test_no_draft_is_the_targets_own_token() -> None:
    assert verdict(rows(6), []) == (0, [], [], 6)


def test_judge_accepts_what_strict_refuses_and_says_so() -> None:
    logits = rows(1, 2, 3, 4)
    got = verdict(logits, [1, 5, 3], scores=[0.1, 0.9, 0.1], rule="judge")
    assert got.accepted == 3
    assert got.overridden == [False, True, False]
    assert got.scores == pytest.approx([0.1, 0.9, 0.1])
    assert got.next_token == 4


def test_judge_stops_at_the_first_token_that_neither_wants() -> None:
    got = verdict(rows(1, 2, 3, 4), [5, 6, 3], scores=[0.9, 0.2, 0.9], rule="judge")
    assert (got.accepted, got.overridden, got.next_token) == (1, [True], 2)


def test_judge_score_must_exceed_the_threshold() -> None:
    logits = rows(1, 2)
    assert verdict(logits, [5], scores=[0.5], rule="judge", threshold=0.5).accepted == 0
    assert verdict(logits, [5], scores=[0.51], rule="judge", threshold=0.5).accepted == 1


@given(
    logits=st.lists(st.integers(0, V - 1), min_size=1, max_size=6),
    draft=st.data(),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
)
@settings(max_examples=200, deadline=None)
def test_threshold_1_is_bit_identical_to_the_standard_rule(
    logits: list[int], draft: Any, seed: int, temperature: float
) -> None:
    k = len(logits) - 1
    tokens = draft.draw(st.lists(st.integers(0, V - 1), min_size=k, max_size=k))
    torch.manual_seed(seed)
    noisy = rows(*logits, margin=1.0) + torch.randn(k + 1, V)
    q = torch.rand(k, V).softmax(-1)
    sampling = Sampling(temperature)
    common: Any = {"probs": q, "sampling": sampling, "seed": seed}
    standard = verdict(noisy, tokens, rule="rejection" if temperature else "strict", **common)
    judged = verdict(noisy, tokens, scores=[1.0] * k, rule="judge", threshold=1.0, **common)
    assert judged[:2] == standard[:2]
    assert judged.next_token == standard.next_token


@given(
    standard=st.lists(st.booleans(), max_size=12),
    data=st.data(),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
)
def test_raising_the_threshold_never_lengthens_the_run(
    standard: list[bool], data: Any, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    size = len(standard)
    unit = st.floats(0, 1, width=32)
    scores = torch.tensor(data.draw(st.lists(unit, min_size=size, max_size=size)))
    ok = torch.tensor(standard, dtype=torch.bool)
    runs = [rules.accepted_length(rules.judge(ok, scores, t)) for t in (low, high)]
    assert runs[0] >= runs[1] >= rules.accepted_length(ok)


@given(ok=st.lists(st.booleans(), max_size=20))
def test_the_accepted_run_is_the_longest_true_prefix(ok: list[bool]) -> None:
    n = rules.accepted_length(torch.tensor(ok, dtype=torch.bool))
    assert all(ok[:n])
    assert n == len(ok) or not ok[n]


@pytest.mark.parametrize("rule", ["judge", "topk", "typical"])
def test_no_override_where_the_answer_ends(rule: Any) -> None:
    """A judged token where the target wants to end prolongs it; a judged end token shortens it."""
    flat = {"top_k": V, "typical_delta": 1.0, "typical_epsilon": 1e-6}
    logits = rows(7, 1, margin=0.1)
    common: Any = {"scores": [0.99], "rule": rule, **flat}
    assert verdict(logits, [3], end_ids=(7,), **common).accepted == 0
    assert verdict(rows(1, 1, margin=0.1), [7], end_ids=(7,), **common).accepted == 0
    assert verdict(logits, [3], end_ids=(7,), protect_end_ids=False, **common).accepted == 1
    assert verdict(logits, [3], end_ids=(), **common).accepted == 1


def test_a_drafted_end_token_that_the_target_wants_too_is_accepted() -> None:
    got = verdict(rows(7, 1), [7], end_ids=(7,), scores=[0.0], rule="judge")
    assert (got.accepted, got.overridden) == (1, [False])


def test_topk_counts_strictly_better_tokens() -> None:
    logits = torch.tensor([[3.0, 2.0, 2.0, 1.0]])
    expected = {0: 1, 1: 2, 2: 2, 3: 4}  # token -> the smallest k that takes it; 1 and 2 tie
    for token, k in expected.items():
        for limit in (1, 2, 3, 4):
            got = rules.topk(logits, torch.tensor([token]), limit)
            assert got.tolist() == [limit >= k]


def test_typical_is_the_minimum_of_both_borders() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    entropy = -sum(x * math.log(x) for x in p[0].tolist())
    border = min(0.09, 0.3 * math.exp(-entropy))
    for token in range(4):
        got = rules.typical(p, torch.tensor([token]), epsilon=0.09, delta=0.3)
        assert got.tolist() == [p[0, token].item() > border]
    assert rules.typical(p, torch.tensor([2]), epsilon=0.2, delta=10.0).tolist() == [False]


@pytest.mark.parametrize(("epsilon", "delta"), [(0.9, 0.3), (0.9, 0.5), (0.2, 0.9), (0.1, 0.9)])
def test_typical_borders_row_by_row(epsilon: float, delta: float) -> None:
    """Either bound decides, for each row by its own entropy; a token on the bound is refused."""
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.25] * 4, [0.85, 0.05, 0.05, 0.05]])
    for draft in itertools.product(range(4), repeat=3):
        expected = []
        for row, token in zip(p.tolist(), draft, strict=True):
            entropy = -sum(x * math.log(x) for x in row)
            expected.append(row[token] > min(epsilon, delta * math.exp(-entropy)) + 1e-7)
        assert rules.typical(p, torch.tensor(draft), epsilon, delta).tolist() == expected
    half = torch.tensor([[0.5, 0.5]])
    assert rules.typical(half, torch.tensor([0]), 0.5, 9.0).tolist() == [False]
    assert rules.typical(half, torch.tensor([0]), 0.5 - 1e-6, 9.0).tolist() == [True]


def test_topk_counts_each_row_by_itself() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 0.0, 2.0]])
    rank = [row.argsort(descending=True).tolist() for row in logits]
    for draft in itertools.product(range(4), repeat=3):
        for k in (1, 2, 3, 4):
            expected = [rank[i].index(token) < k for i, token in enumerate(draft)]
            assert rules.topk(logits, torch.tensor(draft), k).tolist() == expected


def test_rejection_and_strict_ask_each_row_by_itself() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    q = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.3, 0.4]])
    for draft in itertools.product(range(3), repeat=2):
        for u in itertools.product((0.0, 0.3, 0.6, 0.99), repeat=2):
            expected = [u[i] * q[i, d] < p[i, d] for i, d in enumerate(draft)]
            got = rules.rejection(p, q, torch.tensor(draft), torch.tensor(u))
            assert got.tolist() == expected
    choice, draft_ids = torch.tensor([1, 2, 3]), torch.tensor([1, 3, 3])
    assert rules.strict(choice, draft_ids).tolist() == [True, False, True]


def test_rejection_on_the_border_refuses() -> None:
    """A uniform of exactly p(d) / q(d) is not below the ratio."""
    p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    for u, expected in ((0.5, False), (0.5 - 1e-6, True)):
        got = rules.rejection(p, q, torch.tensor([0]), torch.tensor([u]))
        assert got.tolist() == [expected]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_kl_asks_each_row_by_itself(k: int) -> None:
    """The rows differ in distance, confidence and p(d)."""
    p = torch.tensor([[0.5, 0.5, 0.0], [0.95, 0.04, 0.01], [0.3, 0.3, 0.4], [0.2, 0.4, 0.4]])[:k]
    q = torch.tensor([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05], [0.98, 0.01, 0.01], [0.2, 0.4, 0.4]])[:k]
    for draft in itertools.product(range(3), repeat=k):
        expected = []
        for row, other, token in zip(p.tolist(), q.tolist(), draft, strict=True):
            distance = sum(a * math.log(a / b) for a, b in zip(row, other, strict=True) if a > 0)
            expected.append(distance < 0.3 and max(row) <= 0.9 and row[token] > 0)
        assert kl(p, q, list(draft)) == expected


def test_kl_on_a_short_list_asks_each_row_by_itself() -> None:
    """Each row of the target is renormalised on the list: 0.8 and 0.5 of it are there."""
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.4, 0.1, 0.4]])
    q = torch.tensor([[0.625, 0.375, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0]])
    assert kl(p, q, [1, 1], support=[0, 1], tau=1e-4) == [True, True]
    assert kl(p, q.flip(0), [1, 1], support=[0, 1], tau=1e-4) == [False, False]
    assert kl(p, q, [0, 3], support=[0, 1, 3], tau=1e-4) == [True, False]
    # `confident` is about the whole vocabulary: 0.4, where the list has 0.8.
    assert kl(p, q, [1, 1], support=[0, 1], tau=1e-4, confident=0.45) == [False, True]


def test_kl_on_its_borders() -> None:
    """A confidence equal to `confident` is not above it; a distance of tau is not below it."""
    p = torch.tensor([[0.75, 0.25]])
    assert kl(p, p, [1], confident=0.75) == [True]
    assert kl(p, p, [1], confident=0.75 - 1e-6) == [False]
    assert kl(p, p, [1], tau=0.0) == [False]


def kl(
    p: torch.Tensor,
    q: torch.Tensor,
    draft: list[int],
    *,
    support: list[int] | None = None,
    tau: float = 0.3,
    confident: float = 0.9,
) -> list[bool]:
    """Rule `kl` without filters."""
    ids = None if support is None else torch.tensor(support)
    return rules.kl(p, p, q, torch.tensor(draft), ids, tau, confident).tolist()


def test_kl_gate() -> None:
    p = torch.tensor([[0.6, 0.4, 0.0], [0.95, 0.05, 0.0], [0.6, 0.4, 0.0]])
    q = torch.tensor([[0.5, 0.4, 0.1], [0.95, 0.05, 0.0], [0.01, 0.01, 0.98]])
    # Close and unsure: open. Close but confident: strict. Far away: closed.
    assert kl(p, q, [1, 1, 1]) == [True, False, False]
    expected = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.4)
    assert kl(p[:1], q[:1], [1], tau=expected + 1e-5) == [True]
    assert kl(p[:1], q[:1], [1], tau=expected - 1e-5) == [False]


def test_kl_ignores_ids_that_a_short_list_cannot_write() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]])
    q = torch.tensor([[0.625, 0.375, 0.0]])
    assert kl(p, q, [1], support=[0, 1], tau=1e-4) == [True]
    assert kl(p, q, [1]) == [False]  # the third id is not missing from the list; q is far away


def test_kl_refuses_what_the_target_cannot_write() -> None:
    """Regression: with a q of few ids, the renormalised p was 0 or 1 there, with no distance."""
    one_hot = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert kl(torch.tensor([[1e-6, 0.5, 0.5, 0.0]]), one_hot, [0]) == [False]
    disjoint = torch.tensor([[0.0, 0.5, 0.5, 0.0]]), torch.tensor([[0.6, 0.0, 0.0, 0.4]])
    assert kl(*disjoint, [0]) == [False]
    # They are close, but p(d) is 0.
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.45, 0.45, 0.1]])
    assert kl(p, q, [2]) == [False]
    assert kl(p, q, [1]) == [True]


def test_kl_refuses_where_the_target_has_nothing_on_the_short_list() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    assert kl(p, q, [2], support=[2, 3]) == [False]


def test_kl_takes_what_underflowed_for_little() -> None:
    """At low temperatures q is 0 for ids with p = 1e-30; the distance must stay finite."""
    p, q = torch.tensor([[0.5, 0.5, 1e-30]]), torch.tensor([[0.5, 0.5, 0.0]])
    assert kl(p, q, [1], tau=1e-4) == [True]


TOP_2 = Sampling(temperature=1.0, top_k=2)


def test_kl_compares_the_models_and_not_their_filters() -> None:
    """Regression: two close models have the top two {0, 1} and {0, 2}; p was taken on {0} only, and
    2 was accepted. On the two top twos themselves the distance would be infinite, and 1 refused."""
    target = torch.tensor([[2.0, 1.0, 0.9, *[-5.0] * 5]] * 2)  # 0.58, 0.21, 0.19; of two 0.73, 0.27
    close = torch.tensor([[1.6, 1.3, 1.4, *[-5.0] * 5]])
    q = probabilities(close, TOP_2.unfiltered)
    # The target's own 0.58 counts for `confident`.
    common: Any = {"rule": "kl", "sampling": TOP_2, "kl_confident": 0.65}
    got = [verdict(target, [1], probs=q, seed=seed, **common) for seed in range(20)]
    assert [one.accepted for one in got] == [1] * 20
    assert [True] in [one.overridden for one in got]  # not by the standard rule alone
    far = probabilities(target[:1].roll(3, -1), TOP_2.unfiltered)
    for token, probs in ((2, q), (3, far)):  # filtered out; far away
        got = [verdict(target, [token], probs=probs, seed=seed, **common) for seed in range(20)]
        assert [one.accepted for one in got] == [0] * 20


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    sampling=st.sampled_from(
        [Sampling(1.0, top_k=2), Sampling(0.7, top_p=0.5), Sampling(0.2, 3, 0.9), Sampling(1.0)]
    ),
    filtered=st.booleans(),
    listed=st.booleans(),
    rule=st.sampled_from(["rejection", "kl", "typical"]),
)
def test_what_the_target_cannot_write_is_never_accepted(
    seed: int, spread: float, sampling: Sampling, filtered: bool, listed: bool, rule: str
) -> None:
    """However lenient the rule is, with any filter, and with or without a short-list."""
    torch.manual_seed(seed)
    logits = spread * torch.randn(2, V)
    ids = torch.tensor([0, 2, 3, 7]) if listed else torch.arange(V)
    own = sampling if filtered else sampling.unfiltered
    q = probabilities(logits[:1, ids] + torch.randn(1, len(ids)), own)
    p = probabilities(logits[0], sampling)
    lenient: Any = {"kl_tau": 1e6, "kl_confident": 1.0, "typical_epsilon": 1e-9}
    for token in ids.tolist():
        got = verdict(
            logits,
            [token],
            probs=q,
            vocab_ids=ids if listed else None,
            sampling=sampling,
            seed=seed,
            rule=rule,
            **lenient,
        )
        assert p[token] > 0 or got.accepted == 0
        if rule != "rejection" and p[token] > 1e-6:
            assert got.accepted == 1  # the rule was indeed lenient


def test_fly_needs_doubt_and_a_full_window_of_matches() -> None:
    flat, sharp = torch.full((1, V), 1 / V), rows(0, margin=20.0).softmax(-1)
    match = torch.tensor([False, True, True, True])
    assert rules.fly(flat.repeat(4, 1), match, 0.3, 2).tolist() == [True, True, False, False]
    assert rules.fly(flat.repeat(4, 1), match, 0.3, 3).tolist() == [True, False, False, False]
    assert rules.fly(flat.repeat(4, 1), match, 0.3, 4).tolist() == [False] * 4
    assert rules.fly(sharp.repeat(4, 1), match, 0.3, 2).tolist() == [False] * 4
    broken = torch.tensor([False, True, False, True])
    assert rules.fly(flat.repeat(4, 1), broken, 0.3, 2)[0].item() is False


def test_protected_ends_are_taken_back_one_by_one() -> None:
    """8 and 9 end an answer. Neither is judged, whether the target or the draft wants it."""
    choice, draft = torch.tensor([1, 8, 2, 3, 9]), torch.tensor([5, 6, 9, 7, 8])
    ok = torch.tensor([True, True, True, False, True])
    got = rules.protect_end(ok, choice, draft, [8, 9])
    assert got.tolist() == [True, False, False, False, False]
    assert rules.protect_end(ok, choice, draft, []).tolist() == ok.tolist()


@pytest.mark.parametrize(("mean", "uniform", "expected"), [(2.5, 0.4, 2), (2.5, 0.5, 3), (9, 0, 4)])
def test_synthetic_forces_the_asked_mean(mean: float, uniform: float, expected: int) -> None:
    assert rules.accepted_length(rules.synthetic(4, mean, uniform)) == expected


def test_fly_asks_the_three_best_tokens_and_those_that_follow() -> None:
    """The window looks at every token of a row, and must not run backwards."""
    flat = torch.full((5, V), 1 / V)
    match = torch.tensor([True, True, False, True, True])
    assert rules.fly(flat, match, 0.3, 1).tolist() == [True, False, True, True, False]
    assert rules.fly(flat, match, 0.3, 2).tolist() == [False, False, True, False, False]


def test_fly_measures_doubt_by_three_tokens() -> None:
    """For 0.5, 0.49, 0.01 the third hardly counts; for 0.4, 0.3, 0.3 two give only 0.68 nats."""
    match = torch.tensor([False, True])
    entropy = -sum(x * math.log(x) for x in (0.4, 0.3, 0.3))  # 1.089
    for p, border, doubt in (
        ([0.4, 0.3, 0.3, 0.0], entropy - 1e-3, True),
        ([0.4, 0.3, 0.3, 0.0], entropy + 1e-3, False),
        ([0.5, 0.49, 0.01, 0.0], 0.8, False),
        ([0.2, 0.15, 0.15, 0.5 / 3], entropy, True),  # renormalised: of four it would be 1.37
        ([0.2, 0.15, 0.15, 0.5 / 3], math.log(3), False),
        ([0.5, 0.5], math.log(2) - 1e-3, True),  # a vocabulary of two
        ([0.5, 0.5], math.log(2) + 1e-3, False),
    ):
        rows_of_p = torch.tensor([p, p])
        assert rules.fly(rows_of_p, match, border, 1).tolist() == [doubt, False], (p, border)


# ---- verdicts with greedy sampling: every row's own distribution counts ----

# Rows at temperature 1: unsure between 0 and 1; sure of 2; unsure of three; the bonus 3.
GREEDY = torch.tensor(
    [
        [0.46, 0.44, 0.06, 0.04],
        [0.02, 0.02, 0.94, 0.02],
        [0.35, 0.30, 0.30, 0.05],
        [0.10, 0.20, 0.20, 0.50],
    ]
).log()


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        ([1, 2, 2], (3, [True, False, True], [], 3)),
        ([1, 2, 3], (2, [True, False], [], 0)),  # 0.05 <= 0.09
        ([2, 2, 1], (0, [], [], 0)),  # 0.06 <= 0.09
        ([0, 1, 1], (1, [False], [], 2)),  # 0.02 <= 0.09, however flat the rows beside it
    ],
)
def test_typical_under_greedy_sampling(draft: list[int], expected: tuple[Any, ...]) -> None:
    assert verdict(GREEDY, draft, rule="typical") == expected


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        ([1, 2, 2], (3, [True, False, True], [], 3)),
        ([1, 0, 2], (1, [True], [], 2)),  # the target is confident: 0.94
        ([0, 2, 3], (3, [False, False, True], [], 3)),
    ],
)
def test_kl_under_greedy_sampling(draft: list[int], expected: tuple[Any, ...]) -> None:
    """A draft with the target's own distributions, row by row, has no distance."""
    assert verdict(GREEDY, draft, probs=GREEDY[:3].exp(), rule="kl") == expected


def test_kl_under_greedy_sampling_compares_row_by_row() -> None:
    """The draft's third row is the target's first, which is too far from the target's third."""
    q = GREEDY[[0, 1, 0]].exp()
    far = sum(p * math.log(p / d) for p, d in zip(*GREEDY[[2, 0]].exp().tolist(), strict=True))
    common: Any = {"probs": q, "rule": "kl"}
    assert verdict(GREEDY, [1, 2, 2], **common, kl_tau=far - 1e-3) == (2, [True, False], [], 0)
    assert verdict(GREEDY, [1, 2, 2], **common, kl_tau=far + 1e-3).accepted == 3


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        ([1, 2, 0], (3, [True, False, False], [], 3)),
        ([1, 2, 1], (0, [], [], 0)),  # the second token after it does not match
        ([0, 2, 1], (2, [False, False], [], 0)),  # nothing follows the last
        ([0, 1, 0], (1, [False], [], 2)),  # no doubt in the second row
    ],
)
def test_fly_under_greedy_sampling(draft: list[int], expected: tuple[Any, ...]) -> None:
    assert verdict(GREEDY, draft, rule="fly", fly_window=2, fly_entropy=0.5) == expected


def test_a_window_of_one_ends_with_the_draft() -> None:
    common: Any = {"rule": "fly", "fly_window": 1, "fly_entropy": 0.9}
    assert verdict(GREEDY, [0, 2, 1], **common).accepted == 2
    assert verdict(GREEDY[[0, 2, 1, 3]], [0, 1, 2], **common) == (3, [False, True, False], [], 3)


# ---- verdicts with sampling: each token by its own row ----


def one_hot(*tokens: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), V).float()


def test_the_correction_comes_from_the_refused_tokens_own_row() -> None:
    """Each row leaves one choice: 1 is accepted, 5 is refused, and p has only 2 in that row."""
    logits = one_hot(1, 2, 3, 4) * 200
    common: Any = {"rule": "rejection", "sampling": Sampling(1.0)}
    got = verdict(logits, [1, 5, 3], probs=one_hot(1, 5, 3), **common)
    assert got == (1, [False], [], 2)
    assert verdict(logits, [6, 2, 3], probs=one_hot(6, 2, 3), **common) == (0, [], [], 1)


def test_the_bonus_comes_from_the_row_after_the_last_drafted_token() -> None:
    logits = one_hot(1, 2, 3, 4) * 200
    got = verdict(
        logits, [1, 2, 3], probs=one_hot(1, 2, 3), rule="rejection", sampling=Sampling(1.0)
    )
    assert got == (3, [False] * 3, [], 4)


@pytest.mark.parametrize("seed", range(40))
def test_rejection_step_by_step(seed: int) -> None:
    """The algorithm again: k uniforms, one per token, then one draw from the residual or from p."""
    k = 3
    noise = torch.Generator().manual_seed(1000 + seed)
    logits = torch.randn(k + 1, V, generator=noise)
    q = torch.randn(k, V, generator=noise).softmax(-1)
    draft = torch.multinomial(q, 1, generator=noise)[:, 0].tolist()
    sampling = Sampling(0.9, top_p=0.95)
    got = verdict(logits, draft, probs=q, rule="rejection", sampling=sampling, seed=seed)

    p = probabilities(logits, sampling)
    own = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(k, generator=own).tolist()
    n = 0
    while n < k and uniforms[n] < float(p[n, draft[n]] / q[n, draft[n]]):
        n += 1
    left = (p[n] - q[n]).clamp_min(0) if n < k else p[k]
    assert (got.accepted, got.overridden) == (n, [False] * n)
    assert got.next_token == int(torch.multinomial(left / left.sum(), 1, generator=own))


def test_a_rule_that_draws_says_what_it_misses() -> None:
    request = VerifyRequest(0, 0, [0], Proposal([1]), Sampling(1.0))
    with pytest.raises(ValueError, match="rule strict: the draft came without probabilities"):
        decide(request, rows(1, 2), torch.tensor([1, 2]), None, 1.0, (), torch.Generator())
    empty = VerifyRequest(0, 0, [0], sampling=Sampling(1.0))
    with pytest.raises(ValueError, match="sampling needs the sequence's generator"):
        decide(empty, rows(1), torch.tensor([1]), None, 1.0, (), None)
    judged = VerifyRequest(0, 0, [0], Proposal([1]), acceptance=Acceptance(rule="judge"))
    with pytest.raises(ValueError, match="rule judge: no scores"):
        decide(judged, rows(1, 2), torch.tensor([1, 2]), None, 1.0, (), None)


def test_a_short_list_is_spread_over_the_vocabulary() -> None:
    """Tokens off the list have q = 0, so the residual keeps all of their p."""
    logits = one_hot(6, 1) * 200
    ids = torch.tensor([2, 5])
    got = verdict(
        logits,
        [5],
        probs=torch.tensor([[0.25, 0.75]]),
        vocab_ids=ids,
        rule="rejection",
        sampling=Sampling(1.0),
    )
    assert got == (0, [], [], 6)
    agreed = verdict(
        one_hot(5, 1) * 200,
        [5],
        probs=torch.tensor([[0.25, 0.75]]),
        vocab_ids=ids,
        rule="rejection",
        sampling=Sampling(1.0),
    )
    assert agreed == (1, [False], [], 1)


def test_synthetic_takes_the_mean_without_the_bonus() -> None:
    """A length of 3 means exactly two drafted tokens and the target's own."""
    got = verdict(rows(1, 2, 3, 4), [5, 2, 6], rule="synthetic", synthetic_length=3.0)
    assert got == (2, [True, False], [], 3)


P = torch.tensor([0.35, 0.25, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01])
Q = torch.tensor([0.05, 0.4, 0.05, 0.2, 0.1, 0.1, 0.05, 0.05])


def test_residual_is_the_normalised_positive_part() -> None:
    rest = (P - Q).clamp_min(0)
    assert torch.allclose(rules.residual(P, Q), rest / rest.sum())
    assert torch.equal(rules.residual(P, P), P)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.6, top_k=5), Sampling(1.3, 0, 0.8)])
def test_rejection_writes_the_targets_own_distribution(sampling: Sampling) -> None:
    """Chi-square test of the first emitted token against p, with a draft that draws from q."""
    runs = 20_000
    logits = P.log().unsqueeze(0).repeat(2, 1)
    p = probabilities(logits[0], sampling)
    generator = torch.Generator().manual_seed(1)
    drafts = torch.multinomial(Q.repeat(runs, 1), 1, generator=generator)[:, 0].tolist()
    request = [VerifyRequest(0, 0, [0], Proposal([d], Q.unsqueeze(0)), sampling) for d in range(V)]
    counts = torch.zeros(V)
    for drafted in drafts:
        got = decide(request[drafted], logits, logits.argmax(-1), None, 1.0, (), generator)
        counts[drafted if got.accepted else got.next_token] += 1
    possible = p > 0
    assert counts[~possible].sum() == 0
    assert (
        chisquare(counts[possible], p[possible].double() / p[possible].double().sum() * runs)[1]
        > 1e-3
    )


def test_the_chi_square_test_can_fail() -> None:
    """Accepting everything writes q, which the test above must notice."""
    generator = torch.Generator().manual_seed(1)
    drafts = torch.multinomial(Q.repeat(20_000, 1), 1, generator=generator)[:, 0]
    counts = torch.bincount(drafts, minlength=V)
    assert chisquare(counts, P.double() / P.double().sum() * 20_000)[1] < 1e-6


def test_rejection_accepts_with_probability_min_1_p_over_q() -> None:
    p, q = P.unsqueeze(0), Q.unsqueeze(0)
    for token in range(V):
        ratio = float(P[token] / Q[token])
        below, above = torch.tensor([min(ratio, 1.0) - 1e-4]), torch.tensor([ratio + 1e-4])
        assert rules.rejection(p, q, torch.tensor([token]), below).item() is True
        if ratio < 1:
            assert rules.rejection(p, q, torch.tensor([token]), above).item() is False
