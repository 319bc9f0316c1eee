"""Temperature and filters, computed exactly."""

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


def test_greedy_on_another_device_is_the_same_function() -> None:
    """On `meta`, which has no values: shape and dtype are those that a GPU would give."""
    got = greedy(torch.zeros(3, 5, device="meta"))
    assert (got.shape, got.dtype, got.device.type) == ((3,), torch.int64, "meta")


def test_filters_that_are_off_leave_every_bit() -> None:
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(1))
    for off in (Sampling(1.0), Sampling(1.0, top_k=300), Sampling(1.0, top_k=301)):
        assert torch.equal(probabilities(logits, off), logits.softmax(-1))


def test_top_k_1_is_one_token_and_ties_at_the_border_are_kept() -> None:
    got = probabilities(torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0]]), Sampling(1.0, top_k=1))
    assert got.tolist() == [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]


def test_top_p_stops_where_the_mass_is_reached_exactly() -> None:
    logits = torch.tensor([[0.0, 0.0, -200.0], [-200.0, 0.0, -200.0]])
    got = probabilities(logits, Sampling(1.0, top_p=0.5))
    assert sorted(got[0].tolist()) == [0.0, 0.0, 1.0] and got[1].tolist() == [0.0, 1.0, 0.0]


def test_every_row_has_its_own_filters() -> None:
    """As if each row stood alone, whatever the shape of the batch."""
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(2))
    for sampling in (Sampling(), Sampling(0.7), Sampling(0.7, 4), Sampling(0.7, 0, 0.6)):
        got = probabilities(logits, sampling)
        assert got.dtype == torch.float32
        for i, j in ((0, 0), (0, 2), (1, 1)):
            assert torch.allclose(got[i, j], probabilities(logits[i, j], sampling))
    assert probabilities(logits.bfloat16(), Sampling(1.0)).dtype == torch.float32


def test_draw_repeats_with_the_seed() -> None:
    assert draw(torch.tensor([0.0, 1.0, 0.0]), torch.Generator()) == 1

    def drawn(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [draw(torch.ones(50), generator) for _ in range(20)]

    assert drawn(7) == drawn(7)
    assert len(set(drawn(7))) > 5
    assert drawn(7) != drawn(8)
