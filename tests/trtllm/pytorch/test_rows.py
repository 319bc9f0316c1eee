"""The judge's arithmetic in PyTorch: exactly the plugin's NumPy reference, in one graph."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from judge_decoding.trtllm.pytorch.rows import RowRule, raise_judged
from plugins.judge_accept.reference import PluginSettings, judge_accept

V, PADDED, H = 12, 16, 4
END = 3
WEIGHT = torch.tensor([1.0, -2.0, 0.5, 4.0])
RULE = RowRule(bias=0.0625, threshold=0.5, vocab_size=V)


def edit(
    logits: Tensor,
    hidden: Tensor,
    ids: Tensor,
    lengths: list[int],
    rule: RowRule = RULE,
    **more: Any,
) -> Tensor:
    """The edited copy of `logits`."""
    edited = logits.clone()
    raise_judged(
        edited,
        hidden,
        ids,
        torch.tensor(lengths),
        **{"weight": WEIGHT, "end_ids": torch.tensor([END]), "rule": rule, **more},
    )
    return edited


def rows(*choices: int) -> Tensor:
    """Logits [n, PADDED]: 4 at each row's choice, 9 in the padding."""
    logits = torch.zeros(len(choices), PADDED)
    logits[:, V:] = 9
    logits[torch.arange(len(choices)), list(choices)] = 4
    return logits


def states(*liked: bool) -> Tensor:
    """States [n, H] whose scores are above or below one half."""
    return torch.tensor([[1.0 if like else -1.0, 0, 0, 0] for like in liked])


def test_one_request_by_hand() -> None:
    """Rows after tokens 5, 6, 7: the judge likes token 6 and not 7; the target wants 1 and 2."""
    logits = rows(1, 2, 8)
    edited = edit(logits, states(True, True, False), torch.tensor([5, 6, 7]), [3])
    expected = logits.clone()
    expected[0, 6] = 10004
    assert torch.equal(edited, expected)


def test_a_request_does_not_verify_the_next_ones_first_token() -> None:
    logits = rows(1, 2, 8, 9)
    edited = edit(logits, states(True, True, True, True), torch.tensor([5, 6, 7, 4]), [2, 2])
    expected = logits.clone()
    expected[0, 6] = expected[2, 4] = 10004
    assert torch.equal(edited, expected)


@pytest.mark.parametrize(("choice", "draft"), [(END, 6), (1, END)])
def test_end_ids_are_the_targets(choice: int, draft: int) -> None:
    logits, ids = rows(choice, 2), torch.tensor([5, draft])
    assert torch.equal(edit(logits, states(True, True), ids, [2]), logits)
    free = RowRule(bias=0.0625, threshold=0.5, vocab_size=V, protect_end_ids=False)
    assert edit(logits, states(True, True), ids, [2], free)[0].argmax() == draft


def test_no_end_ids() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert edit(rows(1, 2), states(True, True), torch.tensor([5, END]), [2], end_ids=none)[0, 3] > 4


def test_the_floor_is_on_the_targets_probability() -> None:
    """Token 6 has p = exp(1) / (exp(1) + exp(4) + 10) = 0.0404."""
    logits, ids = rows(1, 2), torch.tensor([5, 6])
    logits[0, 6] = 1
    for floor, judged in ((0.0403, True), (0.0405, False)):
        rule = RowRule(bias=0.0625, threshold=0.5, vocab_size=V, floor=floor)
        edited = edit(logits, states(True, True), ids, [2], rule)
        assert bool(edited[0].argmax() == 6) is judged


@pytest.mark.parametrize("state", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_not_judged(state: float) -> None:
    logits, hidden = rows(1, 2), states(True, True)
    hidden[1, 0] = state
    assert torch.equal(edit(logits, hidden, torch.tensor([5, 6]), [2]), logits)


def test_threshold_1_leaves_every_bit() -> None:
    rule = RowRule(bias=100.0, threshold=1.0, vocab_size=V)
    logits = torch.randn(6, PADDED)
    hidden, ids = torch.ones(6, H) * 100, torch.arange(6)
    assert torch.equal(edit(logits, hidden, ids, [6], rule), logits)


def test_float16_stays_finite() -> None:
    rule = RowRule(bias=0.0625, threshold=0.5, vocab_size=V, boost=3e4)
    logits = (rows(1, 2) * 12000).half()
    logits[:, V:] = 0
    edited = edit(logits, states(True, True), torch.tensor([5, 6]), [2], rule)
    assert edited[0, 6] == torch.finfo(torch.float16).max and edited[0].argmax() == 6


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """(context lengths, generation lengths, seed); a generation request may have no drafts."""
    contexts = draw(st.lists(st.integers(1, 5), max_size=3))
    generations = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return contexts, generations, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=150, deadline=None)
@given(batch=batches(), protect=st.booleans(), threshold=st.sampled_from([0.3, 0.5, 0.9]))
def test_equals_the_numpy_reference_over_mixed_batches(
    batch: tuple[list[int], list[int], int], protect: bool, threshold: float
) -> None:
    """Whole numbers and quarters make every sum exact, so that equal means equal bits. The engine
    sees a verify pass as a context request that has a row per token."""
    contexts, generations, seed = batch
    rng = np.random.default_rng(seed)
    ends = [0, *accumulate([*contexts, *generations])]
    first = ends[len(contexts)]
    positions = [end - 1 for end in ends[1 : len(contexts) + 1]] + list(range(first, ends[-1]))
    ids = rng.integers(-1, V + 3, ends[-1])
    logits = rng.integers(-3, 4, (len(positions), PADDED)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.01] = np.nan
    logits[rng.random(logits.shape) < 0.02] = -np.inf
    hidden = rng.integers(-4, 5, (len(positions), H)).astype(np.float32) / 4
    plugin = PluginSettings(
        weight=WEIGHT.numpy(),
        bias=0.0625,
        threshold=threshold,
        vocab_size=V,
        end_ids=(END,),
        protect_end_ids=protect,
    )
    wanted, _ = judge_accept(
        logits,
        hidden,
        ids,
        np.array(positions) + 1,
        np.array([*contexts, *generations]),
        plugin,
    )
    rule = RowRule(bias=0.0625, threshold=threshold, vocab_size=V, protect_end_ids=protect)
    count = ends[-1] - first
    edited = torch.from_numpy(logits.copy())
    edited[-count:] = edit(
        edited[-count:],
        torch.from_numpy(hidden[-count:]),
        torch.from_numpy(ids[first:]),
        generations,
        rule,
    )
    assert np.array_equal(edited.numpy(), wanted, equal_nan=True)


def arguments(device: str) -> tuple[list[Tensor], dict[str, Any]]:
    places = [
        rows(1, 2, 8, 9, 0).to(device),
        states(True, True, False, True, True).to(device),
        torch.tensor([5, 6, 7, 4, 2], dtype=torch.int32, device=device),
        torch.tensor([3, 2], dtype=torch.int32, device=device),
    ]
    rule = RowRule(bias=0.0625, threshold=0.5, vocab_size=V, floor=1e-4)
    weights = {"weight": WEIGHT.to(device), "end_ids": torch.tensor([END], device=device)}
    return places, {**weights, "rule": rule}


def test_one_graph_without_a_break() -> None:
    places, named = arguments("cpu")
    expected = [places[0].clone(), *places[1:]]
    raise_judged(*expected, **named)
    assert not torch.equal(expected[0], places[0])
    compiled = torch.compile(raise_judged, fullgraph=True, dynamic=False, backend="aot_eager")
    compiled(*places, **named)
    assert torch.equal(places[0], expected[0])


def test_nothing_is_read_back() -> None:
    """A tensor on the meta device has no values: reading one raises, as in a captured graph."""
    places, named = arguments("meta")
    raise_judged(*places, **named)
    with pytest.raises(RuntimeError):
        bool(places[0].max() > 0)
