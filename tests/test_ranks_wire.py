"""Messages between ranks: every one survives the wire, and nothing else does."""

from __future__ import annotations

import contextlib
import pickle
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from judge_decoding.config.layout import MODELS
from judge_decoding.engine.base import (
    RULES,
    Acceptance,
    EngineClock,
    Proposal,
    ProposeRequest,
    Sampling,
    Verdict,
    VerifyRequest,
)
from judge_decoding.ranks import codecs, wire
from judge_decoding.ranks import messages as m

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=20)
numbers = st.integers(-1, 2**40)
sizes = st.integers(0, 2**40)
reals = st.floats(allow_nan=False, allow_infinity=False)
clocks = st.builds(EngineClock, st.floats(0, 1e9), st.floats(0, 1e9))
samplings = st.builds(Sampling, reals, sizes, reals, st.integers(0, 2**64 - 1))
acceptances = st.builds(
    Acceptance,
    rule=st.sampled_from(RULES),
    threshold=st.none() | st.floats(0, 1),
    top_k=sizes,
    typical_epsilon=reals,
    typical_delta=reals,
    kl_tau=reals,
    kl_confident=reals,
    fly_entropy=reals,
    fly_window=sizes,
    synthetic_length=reals,
    protect_end_ids=st.booleans(),
)
models = st.sampled_from(MODELS)
texts = st.text(st.characters(codec="utf-8"), max_size=30)


@st.composite
def proposals(draw: Any) -> Proposal:
    ids = draw(tokens)
    if not ids or draw(st.booleans()):
        return Proposal(ids)
    columns = draw(st.integers(1, 9))
    cells = st.lists(st.floats(0, 1, width=32), min_size=columns, max_size=columns)
    probs = torch.tensor([draw(cells) for _ in ids])
    short = draw(st.booleans())
    return Proposal(ids, probs, torch.arange(columns) * 7 if short else None)


propose_requests = st.builds(
    ProposeRequest, numbers, sizes, tokens, sizes, samplings, st.booleans()
)
verify_requests = st.builds(
    VerifyRequest, numbers, sizes, tokens, proposals(), samplings, acceptances
)
verdicts = st.builds(
    Verdict,
    sizes,
    st.lists(st.booleans(), max_size=9),
    st.lists(reals, max_size=9),
    st.integers(0, 2**31),
)
every_message = st.one_of(
    st.builds(m.Hello, texts, texts, sizes, texts, sizes, texts),
    st.lists(texts, max_size=5).map(lambda hosts: m.Welcome(hosts, [h + "!" for h in hosts])),
    st.builds(m.Ready, models, texts, sizes, sizes, sizes, tokens.map(tuple)),
    st.builds(m.Prefill, models, numbers, sizes, tokens),
    st.builds(m.Propose, st.lists(propose_requests, max_size=4)),
    st.builds(m.Proposals, st.lists(proposals(), max_size=4), clocks),
    st.builds(m.Verify, st.lists(verify_requests, max_size=4)),
    st.builds(m.Verdicts, st.lists(verdicts, max_size=4), clocks),
    st.builds(m.Release, models, st.lists(numbers, max_size=5)),
    st.builds(
        m.CheckIntegrity, models, st.dictionaries(numbers, tokens, max_size=4), st.booleans()
    ),
    st.just(m.Ping()),
    st.builds(m.Done, clocks),
    st.builds(m.Digest, st.integers(0, 2**64 - 1)),
    st.builds(m.Error, texts, texts, numbers),
    st.just(m.Shutdown()),
    st.builds(
        m.Round, st.lists(propose_requests, max_size=3), st.lists(verify_requests, max_size=3)
    ),
    st.builds(
        m.Outcome,
        st.lists(proposals(), max_size=3),
        st.lists(verdicts, max_size=3),
        st.floats(0, 1e9),
        clocks,
        clocks,
    ),
)


def plain(value: Any) -> Any:
    """Comparable: tensors as (dtype, shape, values)."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__name__, [plain(getattr(value, n)) for n in value.__dataclass_fields__]
    return value


@given(every_message, st.integers(0, 2**64 - 1))
def test_every_message_survives(message: m.Message, call: int) -> None:
    got, number = codecs.decode(bytearray(codecs.encode(message, call)))
    assert type(got) is type(message)
    assert plain(got) == plain(message)
    assert number == call


def test_the_strategies_cover_every_kind() -> None:
    assert len(every_message.branches) == len(codecs._CODECS)


@pytest.mark.parametrize("seed", [-1, 2**63 + 5, 2**200 + 3])
def test_a_seed_of_any_size_keeps_its_draws(seed: int) -> None:
    """An engine takes seeds modulo 2^63; so many bits must survive."""
    sent = m.Propose([ProposeRequest(0, 0, [1], 1, Sampling(1.0, seed=seed))])
    got, _ = codecs.decode(bytearray(codecs.encode(sent)))
    assert isinstance(got, m.Propose)
    assert got.requests[0].sampling.seed % 2**63 == seed % 2**63


@given(every_message, st.data())
@settings(max_examples=300)
def test_a_damaged_message_is_an_error_of_the_wire_or_a_message(
    message: m.Message, data: Any
) -> None:
    """Never another exception, and never an allocation that a length in it asked for."""
    raw = bytearray(codecs.encode(message, 3))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(wire.WireError):
        codecs.decode(raw)


@given(every_message, st.integers(1, 200))
@example(m.Ping(), 1)
def test_a_message_cut_short_says_so(message: m.Message, cut: int) -> None:
    raw = bytearray(codecs.encode(message))
    with pytest.raises(wire.WireError, match=r"follow|shorter than a header"):
        codecs.decode(raw[: max(0, len(raw) - cut)])
    body = max(0, len(raw) - wire.HEADER_BYTES - cut // 8 * 8)
    shorter = raw[: wire.HEADER_BYTES + body]
    struct.pack_into("<Q", shorter, 16, body)
    if len(shorter) < len(raw):
        with pytest.raises(wire.WireError, match=r"cut short"):
            codecs.decode(shorter)


def test_foreign_and_other_versions_are_named() -> None:
    with pytest.raises(wire.WireError, match=r"foreign message of \d+ bytes: .*x80"):
        codecs.decode(pickle.dumps(list(range(30))))
    raw = bytearray(codecs.encode(m.Ping()))
    struct.pack_into("<H", raw, 4, 9)
    with pytest.raises(wire.WireError, match="version 9, this rank speaks 2"):
        codecs.decode(raw)
    struct.pack_into("<HH", raw, 4, wire.VERSION, 99)
    with pytest.raises(wire.WireError, match="unknown kind 99"):
        codecs.decode(raw)
    longer = codecs.encode(m.Ping())[:16] + struct.pack("<Q", 8) + bytes(8)
    with pytest.raises(wire.WireError, match="8 bytes too many"):
        codecs.decode(longer)


def test_a_length_beyond_the_message_allocates_nothing() -> None:
    raw = bytearray(codecs.encode(m.Release("draft", [1, 2, 3])))
    struct.pack_into("<Q", raw, wire.HEADER_BYTES + 8, 2**60)
    with pytest.raises(wire.WireError, match=r"cut short: \d+ bytes wanted, 24 left"):
        codecs.decode(raw)


def test_a_message_too_large_is_refused_by_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BYTES", 1000)
    with pytest.raises(wire.WireError, match=r"limit is 1,000; lower limits.max_sequences"):
        codecs.encode(m.Prefill("draft", 0, 0, list(range(300))))


def test_a_digest_sees_the_result_and_not_the_clock() -> None:
    one = m.Verdicts([Verdict(1, [True], [0.5], 7)], EngineClock(1.0, 2.0))
    assert codecs.digest(one) == codecs.digest(replace(one, clock=EngineClock(3.0, 4.0)))
    other = [Verdict(1, [False], [0.5], 7)]
    assert codecs.digest(one) != codecs.digest(replace(one, verdicts=other))
    both = m.Outcome([Proposal([3])], other, 0.1, EngineClock(1.0), EngineClock(2.0))
    assert codecs.digest(both) == codecs.digest(m.Outcome([Proposal([3])], other))
    assert codecs.digest(both) != codecs.digest(m.Outcome([Proposal([4])], other))
