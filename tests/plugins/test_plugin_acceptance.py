"""End to end without TensorRT-LLM: the stock runtime's packing and acceptance, emulated in NumPy
from its public sources, with the judge kernel's own source, run on the CPU."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_builds import host_library, needs_gxx

from plugins.judge_accept import kernel
from plugins.judge_accept.acceptance_emulator import (
    Accepted,
    Batch,
    EngineRequest,
    accept,
    decode,
    pack,
)
from plugins.judge_accept.reference import PluginSettings

V, H = 64, 8
END = 63


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return kernel.load(host_library())


def choices(*ids: int) -> np.ndarray:
    """Rows [n, V] with `ids` as their greedy choices."""
    rows = np.zeros((len(ids), V), dtype=np.float32)
    rows[np.arange(len(ids)), ids] = 4.0
    return rows


class Step:
    """One engine step: every row's greedy choice, and whether the judge accepts its own token."""

    def __init__(self, *requests: EngineRequest) -> None:
        self.batch: Batch = pack(requests)
        rows = len(self.batch.last_token_ids)
        self.logits = choices(*range(1, rows + 1))
        self.hidden = np.full((rows, H), -1.0, dtype=np.float32)

    def likes(self, *rows: int) -> Step:
        self.hidden[list(rows)] = 1.0
        return self

    def run(self, library: ctypes.CDLL, **changes: object) -> np.ndarray:
        fields = {"bias": 0.0, "threshold": 0.5, "vocab_size": V, "end_ids": (END,)}
        plugin = PluginSettings(np.ones(H, dtype=np.float32), **{**fields, **changes})
        b = self.batch
        edited, _ = kernel.run_host(
            library,
            self.logits,
            self.hidden,
            b.input_ids,
            b.last_token_ids,
            b.context_lengths,
            plugin,
        )
        return edited


# ---- the emulator without the kernel: the stock rule ----


def test_token_mode_accepts_the_longest_matching_prefix() -> None:
    rows = choices(10, 11, 12)
    assert accept(rows, [10, 11]) == Accepted([10, 11, 12], 2, False)
    assert accept(rows, [10, 9]) == Accepted([10, 11], 1, False)
    assert accept(rows, [9, 11]) == Accepted([10], 0, False)
    assert accept(rows, []) == Accepted([10], 0, False)


def test_end_tokens_finish_and_are_not_counted() -> None:
    rows = choices(10, END, 12)
    assert accept(rows, [10, END], end_id=END) == Accepted([10], 1, True)
    assert accept(rows, [10, 9], end_id=END) == Accepted([10], 1, True)


def test_draft_logits_mode_compares_probabilities() -> None:
    """Accept iff p > threshold * q, with the target's p one-hot (greedy)."""
    rows = choices(10, 11)
    likely = choices(10) * 100  # q(10) = 1 in float32
    assert accept(rows, [10], draft_logits=likely, thresholds=[0.99]).tokens == [10, 11]
    assert accept(rows, [9], draft_logits=likely * 0, thresholds=[0.0]) == Accepted([10], 0, False)
    with pytest.raises(ZeroDivisionError):  # the strict > refuses p = q = threshold = 1
        accept(rows, [10], draft_logits=likely, thresholds=[1.0])


def test_packing_orders_chunks_prompts_and_generation() -> None:
    batch = pack(
        [
            EngineRequest((9,), generation=True, prompt_length=77),
            EngineRequest((1, 2), (3,)),
            EngineRequest((4, 5, 6), last_chunk=False),
        ]
    )
    assert batch.input_ids.tolist() == [4, 5, 6, 1, 2, 3, 9]
    assert batch.last_token_ids.tolist() == [3, 5, 6, 7]
    assert batch.context_lengths.tolist() == [3, 3, 77]
    assert batch.rows == [slice(0, 1), slice(1, 3), slice(3, 4)]


# ---- kernel and emulator together ----


@needs_gxx
def test_judged_tokens_are_accepted_by_the_stock_rule(library: ctypes.CDLL) -> None:
    """Row r's own choice is r + 1, and the drafts differ. The judge accepts the first two."""
    step = Step(EngineRequest((5, 6), (20, 21, 22))).likes(1, 2)
    stock = decode(step.logits, step.batch)
    assert stock == [Accepted([1], 0, False)]
    assert decode(step.run(library), step.batch) == [Accepted([20, 21, 3], 2, False)]


@needs_gxx
def test_aligned_and_judged_tokens_mix_and_the_bonus_is_the_targets(library: ctypes.CDLL) -> None:
    step = Step(EngineRequest((5,), (1, 20, 3))).likes(2)
    assert decode(step.run(library), step.batch) == [Accepted([1, 20, 3, 4], 3, False)]


@needs_gxx
def test_edits_behind_the_first_refused_draft_change_nothing(library: ctypes.CDLL) -> None:
    step = Step(EngineRequest((5,), (20, 21, 22))).likes(2, 3)
    edited = step.run(library)
    assert (edited != step.logits).any(1).tolist() == [False, True, True, False]
    assert decode(edited, step.batch) == decode(step.logits, step.batch)


@needs_gxx
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_draft_logits_mode_accepts_judged_tokens(library: ctypes.CDLL, dtype: type) -> None:
    """p(d) is 1 on an edited row: accepted under any threshold below 1, however sure the draft."""
    step = Step(EngineRequest((5,), (20, 21))).likes(1)
    step.logits = step.logits.astype(dtype)
    edited = step.run(library)
    sure = choices(20, 21).astype(np.float32) * 100
    for threshold in (0.0, 0.5, 0.999):
        step_of = {"draft_logits": sure, "thresholds": [threshold] * 2}
        assert accept(step.logits, [20, 21], **step_of).tokens == [1]
        assert accept(edited, [20, 21], **step_of).tokens == [20, 2]


@needs_gxx
def test_a_later_veto_still_works(library: ctypes.CDLL) -> None:
    """Bad words and guided decoding mask logits after the engine: the judged token is then refused,
    and the order of all others is the target's."""
    step = Step(EngineRequest((5,), (20,))).likes(1)
    assert accept(step.run(library), [20], vetoed=[20]) == Accepted([1], 0, False)


@needs_gxx
def test_the_end_of_an_answer_is_the_targets(library: ctypes.CDLL) -> None:
    step = Step(EngineRequest((5,), (20, END))).likes(1, 2)
    step.logits[0] = choices(END)[0]
    edited = step.run(library)
    assert decode(edited, step.batch, END) == [Accepted([], 0, True)]
    free = step.run(library, protect_end_ids=False)
    assert decode(free, step.batch, END) == [Accepted([20], 1, True)]


@needs_gxx
def test_a_mixed_batch(library: ctypes.CDLL) -> None:
    """An unfinished chunk, a long prompt with drafts, two 1-token chunks after KV reuse (the first
    with drafts), a plain prompt and two generation requests; the judge accepts every token."""
    step = Step(
        EngineRequest((30, 31, 32), last_chunk=False),
        EngineRequest((30, 31, 32, 33), (40, 41)),
        EngineRequest((34,), (42,)),
        EngineRequest((35,)),
        EngineRequest((36, 37)),
        EngineRequest((38,), generation=True, prompt_length=9),
        EngineRequest((39,), generation=True, prompt_length=2),
    )
    step.likes(*range(len(step.hidden)))
    results = decode(step.run(library), step.batch)
    assert results == [
        Accepted([], 0, False),
        Accepted([40, 41, 4], 2, False),
        Accepted([42, 6], 1, False),
        Accepted([7], 0, False),
        Accepted([8], 0, False),
        Accepted([9], 0, False),
        Accepted([10], 0, False),
    ]


def request_parts() -> st.SearchStrategy[EngineRequest]:
    prompt = st.lists(st.integers(0, V - 1), min_size=1, max_size=4).map(tuple)
    draft = st.lists(st.integers(0, V + 5), max_size=5).map(tuple)  # some are beyond the vocabulary
    return st.one_of(
        st.builds(EngineRequest, prompt, draft),
        st.builds(EngineRequest, prompt, last_chunk=st.just(False)),
        st.builds(
            EngineRequest,
            st.just((3,)),
            generation=st.just(True),
            prompt_length=st.integers(1, 9),
        ),
    )


@needs_gxx
@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(request_parts(), min_size=1, max_size=8),
    threshold=st.sampled_from([0.3, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_the_runtime_accepts_is_the_standard_rule_or_the_judge(
    library: ctypes.CDLL, parts: list[EngineRequest], threshold: float, seed: int
) -> None:
    """The whole contract, stated without rows or positions: for each request, accept the longest
    prefix of drafts that are the target's choice or accepted by the judge, then its own."""
    rng = np.random.default_rng(seed)
    step = Step(*parts)
    own = rng.integers(0, V, len(step.logits))
    likes = rng.random(len(own)) < 0.5
    for rows, request in zip(step.batch.rows, step.batch.requests, strict=True):
        for row, token in zip(range(rows.start, rows.stop), request.draft, strict=False):
            if rng.random() < 0.5 and token < V:
                own[row] = token
    step.logits = choices(*own)
    step.likes(*np.flatnonzero(likes))
    results = decode(step.run(library, threshold=threshold), step.batch, END)

    for request, rows, result in zip(step.batch.requests, step.batch.rows, results, strict=True):
        expected: list[int] = []
        accepted, finished = 0, False
        if request.last_chunk:
            for row, token in zip(
                range(rows.start, rows.stop), [*request.draft, None], strict=True
            ):
                choice = int(own[row])
                protected = END in (choice, token)
                judged = threshold < 1 and token is not None and token < V and likes[row + 1]
                if token is None or not (token == choice or (judged and not protected)):
                    expected += [] if choice == END else [choice]
                    finished = choice == END
                    break
                if token == END:
                    finished = True
                    break
                expected.append(token)
                accepted += 1
        assert result == Accepted(expected, accepted, finished)
