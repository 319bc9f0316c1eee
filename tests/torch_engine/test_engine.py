"""Drafter and target on tiny models: caches after every verdict, batches, and refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.decoding.contracts import (
    Acceptance,
    EngineClock,
    Proposal,
    ProposeRequest,
    Sampling,
    VerifyRequest,
)
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError
from judge_decoding.torch_engine import engine as torch_engine
from judge_decoding.torch_engine.engine import (
    TorchDrafter,
    TorchTarget,
    load_drafter,
    load_target,
)
from judge_decoding.torch_engine.llama import Segment
from judge_decoding.torch_engine.slots import Slots

PROMPT = [7, 3, 250, 19, 88, 41, 5]


def judge(feature: str = "pre_norm") -> Judge:
    # Small, since the tiny models' states saturate the sigmoid to exactly 0 and 1 otherwise.
    weight = 0.02 * torch.randn(64, generator=torch.Generator().manual_seed(4))
    metadata = JudgeMetadata(
        feature=feature,
        hidden_size=64,
        target_fingerprint="t",
        tokenizer_hash="t",
        threshold=0.5,
        training_data_hash="",
    )
    return Judge(weight, 0.0, metadata)


@pytest.fixture
def target(tiny_target: Path) -> TorchTarget:
    return load_target(
        Checkpoint(tiny_target),
        dtype="float32",
        max_sequences=3,
        max_context=256,
        prefill_chunk=16,
        judge=judge(),
    )


@pytest.fixture
def drafter(tiny_target: Path, tiny_draft: Path) -> TorchDrafter:
    return load_drafter(
        Checkpoint(tiny_draft),
        target=Checkpoint(tiny_target),
        dtype="float32",
        max_sequences=3,
        max_context=256,
        prefill_chunk=16,
    )


def greedy_text(target: TorchTarget, count: int, prompt: list[int] = PROMPT) -> list[int]:
    text, keep = list(prompt), 0
    for _ in range(count):
        verdict = target.verify([VerifyRequest(99, keep, text[keep:])])[0]
        keep = len(text)
        text.append(verdict.next_token)
    target.release(99)
    return text[len(prompt) :]


@pytest.mark.parametrize("wrong_at", range(9))
def test_caches_are_right_after_a_rejection_at_every_index(
    target: TorchTarget, drafter: TorchDrafter, wrong_at: int
) -> None:
    """Guards against the classic bug: stale keys after a partial acceptance."""
    k = 8
    own = greedy_text(target, 2 * k)
    draft = own[:k]
    if wrong_at < k:
        draft[wrong_at] = (draft[wrong_at] + 1) % 256
    verdict = target.verify([VerifyRequest(0, 0, PROMPT, Proposal(draft))])[0]
    assert verdict.accepted == wrong_at
    assert verdict.next_token == own[wrong_at]
    text = PROMPT + own[: wrong_at + 1]
    target.check_integrity({0: text[:-1]}, deep=True)
    # The draft's cache holds the prompt and its own tokens except the last.
    drafter.propose([ProposeRequest(0, 0, PROMPT, k)])
    kept = len(PROMPT)
    proposal = drafter.propose([ProposeRequest(0, kept, [own[0]], k)])[0]
    fresh = drafter.propose([ProposeRequest(1, 0, [*PROMPT, own[0]], k)])[0]
    assert proposal.tokens == fresh.tokens
    drafter.check_integrity({0: [*PROMPT, own[0]], 1: [*PROMPT, own[0]]}, deep=True)
    # The next round continues as if nothing had been refused.
    after = target.verify(
        [VerifyRequest(0, len(text) - 1, text[-1:], Proposal(own[wrong_at + 1 :][:4]))]
    )
    assert after[0].accepted == 4


def test_deep_integrity_notices_one_wrong_value(target: TorchTarget) -> None:
    target.prefill(0, 0, PROMPT)
    target.check_integrity({0: PROMPT}, deep=True)
    target._kv.data[1, target._slots.slot(0), 0, 3, 5] += 1.0
    target.check_integrity({0: PROMPT})
    with pytest.raises(AssertionError, match="sequence 0: cached values are off"):
        target.check_integrity({0: PROMPT}, deep=True)


def test_integrity_notices_wrong_tokens_and_lost_sequences(target: TorchTarget) -> None:
    target.prefill(0, 0, PROMPT)
    with pytest.raises(AssertionError, match="differs at position 2"):
        target.check_integrity({0: [7, 3, 1]})
    with pytest.raises(AssertionError, match="cached"):
        target.check_integrity({})


def test_a_batch_gives_each_sequence_what_it_gets_alone(
    target: TorchTarget, drafter: TorchDrafter
) -> None:
    prompts = [PROMPT, PROMPT[::-1] * 9, [1]]
    lengths = [3, 7, 0]
    alone = []
    for prompt, k in zip(prompts, lengths, strict=True):
        proposal = drafter.propose([ProposeRequest(5, 0, prompt, k)])[0] if k else Proposal([])
        alone.append((proposal.tokens, target.verify([VerifyRequest(5, 0, prompt, proposal)])[0]))
        drafter.release(5)
        target.release(5)
    drafting = [
        ProposeRequest(i, 0, p, k)
        for i, (p, k) in enumerate(zip(prompts, lengths, strict=True))
        if k
    ]
    proposals = [*drafter.propose(drafting), Proposal([])]
    assert [p.tokens for p in proposals] == [tokens for tokens, _ in alone]
    assert [len(p.tokens) for p in proposals] == lengths
    requests = [
        VerifyRequest(i, 0, p, d) for i, (p, d) in enumerate(zip(prompts, proposals, strict=True))
    ]
    assert target.verify(requests) == [verdict for _, verdict in alone]


def test_judge_scores_belong_to_the_drafted_positions(target: TorchTarget) -> None:
    """score_i must come from the hidden state *at* drafted token i, where it is the input."""
    draft = [9, 8, 7]
    rule = Acceptance(rule="judge", threshold=1.0)
    got = target.verify([VerifyRequest(0, 0, PROMPT, Proposal(draft), acceptance=rule)])[0]
    seen = target.teacher_forced(PROMPT, draft)
    assert target.judge is not None
    assert got.scores == pytest.approx(target.judge.score(seen.pre_norm).tolist(), abs=1e-5)
    shifted = target.teacher_forced(PROMPT, [draft[0], 8, 1])
    assert target.judge.score(shifted.pre_norm)[2] != pytest.approx(got.scores[2])


def test_the_judge_reads_the_feature_it_was_trained_on(target: TorchTarget) -> None:
    request = VerifyRequest(0, 0, PROMPT, Proposal([9, 8]), acceptance=Acceptance(rule="judge"))
    pre = target.verify([request])[0].scores
    target.judge = judge("post_norm")
    post = target.verify([request])[0].scores
    assert post == pytest.approx(
        target.judge.score(target.teacher_forced(PROMPT, [9, 8]).post_norm).tolist(), abs=1e-5
    )
    assert pre != pytest.approx(post)


def test_a_mixed_batch_judges_only_who_asks(target: TorchTarget) -> None:
    draft = Proposal([9, 8, 7])
    rules = [Acceptance(rule="judge", threshold=0.0), Acceptance(rule="strict")]
    judged, strict = target.verify(
        [VerifyRequest(i, 0, PROMPT, draft, acceptance=rule) for i, rule in enumerate(rules)]
    )
    assert judged.accepted == 3
    assert judged.overridden.count(True) >= 2
    assert strict.overridden == [False] * strict.accepted
    assert strict.accepted < 3


def test_teacher_forcing_is_the_same_in_any_block_size(target: TorchTarget) -> None:
    response = greedy_text(target, 20)
    whole = target.teacher_forced(PROMPT, response, block=20)
    assert whole.argmax.tolist() == response
    for block in (1, 3, 9):
        got = target.teacher_forced(PROMPT, response, block=block)
        for one, other in zip(whole, got, strict=True):
            assert torch.allclose(one.float(), other.float(), atol=1e-4, rtol=1e-4)


def test_sampling_repeats_with_the_seed_whatever_shares_the_batch(drafter: TorchDrafter) -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    request = ProposeRequest(0, 0, PROMPT, 6, sampling, with_probs=True)
    alone = drafter.propose([request])[0]
    drafter.release(0)
    other = ProposeRequest(1, 0, PROMPT[1:], 8, Sampling(temperature=1.0, seed=6))
    together = drafter.propose([other, request])[1]
    assert together.tokens == alone.tokens
    assert alone.probs is not None
    assert alone.probs.shape == (6, 256)


def test_a_short_listed_head_writes_target_ids(tmp_path: Path, tiny_target: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    ids = torch.tensor([2, 3, 50, 77, 200, 255], dtype=torch.int32)
    tensors = load_file(tiny_target / "model.safetensors")
    shared = ["model.embed_tokens.weight", "lm_head.weight"]
    own = {n: t for n, t in tensors.items() if n not in shared} | {"draft_vocab_ids": ids}
    save_file(own, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny_target / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"shared_with_target": shared}))
    limits = {"dtype": "float32", "max_sequences": 1, "max_context": 64}
    short = load_drafter(Checkpoint(tmp_path), target=Checkpoint(tiny_target), **limits)
    full = load_drafter(Checkpoint(tiny_target), target=Checkpoint(tiny_target), **limits)
    request = ProposeRequest(0, 0, PROMPT, 1, with_probs=True)
    listed, everything = short.propose([request])[0], full.propose([request])[0]
    assert everything.probs is not None
    assert listed.probs is not None
    on_list = everything.probs[0, ids.long()]
    assert listed.tokens == [int(ids[on_list.argmax()])]
    assert torch.allclose(listed.probs[0], on_list / on_list.sum(), atol=1e-5)
    assert listed.vocab_ids is not None
    assert listed.vocab_ids.tolist() == ids.tolist()


def test_slots_run_out_and_come_back(target: TorchTarget) -> None:
    for sequence in range(3):
        target.prefill(sequence, 0, [1, 2])
    with pytest.raises(ValueError, match="all 3 slots are in use"):
        target.prefill(3, 0, [1])
    target.release(1)
    target.release(1)
    target.release(77)
    target.prefill(3, 0, [4, 5, 6])
    target.check_integrity({0: [1, 2], 2: [1, 2], 3: [4, 5, 6]}, deep=True)


def test_wrong_requests_are_refused_before_they_spoil_a_cache(target: TorchTarget) -> None:
    target.prefill(0, 0, [1, 2])
    with pytest.raises(ValueError, match="keep=3, but the cache holds 2"):
        target.prefill(0, 3, [1])
    with pytest.raises(ValueError, match="no tokens"):
        target.prefill(0, 2, [])
    with pytest.raises(ValueError, match="exceed the context of 256"):
        target.verify([VerifyRequest(0, 2, [1] * 250, Proposal([1] * 5))])


def test_the_drafts_draws_are_not_the_targets(target: TorchTarget) -> None:
    """With the same seed, a draft with the target's weights would anticipate its draws."""
    twin = TorchDrafter(target.model, max_sequences=3, max_context=256)
    same = 0
    for seed in range(30):
        sampling = Sampling(temperature=3.0, seed=seed)
        drafted = twin.propose([ProposeRequest(0, 0, PROMPT, 1, sampling)])[0].tokens[0]
        drawn = target.verify([VerifyRequest(0, 0, PROMPT, sampling=sampling)])[0].next_token
        same += drafted == drawn
        twin.release(0)
        target.release(0)
    assert same < 10


def test_a_sequence_draws_on_where_it_was_and_anew_under_a_number_used_again(
    target: TorchTarget,
) -> None:
    """Each sequence has its own generator, started from the seed and kept until it is released."""

    def draws(sequence: int) -> list[int]:
        request = VerifyRequest(sequence, 0, PROMPT, sampling=Sampling(temperature=3.0, seed=2**63))
        return [target.verify([request])[0].next_token for _ in range(5)]

    first = draws(0)
    assert len(set(first)) > 1
    assert draws(1) == first  # at the same time
    assert draws(0) != first
    target.release(0)
    assert draws(0) == first


def test_a_long_draft_is_verified_as_a_short_one(target: TorchTarget) -> None:
    """The requested rows are in the last piece, however text, draft and chunk lie. A chunk is 16
    tokens here."""
    for length in (1, 15, 16, 17, 31, 32, 33, 47, 48, 49):
        for k in (0, 1, 14, 15, 16, 17, 40):
            prompt = (PROMPT * 9)[:length]
            draft = Proposal((PROMPT[::-1] * 9)[:k])
            rule = Acceptance(rule="judge", threshold=1.0)
            request = VerifyRequest(0, 0, prompt, draft, acceptance=rule)
            target.prefill_chunk = 16
            got = target.verify([request])[0]
            target.check_integrity({0: prompt}, deep=True)
            target.release(0)
            target.prefill_chunk = 256
            whole = target.verify([request])[0]
            target.release(0)
            assert got.scores == pytest.approx(whole.scores, abs=1e-4)
            assert got[:2] == whole[:2] and got.next_token == whole.next_token


def test_the_threshold_is_the_requests_else_the_judges_own(target: TorchTarget) -> None:
    draft = Proposal([9, 8, 7])

    def accepted(threshold: float | None) -> int:
        rule = Acceptance(rule="judge", threshold=threshold)
        verdict = target.verify([VerifyRequest(0, 0, PROMPT, draft, acceptance=rule)])[0]
        target.release(0)
        return verdict.accepted

    assert (accepted(0.0), accepted(1.0)) == (3, 0)
    own = target.judge
    assert own is not None
    for threshold, expected in ((0.0, 3), (1.0, 0)):
        target.judge = replace(
            own, metadata=own.metadata.model_copy(update={"threshold": threshold})
        )
        assert (accepted(None), accepted(0.0), accepted(1.0)) == (expected, 3, 0)
    target.judge = None
    with pytest.raises(UserError, match="rule judge: the deployment names no judge file"):
        accepted(0.0)


def test_clocks_count_the_models_and_the_judge_apart(
    target: TorchTarget, drafter: TorchDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the time moves it by 1 s: one for the layers, one for the head, one for the
    judge."""
    clock = itertools.count()
    monkeypatch.setattr(torch_engine.time, "perf_counter", lambda: float(next(clock)))
    target.verify([VerifyRequest(0, 0, PROMPT, Proposal([9, 8]))])
    assert target.clock == EngineClock(forward=2.0, judge=0.0)
    target.verify([VerifyRequest(0, 0, PROMPT, Proposal([9]), acceptance=Acceptance(rule="judge"))])
    assert target.clock == EngineClock(forward=4.0, judge=1.0)
    drafter.propose([ProposeRequest(0, 0, PROMPT, 3)])
    assert drafter.clock == EngineClock(forward=6.0, judge=0.0)
    drafter.prefill(1, 0, PROMPT)
    assert drafter.clock == EngineClock(forward=7.0, judge=0.0)


def short_listed(folder: Path, target: Path, ids: list[int]) -> TorchDrafter:
    """The target itself as a draft whose head covers `ids`."""
    from safetensors.torch import load_file, save_file

    listed = {"draft_vocab_ids": torch.tensor(ids, dtype=torch.int32)}
    save_file(load_file(target / "model.safetensors") | listed, folder / "model.safetensors")
    (folder / "config.json").write_text((target / "config.json").read_text())
    limits: dict[str, Any] = {"dtype": "float32", "max_sequences": 1, "max_context": 9}
    return load_drafter(Checkpoint(folder), target=Checkpoint(target), **limits)


@pytest.mark.parametrize("ids", [[-1, 3], [3, 256]])
def test_a_short_list_outside_the_vocabulary_is_refused(
    tmp_path: Path, tiny_target: Path, ids: list[int]
) -> None:
    with pytest.raises(UserError, match=r"has draft_vocab_ids outside \[0, 256\)"):
        short_listed(tmp_path, tiny_target, ids)


def test_a_short_list_may_hold_the_first_and_the_last_token(
    tmp_path: Path, tiny_target: Path
) -> None:
    drafter = short_listed(tmp_path, tiny_target, [0, 255])
    assert set(drafter.propose([ProposeRequest(0, 0, [5, 6], 3)])[0].tokens) <= {0, 255}


# ---- slots ----


def test_slots_are_filled_kept_and_given_back() -> None:
    slots = Slots(2, 4)
    assert slots.extend(7, 0, [1, 2]) == Segment(0, 0, 2)
    assert slots.extend(8, 0, [3]) == Segment(1, 0, 1)
    assert slots.extend(7, 1, [5, 6, 7]) == Segment(0, 1, 3)  # it is full, and not beyond that
    slots.check({7: [1, 5, 6, 7], 8: [3]})
    slots.check({7: [1], 8: []})  # texts' beginnings
    slots.truncate(7, 2)
    slots.check({7: [1, 5], 8: [3]})
    with pytest.raises(ValueError, match="keep=3, but the cache holds 2"):
        slots.extend(7, 3, [1])
    slots.release(7)
    slots.release(7)
    assert slots.extend(9, 0, [4]) == Segment(0, 0, 1)
    assert (slots.slot(8), slots.slot(9)) == (1, 0)
    slots.check({8: [3], 9: [4]})


@pytest.mark.parametrize(
    ("sequence", "keep", "tokens", "message"),
    [
        (7, -1, [1], "sequence 7: keep=-1, but the cache holds 2"),
        (7, 3, [1], "sequence 7: keep=3, but the cache holds 2"),
        (9, 1, [1], "sequence 9: keep=1, but the cache holds 0"),
        (7, 2, [], "sequence 7: no tokens to read"),
        (7, 2, [1, 1, 1], r"sequence 7: 2 \+ 3 tokens exceed the context of 4"),
        (9, 0, [1] * 5, r"sequence 9: 0 \+ 5 tokens exceed the context of 4"),
        (9, 0, [1], "sequence 9: all 2 slots are in use"),
    ],
)
def test_a_slot_refuses_what_would_spoil_it(
    sequence: int, keep: int, tokens: list[int], message: str
) -> None:
    slots = Slots(2, 4)
    slots.extend(7, 0, [1, 2])
    slots.extend(8, 0, [3])
    with pytest.raises(ValueError, match=message):
        slots.extend(sequence, keep, tokens)
    slots.check({7: [1, 2], 8: [3]})


def test_a_check_names_what_differs() -> None:
    slots = Slots(2, 9)
    slots.extend(7, 0, [1, 2, 3])
    for expected, message in (
        ({}, r"cached: \[7\], expected: \[\]"),
        ({7: [1], 8: [1]}, r"cached: \[7\], expected: \[7, 8\]"),
        ({8: [1]}, r"cached: \[7\], expected: \[8\]"),
        ({7: [1, 5, 3]}, "sequence 7: the cache differs at position 1"),
        ({7: [1, 2, 3, 4]}, "sequence 7: the cache differs at position 3"),
    ):
        with pytest.raises(AssertionError, match=message):
            slots.check(expected)
    slots._free.append(0)
    with pytest.raises(AssertionError, match=r"slots lost or shared: .* \[0, 0, 1\]"):
        slots.check({7: [1]})


def test_a_context_beyond_the_models_positions_is_refused(tiny_target: Path) -> None:
    with pytest.raises(UserError, match="max_context 2048 is more than the target's 1024"):
        load_target(Checkpoint(tiny_target), dtype="float32", max_sequences=1, max_context=2048)


def test_only_judged_requests_get_scores(target: TorchTarget) -> None:
    """Regression: a strict request that shared a pass with a judged one returned scores."""
    requests = [
        VerifyRequest(n, 0, PROMPT, Proposal([1, 2]), acceptance=Acceptance(rule))
        for n, rule in enumerate(("strict", "judge", "none"))
    ]
    assert [len(verdict.scores) for verdict in target.verify(requests)] == [0, 2, 0]
