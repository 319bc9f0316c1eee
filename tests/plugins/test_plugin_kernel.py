"""The judge kernel's own source, run on the CPU (plugins/judge_accept/host), against NumPy."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plugin_builds import host_library, needs_gxx

from plugins.judge_accept import kernel
from plugins.judge_accept.acceptance_emulator import Batch, EngineRequest, pack
from plugins.judge_accept.reference import PluginSettings, context_segments, judge_accept, score

pytestmark = needs_gxx

HIDDEN = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return kernel.load(host_library())


def batch_of(*requests: EngineRequest) -> Batch:
    return pack(requests)


def verify(chunk: int, *draft: int) -> EngineRequest:
    return EngineRequest(tuple(range(1, chunk + 1)), draft)


def generation(prompt_length: int) -> EngineRequest:
    return EngineRequest((1,), generation=True, prompt_length=prompt_length)


def convert(hidden: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 -> (the kernel's input, the reference's input), with the same values."""
    if kind == "bfloat16":  # truncated, since any bfloat16 value will do
        bits = (hidden.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    raw = hidden.astype(HIDDEN[kind])
    return raw, raw.astype(np.float32)


def both(
    library: ctypes.CDLL,
    batch: Batch,
    logits: np.ndarray,
    hidden: np.ndarray,
    plugin: PluginSettings,
    kind: str = "float32",
    threads: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Run kernel and reference, compare their outputs bit by bit, and return the kernel's."""
    raw, values = convert(hidden, kind)
    indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
    expected, expected_scores = judge_accept(logits, values, *indices, plugin)
    near = np.abs(np.abs(expected_scores) - np.float32(plugin.threshold)) < 1e-6
    assert not near.any()  # the two may differ in the last bit of one exp
    edited, scores = kernel.run_host(library, logits, raw, *indices, plugin, threads)
    bits = np.uint32 if logits.dtype == np.float32 else np.uint16
    np.testing.assert_array_equal(edited.view(bits), expected.view(bits))
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(expected_scores))
    np.testing.assert_array_equal(np.signbit(scores), np.signbit(expected_scores))
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    return edited, scores


def example(batch: Batch, columns: int = 40, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose row r chooses id r, hidden states of ones: with weight 1/size, z = 1 + bias."""
    rows = len(batch.last_token_ids)
    logits = np.zeros((rows, columns), dtype=np.float32)
    logits[np.arange(rows), np.arange(rows)] = 2.0
    return logits, np.ones((rows, size), dtype=np.float32)


def plugin_of(size: int = 16, **changes: object) -> PluginSettings:
    fields = {"bias": 1.0, "threshold": 0.5, "vocab_size": 30, "boost": 100.0, "max_draft_len": 4}
    return PluginSettings(np.full(size, 1 / size, dtype=np.float32), **{**fields, **changes})


def edits(edited: np.ndarray, logits: np.ndarray) -> set[tuple[int, int]]:
    return {(int(r), int(c)) for r, c in np.argwhere(edited != logits)}


# ---- the reference alone ----


@pytest.mark.filterwarnings("error")
def test_the_reference_takes_values_that_overflow() -> None:
    """Products and sums that are no numbers, an exponential beyond float32, a raise beyond it."""

    def scored(hidden: list[float], weight: list[float]) -> float:
        arrays = (np.array(values, dtype=np.float32) for values in (hidden, weight))
        return float(score(next(arrays), PluginSettings(next(arrays), 0.0, 0.5, 30)))

    assert np.isnan(scored([np.inf, 1.0], [0.0, 1.0]))
    assert np.isnan(scored([3e38, 1.0], [10.0, 1.0]))
    assert scored([-1e4], [1.0]) == 0.0
    batch = batch_of(verify(1, 20))
    logits, hidden = example(batch)
    logits[0, 0] = np.float32(1e38)
    indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
    edited, _ = judge_accept(logits, hidden, *indices, plugin_of(boost=3.4e38))
    assert edits(edited, logits) == {(0, 20)}
    assert edited[0, 20] == np.finfo(np.float32).max


# ---- hand-built batches ----


def test_the_worked_batch_of_the_readme(library: ctypes.CDLL) -> None:
    """Every row is next to the previous one, and only three of them are draft rows."""
    batch = batch_of(
        EngineRequest((11, 12), (21, 22)),
        EngineRequest((13,), (23,)),
        EngineRequest((14,)),
        EngineRequest((15,), generation=True, prompt_length=30),
    )
    assert batch.input_ids.tolist() == [11, 12, 21, 22, 13, 23, 14, 15]
    assert batch.last_token_ids.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert batch.context_lengths.tolist() == [4, 2, 1, 30]
    logits, hidden = example(batch)
    hidden[2] = -9.0  # the judge refuses A's second draft
    edited, scores = both(library, batch, logits, hidden, plugin_of())
    assert edits(edited, logits) == {(0, 21), (3, 23)}
    assert edited[0, 21] == edited[3, 23] == 102.0
    high, low = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(8.0))
    expected = np.full((4, 4), np.nan)
    expected[0, :2], expected[1, 0] = (-high, low), -high  # negated where the row was edited
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_one_token_chunks_after_kv_reuse_are_no_drafts(library: ctypes.CDLL) -> None:
    """The next request's only row is at +1, so adjacency alone would judge it."""
    batch = batch_of(*(verify(1) for _ in range(5)), generation(7), generation(1))
    logits, hidden = example(batch)
    edited, scores = both(library, batch, logits, hidden, plugin_of())
    assert edits(edited, logits) == set()
    assert np.isnan(scores).all()


def test_drafts_of_different_lengths_and_unfinished_chunks(library: ctypes.CDLL) -> None:
    batch = batch_of(
        EngineRequest((1, 2, 3), last_chunk=False),
        verify(1, 20, 21, 22, 23),
        verify(3),
        verify(1, 24),
        verify(2, 25, 26),
        generation(100),
    )
    logits, hidden = example(batch)
    edited, _ = both(library, batch, logits, hidden, plugin_of())
    rows = [range(s.start, s.stop - 1) for s in batch.rows]
    expected = {
        (row, draft)
        for request, mine in zip(batch.requests, rows, strict=True)
        for row, draft in zip(mine, request.draft, strict=False)
    }
    assert len(expected) == 7
    assert edits(edited, logits) == expected


def test_generation_requests_whose_lengths_look_like_segments(library: ctypes.CDLL) -> None:
    """context_lengths of the generation phase are prompt lengths, which must not be summed."""
    batch = batch_of(verify(2, 20), generation(3), generation(2), generation(5000))
    logits, hidden = example(batch)
    edited, _ = both(library, batch, logits, hidden, plugin_of())
    assert edits(edited, logits) == {(0, 20)}


@pytest.mark.parametrize("draft", [30, 39, 32000, -1, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_never_judged(library: ctypes.CDLL, draft: int) -> None:
    batch = batch_of(verify(2, draft, 20))
    logits, hidden = example(batch)
    edited, scores = both(library, batch, logits, hidden, plugin_of())
    assert edits(edited, logits) == {(1, 20)}
    assert np.isnan(scores[0, 0]) and not np.isnan(scores[0, 1])


def test_padding_columns_are_copied_and_never_the_choice(library: ctypes.CDLL) -> None:
    batch = batch_of(verify(1, 20))
    logits, hidden = example(batch)
    logits[:, 30:] = 1e6
    edited, _ = both(library, batch, logits, hidden, plugin_of())
    assert edits(edited, logits) == {(0, 20)}
    assert edited[0, 20] == 102.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_hidden_state_that_is_not_finite_is_never_accepted(
    library: ctypes.CDLL, bad: float
) -> None:
    batch = batch_of(verify(1, 20, 21))
    logits, hidden = example(batch)
    hidden[1, 3] = bad
    edited, scores = both(library, batch, logits, hidden, plugin_of(threshold=0.0))
    assert edits(edited, logits) == {(1, 21)}
    assert np.isnan(scores[0, 0]) and not np.isnan(scores[0, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_with_nan_or_infinity_on_top_is_left_to_the_runtime(
    library: ctypes.CDLL, bad: float
) -> None:
    batch = batch_of(verify(1, 20, 21))
    logits, hidden = example(batch)
    logits[0, 17] = bad
    logits[1, 17] = -np.inf  # masked ids are ordinary values
    edited, _ = both(library, batch, logits, hidden, plugin_of())
    np.testing.assert_array_equal(edited[0], logits[0])
    assert edited[1, 21] == 102.0


def test_the_end_id_rule(library: ctypes.CDLL) -> None:
    """The judge overrides neither where the target ends (row 1 chooses id 1), nor with an end id
    (20)."""
    batch = batch_of(verify(1, 20, 21, 22))
    logits, hidden = example(batch)
    protecting, _ = both(library, batch, logits, hidden, plugin_of(end_ids=(1, 20)))
    assert edits(protecting, logits) == {(2, 22)}
    free = plugin_of(end_ids=(1, 20), protect_end_ids=False)
    edited, _ = both(library, batch, logits, hidden, free)
    assert edits(edited, logits) == {(0, 20), (1, 21), (2, 22)}


def test_what_is_already_the_choice_is_not_edited(library: ctypes.CDLL) -> None:
    batch = batch_of(verify(1, 0, 20))
    logits, hidden = example(batch)
    edited, scores = both(library, batch, logits, hidden, plugin_of())
    assert edits(edited, logits) == {(1, 20)}
    assert not np.isnan(scores[0, :2]).any()


def test_of_equal_logits_the_lowest_id_is_the_choice(library: ctypes.CDLL) -> None:
    batch = batch_of(verify(1, 6, 5))
    logits, hidden = example(batch)
    logits[0] = logits[1] = -1.0
    logits[0, [5, 6, 29]] = 0.0
    logits[1, [5, 6, 29]] = (-0.0, 0.0, 0.0)  # the two zeros are equal
    edited, _ = both(library, batch, logits, hidden, plugin_of())
    assert edits(edited, logits) == {(0, 6)}


def test_raised_logits_start_from_zero_and_stay_in_range(library: ctypes.CDLL) -> None:
    batch = batch_of(verify(1, 20))
    logits, hidden = example(batch)
    negative = logits - 50.0
    edited, _ = both(library, batch, negative, hidden, plugin_of())
    assert edited[0, 20] == 100.0
    half = logits.astype(np.float16)
    edited, _ = both(library, batch, half, hidden, plugin_of(boost=1e6))
    assert edited[0, 20] == 65504.0
    half[0, 0] = 65504.0  # nothing is larger, so no edit rather than a tie
    edited, _ = both(library, batch, half, hidden, plugin_of())
    assert edits(edited, half) == set()


def test_a_score_equal_to_the_threshold_is_not_accepted(library: ctypes.CDLL) -> None:
    """z = 0 gives exactly 0.5."""
    batch = batch_of(verify(1, 20))
    logits, hidden = example(batch)
    indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
    plugin = plugin_of(bias=0.0, threshold=0.5)
    edited, scores = kernel.run_host(library, logits, 0 * hidden, *indices, plugin)
    assert scores[0, 0] == 0.5
    assert edits(edited, logits) == set()
    just_below = plugin_of(bias=0.0, threshold=float(np.nextafter(np.float32(0.5), np.float32(0))))
    edited, _ = kernel.run_host(library, logits, 0 * hidden, *indices, just_below)
    assert edits(edited, logits) == {(0, 20)}


@pytest.mark.parametrize("threshold", [1.0, 1.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_threshold_one_is_bit_identical(
    library: ctypes.CDLL, threshold: float, dtype: type
) -> None:
    batch = batch_of(verify(1, 20, 21), verify(3, 22), generation(4))
    rows = len(batch.last_token_ids)
    bits = np.random.default_rng(1).integers(0, 2**32, (rows, 41), dtype=np.uint32)
    logits = bits.view(np.float32) if dtype is np.float32 else bits.astype(np.uint16).view(dtype)
    hidden = np.full((rows, 16), 1000.0, dtype=np.float32)  # a score of exactly 1
    indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
    edited, scores = kernel.run_host(
        library, logits, hidden, *indices, plugin_of(threshold=threshold)
    )
    assert edited.tobytes() == logits.tobytes()  # NaN payloads too
    assert scores[0, 0] == 1.0


def test_scores_beyond_max_draft_len_are_dropped_and_none_may_be_wanted(
    library: ctypes.CDLL,
) -> None:
    batch = batch_of(verify(1, 20, 21, 22), verify(1, 23))
    logits, hidden = example(batch)
    edited, scores = both(library, batch, logits, hidden, plugin_of(max_draft_len=2))
    assert len(edits(edited, logits)) == 4
    assert np.isnan(scores).tolist() == [[False, False], [False, True]]
    edited, scores = both(library, batch, logits, hidden, plugin_of(max_draft_len=0))
    assert len(edits(edited, logits)) == 4
    assert scores.shape == (2, 0)


def test_more_requests_than_a_block_has_threads(library: ctypes.CDLL) -> None:
    """Prefix sums over 500 requests by 32 threads; a draft every seventh prompt."""
    requests = [verify(1 + i % 3, *([20] if i % 7 == 0 else [])) for i in range(210)]
    batch = batch_of(*requests, *(generation(1 + i) for i in range(290)))
    rows = len(batch.last_token_ids)
    logits = np.zeros((rows, 24), dtype=np.float32)
    hidden = np.ones((rows, 8), dtype=np.float32)
    edited, _ = both(library, batch, logits, hidden, plugin_of(8, vocab_size=24))
    assert len(edits(edited, logits)) == 30


def test_a_batch_that_adds_up_to_no_count_is_copied(library: ctypes.CDLL) -> None:
    batch = batch_of(verify(2, 20), verify(2, 21))
    logits, hidden = example(batch)
    for lengths in ([3, 4], [2, 2], [9, 9]):
        wrong = Batch(
            batch.requests,
            batch.input_ids,
            batch.last_token_ids,
            np.array(lengths, dtype=np.int32),
        )
        assert context_segments(lengths, 6) == []
        edited, _ = both(library, wrong, logits, hidden, plugin_of())
        assert edits(edited, logits) == set()


# ---- invariants ----


def requests() -> st.SearchStrategy[EngineRequest]:
    ids = st.integers(0, 45)
    chunk = st.integers(1, 5).map(lambda n: tuple(range(1, n + 1)))
    return st.one_of(
        st.builds(EngineRequest, chunk, st.lists(ids, max_size=5).map(tuple)),
        st.builds(EngineRequest, st.just((1,)), st.lists(ids, max_size=3).map(tuple)),
        st.builds(EngineRequest, chunk, last_chunk=st.just(False)),
        st.builds(generation, st.integers(1, 9)),
    )


@settings(max_examples=120, deadline=None)
@given(
    parts=st.lists(requests(), min_size=1, max_size=12),
    columns=st.integers(1, 700),
    padding=st.integers(0, 40),
    size=st.integers(1, 70),
    logits_type=st.sampled_from([np.float32, np.float16]),
    kind=st.sampled_from(sorted(HIDDEN)),
    threads=st.sampled_from([32, 64, 96, 256]),
    descending=st.booleans(),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    end_ids=st.lists(st.integers(0, 45), max_size=3).map(tuple),
    protect=st.booleans(),
    max_draft_len=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernel_equals_reference(
    library: ctypes.CDLL,
    parts: list[EngineRequest],
    columns: int,
    padding: int,
    size: int,
    logits_type: type,
    kind: str,
    threads: int,
    descending: bool,
    threshold: float,
    end_ids: tuple[int, ...],
    protect: bool,
    max_draft_len: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    batch = pack(parts)
    rows = len(batch.last_token_ids)
    # Few distinct values, so that ties are common; no rows are alike; some drafts are the choice.
    logits = rng.integers(-20, 20, (rows, columns)) + rng.integers(-99, 99, (rows, 1))
    logits = logits.astype(logits_type)
    for row in range(rows - 1):
        following = int(batch.input_ids[min(batch.last_token_ids[row], len(batch.input_ids) - 1)])
        if rng.random() < 0.3 and following < columns:
            logits[row, following] = logits[row].max() + rng.integers(2)
    vocab_size = max(1, columns - padding)
    logits[:, vocab_size:] = 2000  # padding is never the choice
    hidden = rng.standard_normal((rows, size)).astype(np.float32)
    plugin = PluginSettings(
        weight=rng.standard_normal(size).astype(np.float32),
        bias=float(np.float32(rng.standard_normal())),
        threshold=threshold,
        vocab_size=vocab_size,
        boost=1000.0,
        end_ids=end_ids,
        protect_end_ids=protect,
        max_draft_len=max_draft_len,
    )
    values = convert(hidden, kind)[1]
    assume(all(abs(score(v, plugin) - np.float32(threshold)) > 1e-6 for v in values))
    library.judge_accept_host_order(int(descending))
    try:
        edited, _ = both(library, batch, logits, hidden, plugin, kind, threads)
    finally:
        library.judge_accept_host_order(0)
    changed = (edited != logits).sum(1)
    assert changed.max() <= 1
    for rows_of in batch.rows:  # the bonus row, or the only row of a request without drafts
        assert changed[rows_of.stop - 1] == 0


@pytest.mark.parametrize("kind", sorted(HIDDEN))
@pytest.mark.parametrize("size", [1, 7, 8, 64, 2048, 2049, 4100])
def test_score_bits_do_not_depend_on_launch_or_alignment(
    library: ctypes.CDLL, kind: str, size: int
) -> None:
    """The same accept bits on every tensor-parallel rank, whatever its buffers and block size."""
    rng = np.random.default_rng(size)
    batch = batch_of(verify(2, 20, 21, 22))
    logits, _ = example(batch)
    raw = convert(rng.standard_normal((4, size)).astype(np.float32), kind)[0]
    plugin = PluginSettings(
        rng.standard_normal(size).astype(np.float32) / 8, 0.1, 0.5, 30, max_draft_len=3
    )
    indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
    seen = set()
    for threads in (32, 96, 256, 1024):
        for offset in (0, raw.itemsize, 16 - raw.itemsize):
            moved = kernel.unaligned_like(raw, offset)
            moved[:] = raw
            _, scores = kernel.run_host(library, logits, moved, *indices, plugin, threads)
            seen.add(scores[0].tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_logits_at_any_address(library: ctypes.CDLL, dtype: type) -> None:
    """Vector and scalar copies: V near multiples of the vector and chunk sizes, any start."""
    batch = batch_of(verify(1, 3))
    chunk = 32 * 4 * 16 // np.dtype(dtype).itemsize  # 32 threads, 4 loads of 16 bytes
    _, hidden = example(batch)
    for columns in (21, 22, 23, chunk - 1, chunk, chunk + 1, 2 * chunk + 5):
        source = np.arange(2 * columns).reshape(2, columns) % 97
        for offset in range(0, 16, np.dtype(dtype).itemsize):
            logits = kernel.unaligned_like(source.astype(dtype), offset)
            logits[:] = source
            edited, _ = both(library, batch, logits, hidden, plugin_of(vocab_size=columns))
            assert edits(edited, logits) == {(0, 3)}


def test_output_and_input_aligned_differently(library: ctypes.CDLL) -> None:
    """The scalar path, since no 16-byte vector fits both."""
    batch = batch_of(verify(1, 20))
    logits, hidden = example(batch, columns=1201)
    plugin = plugin_of(vocab_size=1201, max_draft_len=0)
    indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
    shape = (len(batch.input_ids), 2, 1, 1201, 16)
    a = kernel.arguments(plugin, shape, ("float32", "float32"), 32)
    output = kernel.unaligned_like(logits, (logits.ctypes.data + 4) % 16)
    workspace = np.zeros(100, dtype=np.uint64)
    weight = kernel.unaligned_like(plugin.weight, 0)
    weight[:] = plugin.weight
    arrays = (logits, hidden, *indices, weight)
    names = ("logits", "hidden", "input_ids", "last_token_ids", "context_lengths", "weight")
    for name, array in zip(names, arrays, strict=True):
        setattr(a, name, array.ctypes.data)
    a.edited, a.workspace, a.workspace_size = output.ctypes.data, workspace.ctypes.data, 800
    assert library.launch_judge_accept(ctypes.byref(a), None) == 0
    np.testing.assert_array_equal(output, judge_accept(logits, hidden, *indices, plugin)[0])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_garbage_indices_are_survived(library: ctypes.CDLL, data: st.DataObject) -> None:
    """A builder times plugins on buffers that it never filled: no access outside, at most one edit
    per row."""
    any_int = st.one_of(st.integers(-3, 12), st.integers(-(2**31), 2**31 - 1))
    draw = lambda n: np.array(data.draw(st.lists(any_int, min_size=n, max_size=n)), dtype=np.int32)  # noqa: E731
    rows, tokens, count = (data.draw(st.integers(1, n)) for n in (6, 10, 5))
    logits = np.random.default_rng(0).standard_normal((rows, 50)).astype(np.float32)
    hidden = np.ones((rows, 16), dtype=np.float32)
    edited, _ = kernel.run_host(
        library, logits, hidden, draw(tokens), draw(rows), draw(count), plugin_of(), 32
    )
    assert (edited != logits).sum(1).max() <= 1


# ---- the C ABI ----


def test_arguments_out_of_range_are_refused_before_anything_is_written(
    library: ctypes.CDLL,
) -> None:
    batch = batch_of(verify(1, 20))
    logits, hidden = example(batch)
    indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
    for changes in (
        {"vocab_size": 0},
        {"vocab_size": 41},
    ):
        with pytest.raises(ValueError, match="error 1"):
            kernel.run_host(library, logits, hidden, *indices, plugin_of(**changes))
    for threads in (1, 33, 2048, -32):
        with pytest.raises(ValueError, match="error 1"):
            kernel.run_host(library, logits, hidden, *indices, plugin_of(), threads)
    assert library.launch_judge_accept(ctypes.byref(kernel.Arguments()), None) == 1
    assert library.launch_judge_accept(None, None) == 1


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((9, 128256, 0, 0), 9 * 32 * 8),  # 256 threads x 4 x 16 bytes: 4,096 columns a chunk
        ((9, 128256, 1, 0), 9 * 16 * 8),
        ((1, 1, 0, 32), 8),
        ((0, 10, 0, 0), 0),
        ((9, 0, 0, 0), 0),
        ((9, 10, 2, 0), 0),
        ((2**31 - 1, 128256, 0, 0), 0),
    ],
)
def test_workspace_size(
    library: ctypes.CDLL, arguments: tuple[int, int, int, int], size: int
) -> None:
    assert library.judge_accept_workspace_size(*arguments) == size


def test_the_struct_in_python_is_the_struct_in_c() -> None:
    header = (kernel.HERE / "judge_accept.h").read_text()
    body = re.search(r"struct JudgeAcceptArguments \{(.*?)\n\};", header, re.S)
    assert body is not None
    names = re.findall(r"^ .*?(\w+)(?:\[\w+\])?;", body[1], re.M)
    assert names == [field[0] for field in kernel.Arguments._fields_]
    assert f"JUDGE_ACCEPT_ABI_VERSION {kernel.ABI_VERSION}\n" in header
    assert f"JUDGE_ACCEPT_MAX_END_IDS {kernel.MAX_END_IDS}\n" in header
