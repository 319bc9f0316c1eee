"""Constraints: transformers' processors, exact tokens under `strict`, masks under all rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.decoding.constraints import constrain
from judge_decoding.decoding.contracts import (
    Acceptance,
    Constraints,
    Proposal,
    Sampling,
    VerifyRequest,
)
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sampling import LOWEST, greedy, log_probabilities, probabilities
from judge_decoding.decoding.sequence import Request
from judge_decoding.decoding.verdict import decide
from judge_decoding.errors import UserError
from judge_decoding.text import TextStream, Tokenizer
from judge_decoding.torch_engine.engine import load_drafter, load_target
from tests.torch_engine.test_engine import judge

LIMITS: dict[str, Any] = {
    **{"dtype": "float32", "max_sequences": 8, "max_context": 160, "prefill_chunk": 16}
}
V = 12
ids = st.integers(0, V - 1)
all_constraints = st.builds(
    Constraints,
    prompt_len=st.integers(1, 4),
    repetition=st.sampled_from([1.0, 0.7, 1.3]),
    bias=st.dictionaries(ids, st.floats(-9, 9, width=32), max_size=3).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    bad_words=st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    min_tokens=st.integers(0, 5),
    end_ids=st.just((0, 3)),
)


@pytest.fixture(scope="module")
def decoder(tiny_target: Path, tiny_draft: Path) -> SpeculativeDecoder:
    target = load_target(Checkpoint(tiny_target), judge=judge(), **LIMITS)
    target.end_ids = ()
    drafter = load_drafter(Checkpoint(tiny_draft), target=Checkpoint(tiny_target), **LIMITS)
    return SpeculativeDecoder(
        Engines(drafter, target), tokenizer=Tokenizer(tiny_target), max_draft_len=4
    )


@given(all_constraints, st.lists(ids, min_size=6, max_size=10), st.integers(0, 99))
def test_rows_are_transformers_own(constraints: Constraints, text: list[int], seed: int) -> None:
    """Each row of a draft sees the drafted tokens before it, as when it is processed alone."""
    import transformers as hf

    processors: list[Any] = []
    if constraints.bias:
        processors.append(hf.SequenceBiasLogitsProcessor({(i,): v for i, v in constraints.bias}))
    processors.append(hf.RepetitionPenaltyLogitsProcessor(constraints.repetition))
    if constraints.bad_words:
        processors.append(
            hf.NoBadWordsLogitsProcessor([list(word) for word in constraints.bad_words])
        )
    processors.append(
        hf.MinNewTokensLengthLogitsProcessor(constraints.prompt_len, constraints.min_tokens, [0, 3])
    )
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(seed))
    before = logits.clone()
    got = constrain(logits, constraints, text)
    for row in range(3):
        expected, read = logits[row : row + 1], torch.tensor([text[: len(text) - 2 + row]])
        for process in processors:
            expected = process(read, expected)
        assert torch.equal(got[row], expected[0])
    assert torch.equal(logits, before)


def test_presence_and_frequency_count_the_output_alone() -> None:
    penalties = Constraints(prompt_len=2, presence=0.5, frequency=0.25)
    got = constrain(torch.zeros(2, 4), penalties, [0, 1, 1, 2, 1])
    assert got.tolist() == [[0.0, -0.75, -0.75, 0.0], [0.0, -1.0, -0.75, 0.0]]


def test_a_short_list_is_constrained_by_id() -> None:
    constraints = Constraints(bias=((7, 2.0), (3, 1.0)), bad_words=((9,),))
    columns = torch.tensor([9, 7, 0])
    got = constrain(torch.zeros(1, 3), constraints, [1], vocab_ids=columns, vocab_size=V)
    assert got.tolist() == [[-torch.inf, 2.0, 0.0]]


def test_min_p_is_transformers_own() -> None:
    import transformers as hf

    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    for sampling in (Sampling(1.0, min_p=0.3), Sampling(0.7, 10, 0.8, min_p=0.2)):
        expected = logits / sampling.temperature
        if sampling.top_k:
            expected = hf.TopKLogitsWarper(sampling.top_k)(None, expected)
            expected = hf.TopPLogitsWarper(sampling.top_p)(None, expected)
        expected = hf.MinPLogitsWarper(sampling.min_p)(None, expected).softmax(-1)
        assert torch.allclose(probabilities(logits, sampling), expected, atol=1e-6)


OPTIONS = [
    Constraints(repetition=1.3),
    Constraints(presence=1.5, frequency=0.7),
    Constraints(bias=((5, 3.0), (200, -100.0)), bad_words=((7,), (11, 12))),
    Constraints(repetition=1.2, presence=0.4, frequency=0.4, bias=((9, 2.0),), bad_words=((5,),)),
]


@pytest.mark.parametrize("constraints", OPTIONS)
def test_strict_is_the_target_alone_token_for_token(
    decoder: SpeculativeDecoder, constraints: Constraints
) -> None:
    prompts = [[5, 17, 90, 5], [200, 3], [44] * 9]
    answers = {
        rule: decoder.generate(
            [Request(p, 40, Acceptance(rule=rule), Sampling(0, constraints=constraints))  # type: ignore[arg-type]
             for p in prompts]
        )
        for rule in ("none", "strict")
    }  # fmt: skip
    plain = decoder.generate([Request(p, 40, Acceptance(rule="none")) for p in prompts])
    alone = [result.token_ids for result in answers["none"]]
    assert [result.token_ids for result in answers["strict"]] == alone
    assert alone != [result.token_ids for result in plain]
    assert sum(r.record.num_accepted_draft_tokens for r in answers["strict"]) > 5
    # The target alone, step by step, with the same constraints over its own logits.
    target: Any = decoder.target
    text = list(prompts[0])
    whole = replace(constraints, prompt_len=len(text))
    for _ in range(12):
        hidden = target._read([(99, 0, text)], [1])
        logits = target.model.logits(target.model.final_norm(hidden))
        text.append(int(greedy(constrain(logits, whole, text))))
    target.release(99)
    assert text[len(prompts[0]) :] == alone[0][:12]


@pytest.mark.parametrize("rule", ["strict", "judge", "topk", "typical", "kl", "synthetic", "none"])
def test_below_min_tokens_nothing_ends_the_answer(decoder: SpeculativeDecoder, rule: str) -> None:
    """Regression (vllm#32642): the end token was passed over, and the answer ran on behind it."""
    first = decoder.generate([Request([5, 17], 20, Acceptance(rule="none"))])[0].token_ids
    request = Request(
        [5, 17], 20, Acceptance(rule=rule), stop_ids=(first[0], first[1]), min_tokens=9  # type: ignore[arg-type]
    )  # fmt: skip
    result = decoder.generate([request])[0]
    assert not {first[0], first[1]} & set(result.token_ids[:9])
    assert len(result.token_ids) >= 9


@pytest.mark.parametrize("rule", ["strict", "judge", "none", "rejection"])
def test_logprobs_are_the_raw_targets_under_every_rule(
    decoder: SpeculativeDecoder, rule: str
) -> None:
    """Compared with one pass over the finished answer; neither penalties nor temperature count."""
    options = Sampling(1.5 if rule == "rejection" else 0.0, seed=3, constraints=OPTIONS[1])
    request = Request([5, 17, 90], 20, Acceptance(rule=rule), options)  # type: ignore[arg-type]
    asked = replace(request, sampling=replace(options, logprobs=3))
    plain, result = decoder.generate([request, asked])
    assert (result.token_ids, plain.logprobs) == (plain.token_ids, [])
    target: Any = decoder.target
    hidden = target._read([(99, 0, [5, 17, 90, *result.token_ids[:-1]])], [20])
    with torch.inference_mode():
        logp = target.model.logits(target.model.final_norm(hidden)).log_softmax(-1)
    target.release(99)
    for row, (token, found) in enumerate(zip(result.token_ids, result.logprobs, strict=True)):
        values, ids = logp[row].topk(3)
        assert [i for i, _ in found.top] == ids.tolist()
        assert [v for _, v in found.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert found.chosen == pytest.approx(float(logp[row, token]), abs=1e-4)


def test_logprobs_that_json_lacks_are_the_lowest() -> None:
    row = torch.tensor([[0.0, -torch.inf]])
    assert log_probabilities(row, [1], 5) == [(LOWEST, [(0, 0.0), (1, LOWEST)])]
    broken = log_probabilities(row * torch.nan, [0], 0)
    assert broken == [(LOWEST, [])]


def test_a_requests_own_end_tokens_are_protected(decoder: SpeculativeDecoder) -> None:
    """A judge that accepts everything neither ends an answer early nor runs on behind its end."""
    free = Request([5, 17], 30, Acceptance(rule="judge", threshold=0.0))
    judged = decoder.generate([free])[0]
    at = judged.provenance.index("judged")
    drafted = judged.token_ids[at]
    for fields in ({"stop_ids": (drafted,)}, {"end_id": drafted, "ignore_end": False}):
        result = decoder.generate([replace(free, **fields)])[0]  # type: ignore[arg-type]
        assert result.token_ids[:at] == judged.token_ids[:at]
        assert (result.token_ids[at], result.provenance[at]) != (drafted, "judged")
        own = [i for i, p in zip(result.token_ids, result.provenance, strict=True) if p == "judged"]
        assert drafted not in own
    open_end = Acceptance(rule="judge", threshold=0.0, protect_end_ids=False)
    cut = decoder.generate([replace(free, acceptance=open_end, stop_ids=(drafted,))])[0]
    assert (cut.token_ids, cut.finish_reason) == (judged.token_ids[: at + 1], "stop")


def test_stop_ids_end_ids_and_ignored_end_tokens(decoder: SpeculativeDecoder) -> None:
    """Regression (vllm#4180): an answer ran on behind the turn's end."""
    base = Request([5, 17], 30, Acceptance(rule="strict"))
    whole = decoder.generate([base])[0].token_ids
    third = whole[2]
    cut = whole[: whole.index(third) + 1]
    for fields in ({"stop_ids": (third,)}, {"end_id": third}):
        result = decoder.generate([replace(base, **fields)])[0]  # type: ignore[arg-type]
        assert (result.token_ids, result.finish_reason) == (cut, "stop")
    ignored = replace(base, end_id=third, ignore_end=True)
    assert decoder.generate([ignored])[0].token_ids == whole
    both = replace(base, stop_ids=(third,), ignore_end=True)
    assert decoder.generate([both])[0].token_ids == cut


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"end_id": 300}, "end_id: token id 300"),
        ({"stop_ids": (1, -1)}, "stop_token_ids: token id -1"),
        ({"sampling": Sampling(constraints=Constraints(bias=((256, 1.0),)))}, "logit_bias: token"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(
    decoder: SpeculativeDecoder, fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(UserError, match=rf"^{name}.* is outside the vocabulary \[0, 256\)$"):
        decoder.check(Request([5], 5, **fields))


@pytest.mark.parametrize("rule", ["judge", "topk", "typical", "kl", "fly", "synthetic"])
def test_no_override_accepts_an_excluded_token(rule: str) -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]] * 3)
    request = VerifyRequest(
        0, 0, [0], Proposal([1, 2], torch.tensor([[0.0, 1.0, 0.0]] * 2)),
        Sampling(constraints=Constraints(bad_words=((1,),))),
        Acceptance(rule=rule, fly_entropy=0.0, fly_window=1, synthetic_length=9, kl_tau=999.0),  # type: ignore[arg-type]
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    verdict = decide(request, logits, greedy(logits), torch.ones(2), 0.0, (), generator)
    assert (verdict.accepted, verdict.next_token) == (0, 2)


@pytest.mark.parametrize("min_p", [0.0, 0.6])
def test_rejection_keeps_the_constrained_distribution(min_p: float) -> None:
    """Chi-square of 4,000 tokens against the constrained target's own distribution."""
    constraints = Constraints(prompt_len=1, repetition=1.4, presence=0.6, bias=((1, 0.7),))
    p = torch.tensor([0.5, 0.3, 0.2]).log().repeat(3, 1)
    q = torch.tensor([0.2, 0.2, 0.6]).log().repeat(2, 1)
    generator = torch.Generator().manual_seed(5)
    sampling = Sampling(1.0, min_p=min_p, constraints=constraints)
    counts = torch.zeros(3)
    for _ in range(4000):
        own = probabilities(constrain(q[:1], constraints, [0]), sampling)
        token = int(torch.multinomial(own[0], 1, generator=generator))
        request = VerifyRequest(
            0, 0, [0], Proposal([token], own), sampling, Acceptance(rule="rejection")
        )
        rows = constrain(p[:2], constraints, [0, token])
        verdict = decide(request, rows, greedy(rows), None, 1.0, (), generator)
        counts[token if verdict.accepted else verdict.next_token] += 1
    expected = 4000 * probabilities(constrain(p[:1], constraints, [0]), sampling)[0]
    kept = expected > 0
    assert bool(kept.all()) == (min_p == 0.0)
    assert not counts[~kept].any()
    squares = (counts - expected)[kept] ** 2 / expected[kept]
    assert float(squares.sum()) < 13.8  # p = 0.001, 2 degrees


def test_a_stop_string_within_min_tokens_is_text(tiny_target: Path) -> None:
    """Regression (vllm#21987): it ended the answer early. One that ends later counts as a whole."""
    tokenizer = Tokenizer(tiny_target)
    tokens = [tokenizer.encode(c, special=False)[0] for c in "aENDbENDc"]
    for minimum, expected in ((0, "a"), (3, "a"), (4, "aENDb"), (7, "aENDb"), (8, "aENDbENDc")):
        stream = TextStream(tokenizer, ["END"], min_tokens=minimum)
        text = ""
        for token in tokens:
            text += stream.push(token)
            if stream.stopped:
                break
        assert text + stream.flush() == expected
