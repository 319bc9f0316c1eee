"""The loop on tiny models: strict equals the target, stops in accepted runs, schedules, records."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.decoding import loop as decoding
from judge_decoding.decoding import round as engine_round
from judge_decoding.decoding.contracts import (
    RULES,
    Acceptance,
    Proposal,
    ProposeRequest,
    Sampling,
    Verdict,
    VerifyRequest,
)
from judge_decoding.decoding.loop import LoopClock, Result, SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sampling import probabilities
from judge_decoding.decoding.sequence import AcceptanceRecord, Request, Token
from judge_decoding.decoding.sequence import Sequence as Answer
from judge_decoding.errors import UserError
from judge_decoding.text import TextStream, Tokenizer
from judge_decoding.torch_engine import engine as torch_engine
from judge_decoding.torch_engine.engine import load_drafter, load_target
from tests.torch_engine.test_engine import judge

LIMITS = {"dtype": "float32", "max_sequences": 8, "max_context": 160, "prefill_chunk": 16}


@pytest.fixture
def decoder(tiny_target: Path, tiny_draft: Path) -> SpeculativeDecoder:
    target = load_target(Checkpoint(tiny_target), judge=judge(), **LIMITS)
    target.end_ids = ()
    drafter = load_drafter(Checkpoint(tiny_draft), target=Checkpoint(tiny_target), **LIMITS)
    return SpeculativeDecoder(
        Engines(drafter, target),
        tokenizer=Tokenizer(tiny_target),
        max_draft_len=5,
        prefill_chunk=16,
    )


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(1, 256, (n,), generator=generator).tolist() for n in lengths]


def request(
    prompt: Sequence[int], rule: str = "strict", tokens: int = 64, **fields: object
) -> Request:
    return Request(list(prompt), tokens, Acceptance(rule=rule), **fields)  # type: ignore[arg-type]


def own(decoder: SpeculativeDecoder, prompt: Sequence[int], tokens: int = 64) -> list[int]:
    return decoder.generate([request(prompt, "none", tokens)])[0].token_ids


@pytest.mark.parametrize("k", range(1, 9))
def test_strict_is_the_targets_own_greedy_output(decoder: SpeculativeDecoder, k: int) -> None:
    """In fp32, for every draft length: 30 prompts x 64 tokens, single and in batches of 8."""
    reference = decoder.generate([request(p, "none") for p in prompts(30)])
    batched = decoder.generate([request(p, max_draft_len=k) for p in prompts(30)])
    single = [decoder.generate([request(p, max_draft_len=k)])[0] for p in prompts(30)[:6]]
    assert [r.token_ids for r in batched] == [r.token_ids for r in reference]
    assert [r.token_ids for r in single] == [r.token_ids for r in reference[:6]]
    assert all(len(r.token_ids) == 64 for r in batched)
    # The comparison is meaningful only if runs of different lengths were accepted.
    total = AcceptanceRecord()
    for r in batched:
        total.merge(r.record)
    assert total.acceptance_histogram[0] > 20 and total.acceptance_histogram[k] > 0
    assert len(total.acceptance_histogram) == k + 1
    assert sum(r.record.num_accepted_draft_tokens for r in batched) > 200


def test_caches_hold_the_emitted_text_after_every_round(decoder: SpeculativeDecoder) -> None:
    for p in prompts(5):
        decoder.add(request(p, "judge", 40))
    while decoder.num_active:
        decoder.step()
        decoder.check_integrity(deep=True)
    decoder.check_integrity()


@pytest.mark.parametrize("engine", ["target", "drafter"])
def test_the_deep_check_reads_both_caches(decoder: SpeculativeDecoder, engine: str) -> None:
    """One wrong value of either model, at a position that the loop relies on."""
    number = decoder.add(request(prompts(1)[0]))
    for _ in range(3):
        decoder.step()
    decoder.check_integrity(deep=True)
    damaged = getattr(decoder, engine)
    damaged._kv.data[0, damaged._slots.slot(number), 0, 2, 1] += 1.0
    decoder.check_integrity()
    with pytest.raises(AssertionError, match=f"sequence {number}: cached values are off"):
        decoder.check_integrity(deep=True)


@pytest.mark.parametrize("engine", ["target", "drafter"])
def test_the_check_reads_what_both_caches_hold(decoder: SpeculativeDecoder, engine: str) -> None:
    """A token that the loop did not emit, and a sequence that only the engine knows."""
    number = decoder.add(request(prompts(1)[0]))
    decoder.step()
    damaged = getattr(decoder, engine)
    damaged._slots._tokens[number][1] += 1
    with pytest.raises(AssertionError, match=f"sequence {number}: the cache differs at position 1"):
        decoder.check_integrity()
    damaged._slots._tokens[number][1] -= 1
    damaged.prefill(77, 0, [1])
    with pytest.raises(AssertionError, match="77"):
        decoder.check_integrity()


def test_the_clock_adds_up_what_engines_and_loop_take(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: every reading of the clock adds 1 s, and the engines report their own times."""
    target, drafter = decoder.target, decoder.drafter
    assert drafter is not None
    clock = itertools.count()
    done = engine_round.Round

    def run_round(proposes: Sequence[ProposeRequest], verifies: Sequence[VerifyRequest]) -> object:
        drafter.clock.forward += 16.0
        target.clock.forward += 32.0
        target.clock.judge += 64.0
        return done([Proposal([1])], [Verdict(1, [False], [], 2)], propose_s=0.25)

    monkeypatch.setattr(decoder.engines, "run_round", run_round)
    decoder.add(request([5, 6]))
    for rounds in (1, 2):
        monkeypatch.setattr(decoding.time, "perf_counter", lambda: float(next(clock)))
        decoder.step()
        monkeypatch.undo()
        monkeypatch.setattr(decoder.engines, "run_round", run_round)
        # Started, prefilled, ran, ended: three steps of 1 s; 0.25 s of the second was drafting.
        assert decoder.clock == LoopClock(
            rounds, 3.0 * rounds, 1.25 * rounds, 0.75 * rounds, 48.0 * rounds, 64.0 * rounds
        )
    assert decoder.clock.host == 2 * (3.0 - 48.0 - 64.0)


def test_a_new_loop_has_counted_nothing() -> None:
    assert LoopClock() == LoopClock(0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_ends_of_the_vocabulary_and_of_the_bounds_are_allowed(
    decoder: SpeculativeDecoder,
) -> None:
    coldest = Sampling(1e-3)
    for good in (
        request([0, 255], tokens=1),
        request([1] * 159),
        request([1], "none", sampling=coldest),
    ):
        decoder.check(good)
    for bad, message in (
        (request([-1]), r"token id -1 is outside the vocabulary \[0, 256\)"),
        (request([1], "none", sampling=Sampling(0.9e-3)), "give 0 .greedy. or at least 0.001"),
        (request([1], tokens=-1), "max_tokens: -1 must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            decoder.check(bad)


def record(*rounds: tuple[int, int]) -> AcceptanceRecord:
    made = AcceptanceRecord()
    for drafted, accepted in rounds:
        made.add(drafted, accepted)
    return made


def test_a_record_counts_its_rounds() -> None:
    made = record((4, 2), (2, 2), (4, 0), (1, 1))
    assert made == AcceptanceRecord(4, 11, 5, 0, 0, [1, 1, 2, 0, 0])
    assert made.to_dict() == {
        "num_spec_steps": 4,
        "num_draft_tokens": 11,
        "num_accepted_draft_tokens": 5,
        "num_judged_tokens": 0,
        "num_target_tokens": 0,
        "num_spec_tokens": 4,
        "mean_acceptance_length": 1 + 5 / 4,
        "draft_acceptance_rate": 5 / 11,
        "acceptance_histogram": [1, 1, 2, 0, 0],
    }
    nothing = AcceptanceRecord().to_dict()
    assert (nothing["mean_acceptance_length"], nothing["draft_acceptance_rate"]) == (1.0, 0.0)
    assert (nothing["num_spec_tokens"], nothing["acceptance_histogram"]) == (0, [])


def test_merged_records_are_one_of_all_their_rounds() -> None:
    short, long = [(2, 1), (2, 2)], [(4, 4), (4, 1), (3, 0)]
    for first, second in ((short, long), (long, short), (short, []), ([], long)):
        one, other = record(*first), record(*second)
        one.num_judged_tokens, other.num_judged_tokens = 3, 4
        one.num_target_tokens, other.num_target_tokens = 10, 20
        one.merge(other)
        both = record(*first, *second)
        both.num_judged_tokens, both.num_target_tokens = 7, 30
        assert one == both


def emitted(ids: Sequence[int], context: int = 99, **fields: object) -> Answer:
    """An answer to a one-token prompt that got `ids` until it ended; 9 is the end token."""
    answer = Answer(request([1], **fields), None, frozenset({9}), context, [1])  # type: ignore[arg-type]
    for i in ids:
        if answer.finish_reason is None:
            answer.emit(Token(i, "target", None))
    return answer


@pytest.mark.parametrize(
    ("fields", "count", "reason", "remaining"),
    [
        ({}, 2, "stop", 62),
        ({"ignore_end": True}, 5, None, 59),
        ({"min_tokens": 1}, 2, "stop", 62),
        ({"min_tokens": 2}, 4, "stop", 60),
        ({"min_tokens": 4}, 5, None, 59),
        ({"tokens": 1}, 1, "length", 0),
        ({"tokens": 2}, 2, "stop", 0),  # the end token comes first
        ({"tokens": 3, "ignore_end": True}, 3, "length", 0),
        ({"context": 4, "ignore_end": True}, 3, "length", 0),
        ({"context": 7, "ignore_end": True}, 5, None, 1),
    ],
)
def test_when_an_answer_ends(
    fields: dict[str, object], count: int, reason: str | None, remaining: int
) -> None:
    answer = emitted([5, 9, 6, 9, 7], **fields)  # type: ignore[arg-type]
    assert [t.id for t in answer.tokens] == [5, 9, 6, 9, 7][:count]
    assert answer.text == [1, *[5, 9, 6, 9, 7][:count]]
    assert (answer.finish_reason, answer.remaining) == (reason, remaining)
    assert answer.record.num_target_tokens == count


def test_sequences_join_and_leave_between_rounds(decoder: SpeculativeDecoder) -> None:
    texts = prompts(6)
    alone = {i: own(decoder, p, 10 + 9 * i) for i, p in enumerate(texts)}
    numbers: dict[int, int] = {}
    got: dict[int, list[int]] = {}
    for round_number in range(200):
        if round_number % 3 == 0 and len(numbers) < len(texts):
            i = len(numbers)
            numbers[decoder.add(request(texts[i], tokens=10 + 9 * i))] = i
        if len(numbers) == 4 and 2 in numbers.values() and decoder.num_active:
            decoder.cancel(next(n for n, i in numbers.items() if i == 2))
        for update in decoder.step():
            got.setdefault(numbers[update.sequence], []).extend(t.id for t in update.tokens)
        if len(numbers) == len(texts) and not decoder.num_active:
            break
    for i in (0, 1, 3, 4, 5):
        assert got[i] == alone[i]
    assert got.get(2, []) == alone[2][: len(got.get(2, []))]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_runs_to_max_tokens(decoder: SpeculativeDecoder, rule: str) -> None:
    for tokens in (1, 2, 7, 33):
        result = decoder.generate(
            [request(p, rule, tokens, sampling=sampling_for(rule)) for p in prompts(3)]
        )
        for r in result:
            assert len(r.token_ids) == len(r.provenance) == len(r.judge_scores) == tokens
            assert r.finish_reason == "length"
            assert_record_adds_up(r)


def sampling_for(rule: str) -> Sampling:
    return Sampling(temperature=0.8, seed=3) if rule == "rejection" else Sampling()


def assert_record_adds_up(result: Result) -> None:
    record, sources = result.record, result.provenance
    assert record.num_target_tokens == sources.count("target")
    assert record.num_judged_tokens == sources.count("judged")
    assert record.num_accepted_draft_tokens == len(sources) - sources.count("target")
    assert sum(record.acceptance_histogram) == record.num_spec_steps
    accepted = sum(n * count for n, count in enumerate(record.acceptance_histogram))
    assert accepted == record.num_accepted_draft_tokens
    if record.num_spec_steps:
        expected = 1 + accepted / record.num_spec_steps
        assert record.to_dict()["mean_acceptance_length"] == pytest.approx(expected)


def test_judge_at_threshold_1_is_strict_and_at_0_takes_everything(
    decoder: SpeculativeDecoder,
) -> None:
    p = prompts(1)[0]
    rules = [Acceptance(rule="judge", threshold=t) for t in (1.0, 0.0)]
    one, zero = decoder.generate([Request(p, 60, a, max_draft_len=4) for a in rules])
    assert one.token_ids == own(decoder, p, 60)
    assert "judged" not in one.provenance
    assert zero.record.num_accepted_draft_tokens == zero.record.num_draft_tokens
    assert zero.record.num_spec_steps == 12  # 60 tokens in rounds of 4 + 1
    assert zero.record.num_judged_tokens > 0
    judged = [
        s
        for s, source in zip(zero.judge_scores, zero.provenance, strict=True)
        if source == "judged"
    ]
    assert all(s is not None and 0 < s < 1 for s in judged)


def test_sampling_repeats_with_the_seed_and_differs_without(decoder: SpeculativeDecoder) -> None:
    p = prompts(1)[0]

    def run(seed: int, others: int = 0) -> list[int]:
        mine = request(p, "rejection", 40, sampling=Sampling(1.0, seed=seed))
        rest = [request(q, "strict", 20) for q in prompts(others)]
        return decoder.generate([mine, *rest])[0].token_ids

    assert run(1) == run(1) == run(1, others=3)
    assert run(1) != run(2)


@pytest.mark.parametrize("position", range(1, 12))
def test_an_end_token_inside_an_accepted_run_ends_it(
    decoder: SpeculativeDecoder, position: int
) -> None:
    """Nothing after the end token leaks, wherever it falls in a run, for several end ids."""
    p = prompts(1)[0]
    text = own(decoder, p, 40)
    end = text[position]
    cut = text.index(end) + 1
    decoder.target.end_ids = (end, 255)
    result = decoder.generate([request(p, tokens=40)])[0]
    assert result.token_ids == text[:cut]
    assert result.finish_reason == "stop"
    assert_record_adds_up(result)
    ignoring = decoder.generate([request(p, tokens=40, ignore_end=True)])[0]
    assert ignoring.token_ids == text
    decoder.check_integrity()


@pytest.mark.parametrize("at", [0, 3, 9, 20])
def test_a_stop_string_ends_the_text_before_it(decoder: SpeculativeDecoder, at: int) -> None:
    p = prompts(3)[2]
    whole = decoder.generate([request(p, "none", 60)])[0]
    visible = [i for i, c in enumerate(whole.text) if c.isprintable() and c != "\ufffd"]
    stop = whole.text[visible[at] : visible[at] + 2]
    result = decoder.generate([request(p, tokens=60, stop=(stop, "never in it"))])[0]
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.finish_reason == "stop"
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    streamed = "".join(u.text for u in decoder.stream(request(p, tokens=60, stop=(stop,))))
    assert streamed == result.text


def test_a_stop_string_in_text_that_only_the_end_brings_counts(tiny_target: Path) -> None:
    """Regression: the last token brings the rest of a stop string and half a character, so its text
    was held back. At the token limit all of it was shown, with reason `length`."""
    tokenizer = Tokenizer(tiny_target)

    class Joined(Tokenizer):
        """The tiny tokenizer with token 256 for the bytes of "b" and half of an "é"."""

        def decode(self, ids: Sequence[int]) -> str:
            half = [*tokenizer.encode("b"), tokenizer.encode("é")[0]]
            return super().decode([i for one in ids for i in (half if one == 256 else [one])])

    for stop, text, reason in ((("ab",), "x", "stop"), (("ac",), "xab", "length")):
        stream = TextStream(Joined(tiny_target), stop)
        answer = Answer(Request([1], 3, stop=stop), stream, frozenset(), 99, [1])
        shown = [answer.emit(Token(i, "target", None)) for i in (*tokenizer.encode("xa"), 256)]
        assert (answer.output, answer.finish_reason) == (text, reason)
        assert "".join(shown) == text


def test_the_context_limit_ends_a_sequence_exactly(decoder: SpeculativeDecoder) -> None:
    p = prompts(1)[0]
    result = decoder.generate([request(p, tokens=10_000)])[0]
    assert result.finish_reason == "length"
    assert len(p) + len(result.token_ids) == LIMITS["max_context"]
    full = [1] * (160 - 1)
    assert len(decoder.generate([request(full, tokens=10)])[0].token_ids) == 1


def test_the_schedule_shrinks_drafts_with_load_and_zero_costs_nothing(
    decoder: SpeculativeDecoder,
) -> None:
    decoder.draft_len_schedule = {1: 4, 2: 2}
    assert decoder.drafter is not None
    lengths = {}
    for active in (1, 2, 3):
        results = decoder.generate([request([i + 1, 9], tokens=12) for i in range(active)])
        lengths[active] = max(len(r.record.acceptance_histogram) - 1 for r in results)
        if active == 3:
            assert all(r.record.num_spec_steps == 0 for r in results)
    assert lengths == {1: 4, 2: 2, 3: -1}
    before = decoder.drafter.clock.forward
    decoder.generate([request([i + 1, 9], tokens=12) for i in range(3)])
    assert decoder.drafter.clock.forward == before


def test_the_schedule_and_a_request_bound_each_other(decoder: SpeculativeDecoder) -> None:
    """The smaller of both counts, whatever the order of the schedule."""
    decoder.draft_len_schedule = {3: 1, 1: 4}
    for asked, drafted in ((None, 4), (3, 3), (9, 4), (0, -1)):
        result = decoder.generate([request([5, 9], tokens=12, max_draft_len=asked)])[0]
        assert len(result.record.acceptance_histogram) - 1 == drafted


def test_the_same_seed_draws_otherwise_under_load_only_with_a_schedule(
    decoder: SpeculativeDecoder,
) -> None:
    """As docs/architecture.md says: a seed's draws are the same only for one draft length."""
    mine = request(prompts(1)[0], "rejection", 40, sampling=Sampling(1.0, seed=1))
    rest = [request(p, "none", 60) for p in prompts(3)]
    alone = decoder.generate([mine])[0].token_ids
    assert decoder.generate([mine, *rest])[0].token_ids == alone
    decoder.draft_len_schedule = {1: 5, 8: 2}
    assert decoder.generate([mine])[0].token_ids == alone
    assert decoder.generate([mine, *rest])[0].token_ids != alone


@pytest.mark.parametrize("rule", ["kl", "typical"])
def test_a_filter_holds_under_rules_that_ask_the_target(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Regression: `kl` accepted tokens outside the target's top two, 10 of 38 in the demo. It
    compares the models' own distributions, so the draft draws from its unfiltered one."""
    sampling = Sampling(1.0, top_k=2, seed=1)
    decide, drafter = torch_engine.decide, decoder.drafter
    assert drafter is not None
    propose, asked, accepted = drafter.propose, set(), []

    def watch_decide(request: VerifyRequest, logits: torch.Tensor, *rest: object) -> Verdict:
        verdict: Verdict = decide(request, logits, *rest)  # type: ignore[arg-type]
        p = probabilities(logits, request.sampling)
        for i, token in enumerate(request.draft.tokens[: verdict.accepted]):
            assert p[i, token] > 0
            accepted.append(verdict.overridden[i])
        return verdict

    def watch_propose(requests: Sequence[ProposeRequest]) -> list[Proposal]:
        asked.update(r.sampling for r in requests)
        return propose(requests)

    monkeypatch.setattr(torch_engine, "decide", watch_decide)
    monkeypatch.setattr(drafter, "propose", watch_propose)
    lenient = Acceptance(rule=rule, kl_tau=5.0, kl_confident=1.0, typical_epsilon=1e-6)  # type: ignore[arg-type]
    decoder.generate([Request(p, 64, lenient, sampling) for p in prompts(8)])
    assert asked == {Sampling(1.0, seed=1) if rule == "kl" else sampling}
    assert True in accepted


def test_drafting_resumes_after_a_pause_and_stays_exact(decoder: SpeculativeDecoder) -> None:
    """The draft's cache falls behind while the schedule says 0, and must then catch up."""
    texts = prompts(3)
    alone = [own(decoder, p, 50) for p in texts]
    decoder.draft_len_schedule = {1: 4}
    numbers = [decoder.add(request(texts[0], tokens=50))]
    got: dict[int, list[int]] = {}
    for i in range(100):
        if i == 3:
            numbers += [decoder.add(request(p, tokens=20)) for p in texts[1:]]
        for update in decoder.step():
            got.setdefault(update.sequence, []).extend(t.id for t in update.tokens)
        decoder.check_integrity(deep=True)
    assert got[numbers[0]] == alone[0]
    assert got[numbers[1]] == alone[1][:20]
    assert decoder.result(numbers[0]).record.num_spec_steps > 5


def test_a_long_prompt_is_read_in_chunks_and_holds_nobody_up(decoder: SpeculativeDecoder) -> None:
    long, short = (prompts(30)[3] * 100)[:100], [8, 9, 10]
    alone = own(decoder, long, 20), own(decoder, short, 20)
    slow, fast = decoder.add(request(long, tokens=20)), decoder.add(request(short, tokens=20))
    first: dict[int, int] = {}
    got: dict[int, list[int]] = {}
    for i in range(60):
        for update in decoder.step():
            first.setdefault(update.sequence, i)
            got.setdefault(update.sequence, []).extend(t.id for t in update.tokens)
    assert first[fast] < first[slow] == 6  # 100 tokens in chunks of 16: six, and the rest
    assert (got[slow], got[fast]) == alone


def test_synthetic_acceptance_has_the_asked_length(decoder: SpeculativeDecoder) -> None:
    acceptance = Acceptance(rule="synthetic", synthetic_length=3.5)
    results = decoder.generate([Request(p, 100, acceptance) for p in prompts(8)])
    spec = sum(r.record.num_spec_steps for r in results)
    accepted = sum(r.record.num_accepted_draft_tokens for r in results)
    assert 1 + accepted / spec == pytest.approx(3.5, abs=0.2)


@pytest.mark.slow
def test_memory_does_not_grow_over_2000_rounds(decoder: SpeculativeDecoder) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def rounds(count: int) -> None:
        before = decoder.clock.rounds
        while decoder.clock.rounds - before < count:
            decoder.generate([request(p, "judge", 40) for p in prompts(8)])

    rounds(300)  # allocators and caches settle
    before = resident()
    rounds(2000)
    assert resident() - before < 4 * 2**20


def test_a_draft_reads_a_long_prompt_only_where_it_will_be_asked(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing for rule `none`. A prompt that it began too late to read in chunks is read
    by its first proposal."""
    long = (prompts(30)[3] * 100)[:100]
    drafter = decoder.drafter
    assert drafter is not None
    prefill, read = drafter.prefill, []

    def watch(sequence: int, keep: int, tokens: Sequence[int]) -> None:
        read.append((keep, len(tokens)))
        prefill(sequence, keep, tokens)

    monkeypatch.setattr(drafter, "prefill", watch)
    alone = own(decoder, long, 20)
    assert read == []
    assert decoder.generate([request(long, tokens=20)])[0].token_ids == alone
    assert read == [(16 * i, 16) for i in range(6)]
    read.clear()
    decoder.draft_len_schedule = {1: 0, 2: 4}
    number = decoder.add(request(long, tokens=20))
    decoder.step()  # 16 tokens, by the target alone
    decoder.draft_len_schedule = {}
    got: list[int] = []
    while decoder.num_active:
        for update in decoder.step():
            got += [token.id for token in update.tokens]
        decoder.check_integrity(deep=True)
    assert read == []
    assert got == alone
    assert decoder.result(number).record.num_accepted_draft_tokens > 0


def test_both_models_read_every_token_once(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is given its own last token; the draft also its last drafted one, where that was
    accepted, for it has not read it."""
    drafter, target = decoder.drafter, decoder.target
    assert drafter is not None
    propose, verify = drafter.propose, target.verify
    given: list[tuple[int, int]] = []
    accepted: list[tuple[int, int]] = []

    def watch_propose(requests: Sequence[ProposeRequest]) -> list[Proposal]:
        given.extend((len(r.tokens), r.draft_len) for r in requests)
        return propose(requests)

    def watch_verify(requests: Sequence[VerifyRequest]) -> list[Verdict]:
        verdicts = verify(requests)
        for r, verdict in zip(requests, verdicts, strict=True):
            assert r.keep + len(r.tokens) == len(prompt) + sum(n + 1 for n, _ in accepted)
            assert len(r.tokens) == (1 if accepted else len(prompt))
            accepted.append((verdict.accepted, len(r.draft.tokens)))
        return verdicts

    monkeypatch.setattr(drafter, "propose", watch_propose)
    monkeypatch.setattr(target, "verify", watch_verify)
    for prompt in [p for p in prompts(30) if len(p) <= 16][:5]:
        given.clear()
        accepted.clear()
        decoder.generate([request(prompt, tokens=60, max_draft_len=2)])
        assert given[0] == (len(prompt), 2)
        for (tokens, _), (n, k) in zip(given[1:], accepted, strict=False):
            assert tokens == (2 if n == k else 1)


def test_joining_prompts_share_one_chunk_a_round_and_take_turns(
    decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three prompts of 100 tokens and one of 3 behind them, while another sequence runs."""
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(1, 256, (n,), generator=generator).tolist() for n in (100, 100, 100, 3)]
    alone = [own(decoder, p, 20) for p in texts]
    read: list[int] = []  # prompt tokens per round
    target = decoder.target
    prefill, verify = target.prefill, target.verify

    def count_prefill(sequence: int, keep: int, tokens: Sequence[int]) -> None:
        read[-1] += len(tokens)
        prefill(sequence, keep, tokens)

    def count_verify(requests: Sequence[VerifyRequest]) -> list[Verdict]:
        read[-1] += sum(len(r.tokens) for r in requests if r.keep < length.get(r.sequence, 0) - 1)
        return verify(requests)

    runner = decoder.add(request([5, 6, 7], tokens=60))
    decoder.step()
    monkeypatch.setattr(target, "prefill", count_prefill)
    monkeypatch.setattr(target, "verify", count_verify)
    numbers = [decoder.add(request(p, tokens=20)) for p in texts]
    length = {number: len(p) for number, p in zip(numbers, texts, strict=True)}
    first: dict[int, int] = {}  # sequence -> round of its first tokens
    got: dict[int, list[int]] = {}
    while decoder.num_active:
        read.append(0)
        updates = decoder.step()
        decoder.check_integrity(deep=True)
        assert read[-1] <= 16
        for update in updates:
            first.setdefault(update.sequence, len(read))
            got.setdefault(update.sequence, []).extend(t.id for t in update.tokens)
        if len(read) < 10:
            assert runner in {update.sequence for update in updates}  # delayed, but never left out
    assert sum(read) == 303
    assert first[numbers[3]] == 4  # one turn of each long one before it
    assert max(first[n] for n in numbers) == 19  # 303 tokens, 16 per round
    assert [got[n] for n in numbers] == alone


def test_cancelling_frees_the_slot_and_reports_itself(decoder: SpeculativeDecoder) -> None:
    stream = decoder.stream(request(prompts(1)[0]))
    update = next(stream)
    stream.close()
    result = decoder.result(update.sequence)
    assert result.finish_reason == "cancelled"
    assert decoder.num_active == 0
    decoder.check_integrity()
    decoder.cancel(update.sequence)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request([]), "empty"),
        (request([1, 256]), "token id 256 is outside"),
        (request([1] * 160), "do not fit the context of 160"),
        (request([1], tokens=0), "max_tokens: 0"),
        (request([1], sampling=Sampling(temperature=0.5)), "use rejection"),
        (request([1], "rejection", sampling=Sampling(1e-40)), "too small; give 0"),
    ],
)
def test_what_cannot_be_served_is_refused(
    decoder: SpeculativeDecoder, bad: Request, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        decoder.add(bad)
    assert decoder.num_active == 0


def test_one_sequence_too_many_is_refused(decoder: SpeculativeDecoder) -> None:
    for p in prompts(8):
        decoder.add(request(p))
    with pytest.raises(UserError, match="8 sequences are active"):
        decoder.add(request([1]))


def test_without_a_draft_only_none_runs(tiny_target: Path) -> None:
    decoder = SpeculativeDecoder(Engines(None, load_target(Checkpoint(tiny_target), **LIMITS)))
    assert len(decoder.generate([request([5], "none", 4, ignore_end=True)])[0].token_ids) == 4
    with pytest.raises(UserError, match="no draft"):
        decoder.add(request([5], "strict"))
    with pytest.raises(UserError, match="tokenizer"):
        decoder.add(request([5], "none", stop=("x",)))
