"""Temperature and filters, exactly."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from judge_decoding.decoding.contracts import Sampling
from judge_decoding.decoding.sampling import draw, greedy, probabilities

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def test_greedy_sampling_gives_the_plain_softmax() -> None:
    assert torch.equal(probabilities(LOGITS, Sampling()), LOGITS.softmax(-1))


def test_temperature_divides_the_logits() -> None:
    assert torch.allclose(probabilities(LOGITS, Sampling(0.5)), (LOGITS * 2).softmax(-1))


def test_top_k_keeps_the_k_best() -> None:
    expected = torch.tensor([2.0, 1.0]).softmax(-1)
    got = probabilities(LOGITS, Sampling(1.0, top_k=2))
    assert torch.allclose(got, torch.cat([expected, torch.zeros(2)]))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    p = torch.tensor([0.1, 0.5, 0.3, 0.1])
    got = probabilities(p.log(), Sampling(1.0, top_p=0.7))
    assert torch.allclose(got, torch.tensor([0.0, 0.625, 0.375, 0.0]))
    one = probabilities(p.log(), Sampling(1.0, top_p=1e-9))
    assert torch.allclose(one, torch.tensor([0.0, 1.0, 0.0, 0.0]))


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=30), st.integers(0, 9), st.floats(0.05, 1))
def test_always_a_distribution(values: list[float], top_k: int, top_p: float) -> None:
    p = probabilities(torch.tensor(values), Sampling(0.8, top_k, top_p))
    assert abs(float(p.sum()) - 1) < 1e-5
    assert float(p.min()) >= 0


def test_greedy_takes_the_first_of_equals_in_any_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert greedy(torch.tensor([[1, 3, 3, 0], [5, 5, 1, 5]], dtype=dtype)).tolist() == [1, 0]


def test_draw_repeats_with_the_seed() -> None:
    draws = [draw(torch.rand(9), torch.Generator().manual_seed(s)) for s in (1, 1)]
    p = torch.tensor([0.0, 1.0, 0.0])
    assert len(draws) == 2
    assert draw(p, torch.Generator()) == 1
    same = [draw(torch.ones(50), torch.Generator().manual_seed(7)) for _ in range(3)]
    assert len(set(same)) == 1
