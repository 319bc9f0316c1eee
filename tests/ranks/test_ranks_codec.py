"""Messages between ranks: each one survives encoding, and nothing else is accepted."""

from __future__ import annotations

import contextlib
import math
import pickle
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judge_decoding.config.layout import MODELS
from judge_decoding.decoding.contracts import (
    RULES,
    Acceptance,
    Constraints,
    EngineClock,
    Proposal,
    ProposeRequest,
    Sampling,
    TokenLogprobs,
    Verdict,
    VerifyRequest,
)
from judge_decoding.ranks import codec
from judge_decoding.ranks import messages as m

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=20)
numbers = st.integers(-1, 2**40)
sizes = st.integers(0, 2**40)
reals = st.floats(allow_nan=False, allow_infinity=False)
clocks = st.builds(EngineClock, st.floats(0, 1e9), st.floats(0, 1e9))
constraints = st.builds(
    Constraints,
    *(sizes, reals, reals, reals),
    st.lists(st.tuples(sizes, reals), max_size=3).map(tuple),
    st.lists(tokens.map(tuple), max_size=3).map(tuple),
    sizes,
    tokens.map(tuple),
)
samplings = st.builds(
    Sampling,
    reals,
    sizes,
    reals,
    st.integers(0, 2**64 - 1),
    reals,
    st.none() | constraints,
    st.none() | sizes,
)
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
    more_end_ids=st.lists(sizes, max_size=3).map(tuple),
)
HEADER = 16
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
    st.lists(
        st.builds(TokenLogprobs, reals, st.lists(st.tuples(sizes, reals), max_size=3)), max_size=3
    ),
)
MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    m.Hello: st.builds(m.Hello, texts, texts, sizes, texts, sizes, texts),
    m.Welcome: st.lists(texts, max_size=5).map(
        lambda hosts: m.Welcome(hosts, [host + "!" for host in hosts])
    ),
    m.Ready: st.builds(m.Ready, models, texts, sizes, sizes, sizes, tokens.map(tuple)),
    m.Prefill: st.builds(m.Prefill, models, numbers, sizes, tokens),
    m.Propose: st.builds(m.Propose, st.lists(propose_requests, max_size=4)),
    m.Proposals: st.builds(m.Proposals, st.lists(proposals(), max_size=4), clocks),
    m.Verify: st.builds(m.Verify, st.lists(verify_requests, max_size=4)),
    m.Verdicts: st.builds(m.Verdicts, st.lists(verdicts, max_size=4), clocks),
    m.Release: st.builds(m.Release, models, st.lists(numbers, max_size=5)),
    m.CheckIntegrity: st.builds(
        m.CheckIntegrity, models, st.dictionaries(numbers, tokens, max_size=4), st.booleans()
    ),
    m.Ping: st.just(m.Ping()),
    m.Done: st.builds(m.Done, clocks),
    m.Digest: st.builds(m.Digest, st.integers(0, 2**64 - 1)),
    m.Error: st.builds(m.Error, texts, texts, numbers),
    m.Shutdown: st.just(m.Shutdown()),
    m.RoundRequest: st.builds(
        m.RoundRequest,
        st.lists(propose_requests, max_size=3),
        st.lists(verify_requests, max_size=3),
    ),
    m.RoundReply: st.builds(
        m.RoundReply,
        st.lists(proposals(), max_size=3),
        st.lists(verdicts, max_size=3),
        st.floats(0, 1e9),
        clocks,
        clocks,
    ),
}
every_message = st.one_of(*MESSAGES.values())
each_kind = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)


def plain(value: Any) -> Any:
    """A comparable form: tensors as (dtype, shape, values)."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__name__, [plain(getattr(value, n)) for n in value.__dataclass_fields__]
    return value


def example_of(kind: type) -> m.Message:
    """A message of this kind with a value in every field."""
    some = [ProposeRequest(1, 2, [3], 4)], [VerifyRequest(1, 2, [3])]
    answers = [Proposal([3])], [Verdict(0, [], [], 7)]
    arguments: dict[type, tuple[Any, ...]] = {
        m.Hello: ("hash", "draft", 0, "host", 7, "bell"),
        m.Welcome: (["host"], ["bell"]),
        m.Ready: ("draft", "print", 1, 2, 3, (4,)),
        m.Prefill: ("draft", 1, 0, [3]),
        m.Propose: (some[0],),
        m.Proposals: (answers[0], EngineClock()),
        m.Verify: (some[1],),
        m.Verdicts: (answers[1], EngineClock()),
        m.Release: ("target", [1]),
        m.CheckIntegrity: ("target", {1: [2]}, True),
        m.Digest: (5,),
        m.Error: ("E", "text"),
        m.RoundRequest: some,
        m.RoundReply: answers,
    }
    message: m.Message = kind(*arguments.get(kind, ()))
    return message


def travelled(message: m.Message) -> Any:
    return codec.decode(codec.encode(message))[0]


def fields_of(message: m.Message) -> list[Any]:
    """The encoded fields, for a test to change."""
    fields: list[Any] = msgspec.msgpack.decode(codec.encode(message)[HEADER:])
    return fields


def forged(kind: type, fields: Any) -> bytes:
    """A message of this kind with other fields."""
    number = get_args(m.Message).index(kind)
    header = struct.pack("<4sHHQ", b"JDRK", codec.VERSION, number, 0)
    return header + msgspec.msgpack.encode(fields)


def test_the_strategies_cover_every_kind() -> None:
    assert tuple(MESSAGES) == get_args(m.Message)
    assert len(MESSAGES) == 17


@each_kind
@given(st.data(), st.integers(0, 2**64 - 1))
@settings(max_examples=40)
def test_every_message_survives(kind: type, data: Any, call: int) -> None:
    message = data.draw(MESSAGES[kind])
    got, number = codec.decode(codec.encode(message, call))
    assert type(got) is kind
    assert plain(got) == plain(message)
    assert number == call


@pytest.mark.parametrize("seed", [-1, 2**63 + 5, 2**200 + 3])
def test_a_seed_of_any_size_keeps_its_draws(seed: int) -> None:
    """An engine takes seeds modulo 2^63, so that many bits must survive."""
    got = travelled(m.Propose([ProposeRequest(0, 0, [1], 1, Sampling(1.0, seed=seed))]))
    assert got.requests[0].sampling.seed == seed % 2**64


def test_scores_need_not_be_finite() -> None:
    got = travelled(m.Verdicts([Verdict(0, [], [math.nan, math.inf, -math.inf], 7)], EngineClock()))
    nan, *infinite = got.verdicts[0].scores
    assert math.isnan(nan) and infinite == [math.inf, -math.inf]


def test_an_error_is_cut_and_need_not_be_unicode() -> None:
    """A file name that is not UTF-8 has surrogates; its error must still reach the leader."""
    got = travelled(m.Error("OSError", "/models/\udcff" + "x" * 9999))
    assert got.text == "/models/?" + "x" * (codec.MAX_ERROR_CHARACTERS - 9)


@given(every_message, st.data())
@settings(max_examples=300)
def test_a_damaged_message_is_an_error_of_the_wire_or_a_message(
    message: m.Message, data: Any
) -> None:
    """Never another exception, and never an allocation that a length in it asked for."""
    raw = codec.encode(message, 3)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(codec.WireError):
        codec.decode(raw)


@each_kind
@given(st.data(), st.integers(1, 200))
@settings(max_examples=20)
def test_a_message_cut_short_says_so(kind: type, data: Any, cut: int) -> None:
    raw = codec.encode(data.draw(MESSAGES[kind]))
    left = max(0, len(raw) - cut)
    expected = "shorter than a header" if left < HEADER else f"damaged {kind.__name__} .*truncated"
    with pytest.raises(codec.WireError, match=expected):
        codec.decode(raw[:left])


@each_kind
def test_bytes_too_many_are_refused(kind: type) -> None:
    with pytest.raises(codec.WireError, match=rf"damaged {kind.__name__} .* trailing characters"):
        codec.decode(codec.encode(example_of(kind)) + b"\0")


def test_foreign_and_other_versions_are_named() -> None:
    with pytest.raises(codec.WireError, match=r"foreign message of \d+ bytes: .*x80"):
        codec.decode(pickle.dumps(list(range(30))))
    raw = codec.encode(m.Ping())
    struct.pack_into("<H", raw, 4, 9)
    with pytest.raises(codec.WireError, match="version 9, this rank speaks 4"):
        codec.decode(raw)
    struct.pack_into("<HH", raw, 4, codec.VERSION, 99)
    with pytest.raises(codec.WireError, match="unknown kind 99"):
        codec.decode(raw)
    struct.pack_into("<H", raw, 6, 17)
    with pytest.raises(codec.WireError, match="unknown kind 17"):
        codec.decode(raw)


@each_kind
def test_a_field_too_many_or_too_few_is_refused(kind: type) -> None:
    fields = fields_of(example_of(kind))
    wrong = [[*fields, 0], fields[:-1]] if fields else [[0]]
    for other in wrong:
        expected = f"damaged {kind.__name__} message: .* of length {len(fields)}, got {len(other)}"
        with pytest.raises(codec.WireError, match=expected):
            codec.decode(forged(kind, other))


@each_kind
def test_a_field_of_another_type_is_refused(kind: type) -> None:
    fields = fields_of(example_of(kind))
    for i in range(len(fields)):
        other = [*fields[:i], b"no field's type", *fields[i + 1 :]]
        with pytest.raises(codec.WireError, match=rf"damaged {kind.__name__} .* at `\$\[{i}\]`"):
            codec.decode(forged(kind, other))
    with pytest.raises(codec.WireError, match="Expected `array`, got `str`"):
        codec.decode(forged(kind, "fields"))


def test_a_text_that_is_not_utf8_is_refused() -> None:
    raw = codec.encode(m.Error("E", "text"))
    raw[raw.index(b"text")] = 0xFF
    with pytest.raises(codec.WireError, match=r"damaged Error message: .*(UTF-8|utf-8)"):
        codec.decode(raw)


def test_values_inside_a_message_are_as_strict() -> None:
    for index, other, expected in (
        (0, "0", "Expected `int`, got `str`"),
        (0, 1.5, "Expected `int`, got `float`"),
        (0, True, "Expected `int`, got `bool`"),
        (1, [1], "Expected `bool`, got `int`"),
        (2, "0.5", "Expected `array`, got `str`"),
    ):
        fields = fields_of(m.Verdicts([Verdict(1, [True], [0.5], 7)], EngineClock()))
        fields[0][0][index] = other
        place = rf"`\$\[0\]\[0\]\[{index}\]"
        with pytest.raises(codec.WireError, match=f"{expected} - at {place}"):
            codec.decode(forged(m.Verdicts, fields))


def test_a_model_or_rule_that_is_not_known_is_named() -> None:
    with pytest.raises(codec.WireError, match=r"damaged Release .*value 'third' - at `\$\[0\]`"):
        codec.decode(forged(m.Release, ["third", [1]]))
    with pytest.raises(codec.WireError, match=r"damaged Release .*got `int` - at `\$\[0\]`"):
        codec.decode(forged(m.Release, [2, [1]]))
    fields = fields_of(m.Verify([VerifyRequest(0, 0, [1])]))
    fields[0][0][-1][0] = "lenient"
    with pytest.raises(codec.WireError, match=r"damaged Verify .*value 'lenient'"):
        codec.decode(forged(m.Verify, fields))


@pytest.mark.parametrize(
    ("index", "tensor", "expected"),
    [
        (1, ["<f4", [2, 3], bytes(20)], r"20 bytes are no tensor of <f4 \[2, 3\]"),
        (1, ["<f4", [1, 3], bytes(12)], r"draft probabilities \[1, 3\] for 2 tokens"),
        (1, ["<f4", [6], bytes(24)], r"draft probabilities \[6\] for 2 tokens"),
        (1, ["<f4", [2, 3, 1], bytes(24)], "length <= 2"),
        (1, ["<f4", [-2, -3], bytes(24)], "`int` >= 0"),
        (1, ["<f4", [0, 2**63], b""], f"`int` <= {2**30}"),
        (1, ["<f8", [2, 3], bytes(48)], "value '<f8'"),
        (1, ["|O", [2, 3], bytes(48)], "value '|O'"),
        (2, ["<i8", [2], bytes(16)], r"vocabulary ids \[2\] for other draft probabilities"),
        (2, ["<i8", [3, 1], bytes(24)], r"vocabulary ids \[3, 1\] for other"),
    ],
)
def test_a_tensor_is_what_it_says_and_fits_its_tokens(
    index: int, tensor: Sequence[Any], expected: str
) -> None:
    fields = fields_of(m.Proposals([Proposal([4, 5], torch.ones(2, 3))], EngineClock()))
    assert fields[0][0] == [[4, 5], ["<f4", [2, 3], bytes(torch.ones(6).numpy())], None]
    fields[0][0][index] = tensor
    with pytest.raises(codec.WireError, match=f"damaged Proposals message: .*{expected}"):
        codec.decode(forged(m.Proposals, fields))


def test_probabilities_without_tokens_are_refused() -> None:
    sent = m.Proposals([Proposal([], torch.ones(0, 3))], EngineClock())
    with pytest.raises(codec.WireError, match=r"draft probabilities \[0, 3\] for 0 tokens"):
        travelled(sent)


def test_a_length_beyond_the_message_allocates_nothing() -> None:
    four_gib = struct.pack(">I", 2**32 - 1)
    header = codec.encode(m.Release("draft", []))[:-1]
    with pytest.raises(codec.WireError, match="truncated"):
        codec.decode(header + b"\xdd" + four_gib + b"\1\2\3")
    raw = codec.encode(m.Error("E", ""))
    at = raw.index(b"E") + 1
    with pytest.raises(codec.WireError, match="truncated"):
        codec.decode(raw[:at] + b"\xdb" + four_gib + b"text")


def test_a_message_too_large_is_refused_by_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_BYTES", 1000)
    codec.encode(m.Prefill("draft", 0, 0, [0] * 900))
    with pytest.raises(codec.WireError, match=r"limit is 1,000; lower limits.max_sequences"):
        codec.encode(m.Prefill("draft", 0, 0, [0] * 1000))


def test_a_digest_sees_the_result_and_not_the_clock() -> None:
    one = m.Verdicts([Verdict(1, [True], [0.5], 7)], EngineClock(1.0, 2.0))
    assert codec.digest(one) == codec.digest(replace(one, clock=EngineClock(3.0, 4.0)))
    other = [Verdict(1, [False], [0.5], 7)]
    assert codec.digest(one) != codec.digest(replace(one, verdicts=other))
    both = m.RoundReply([Proposal([3])], other, 0.1, EngineClock(1.0), EngineClock(2.0))
    assert codec.digest(both) == codec.digest(m.RoundReply([Proposal([3])], other))
    assert codec.digest(both) != codec.digest(m.RoundReply([Proposal([4])], other))


def test_a_digest_has_64_bits_and_is_sent_as_any_message() -> None:
    verdicts = m.Verdicts([Verdict(1, [False], [], 7)], EngineClock())
    found = codec.digest(verdicts)
    assert 0 < found.value < 2**64
    assert codec.decode(codec.encode(found, 3)) == (found, 3)
    assert codec.digest(m.Ping()) == m.Digest(0)
