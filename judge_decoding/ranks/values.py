"""How the engines' values (`engine.base`) are written into a message and read from it."""

from __future__ import annotations

import struct
from dataclasses import astuple
from typing import cast

import numpy as np
import torch

from judge_decoding.engine.base import (
    RULES,
    Acceptance,
    EngineClock,
    Proposal,
    ProposeRequest,
    RuleName,
    Sampling,
    Verdict,
    VerifyRequest,
)
from judge_decoding.ranks.wire import Reader, WireError, Writer

_PAIR = struct.Struct("<qq")
_CLOCK = struct.Struct("<dd")
_SAMPLING = struct.Struct("<dqdQ")
_PROPOSE = struct.Struct("<qqq?")
_PROPOSAL = struct.Struct("<??QQ")
_ACCEPTANCE = struct.Struct("<B?dqdddddqd?")


def _write_sampling(out: Writer, value: Sampling) -> None:
    # A seed counts modulo 2^63 (`TorchEngine._generator`), so 64 bits of it are enough.
    seed = value.seed % 2**64
    out.record(_SAMPLING, value.temperature, value.top_k, value.top_p, seed)


def _read_sampling(data: Reader) -> Sampling:
    return Sampling(*data.record(_SAMPLING))


def _write_acceptance(out: Writer, value: Acceptance) -> None:
    rule, threshold, *rest = astuple(value)
    given = threshold is not None
    out.record(_ACCEPTANCE, RULES.index(rule), given, threshold if given else 0.0, *rest)


def _read_acceptance(data: Reader) -> Acceptance:
    number, given, threshold, *rest = data.record(_ACCEPTANCE)
    if number >= len(RULES):
        raise WireError(f"acceptance rule number {number}, this rank knows {len(RULES)}")
    rule = cast(RuleName, RULES[number])
    return Acceptance(rule, threshold if given else None, *rest)


def write_proposal(out: Writer, value: Proposal) -> None:
    out.array(value.tokens, "<i4")
    probs, ids = value.probs, value.vocab_ids
    rows, columns = (0, 0) if probs is None else probs.shape
    out.record(_PROPOSAL, probs is not None, ids is not None, rows, columns)
    if probs is not None:
        out.array(probs.numpy().reshape(-1), "<f4")
    if ids is not None:
        out.array(ids.numpy(), "<i4")


def read_proposal(data: Reader) -> Proposal:
    tokens = data.integers()
    has_probs, has_ids, rows, columns = data.record(_PROPOSAL)
    probs = ids = None
    if has_probs:
        flat = data.array("<f4")
        if rows * columns != flat.size or rows != len(tokens) or not rows:
            raise WireError(
                f"{flat.size} draft probabilities for {len(tokens)} tokens do not make "
                f"{rows} x {columns}"
            )
        probs = torch.from_numpy(flat.copy()).view(rows, columns)
    if has_ids:
        ids = torch.from_numpy(data.array("<i4").astype(np.int64))
    return Proposal(tokens, probs, ids)


def write_clock(out: Writer, value: EngineClock) -> None:
    out.record(_CLOCK, value.forward, value.judge)


def read_clock(data: Reader) -> EngineClock:
    return EngineClock(*data.record(_CLOCK))


def write_propose_request(out: Writer, value: ProposeRequest) -> None:
    out.record(_PROPOSE, value.sequence, value.keep, value.draft_len, value.with_probs)
    _write_sampling(out, value.sampling)
    out.array(value.tokens, "<i4")


def read_propose_request(data: Reader) -> ProposeRequest:
    sequence, keep, draft_len, with_probs = data.record(_PROPOSE)
    sampling, tokens = _read_sampling(data), data.integers()
    return ProposeRequest(sequence, keep, tokens, draft_len, sampling, with_probs)


def write_verify_request(out: Writer, value: VerifyRequest) -> None:
    out.record(_PAIR, value.sequence, value.keep)
    out.array(value.tokens, "<i4")
    write_proposal(out, value.draft)
    _write_sampling(out, value.sampling)
    _write_acceptance(out, value.acceptance)


def read_verify_request(data: Reader) -> VerifyRequest:
    sequence, keep = data.record(_PAIR)
    tokens, draft = data.integers(), read_proposal(data)
    sampling, acceptance = _read_sampling(data), _read_acceptance(data)
    return VerifyRequest(sequence, keep, tokens, draft, sampling, acceptance)


def write_verdict(out: Writer, value: Verdict) -> None:
    out.record(_PAIR, value.accepted, value.next_token)
    out.array(value.overridden, "u1")
    out.array(value.scores, "<f8")


def read_verdict(data: Reader) -> Verdict:
    accepted, next_token = data.record(_PAIR)
    overridden = data.array("u1").astype(bool).tolist()
    return Verdict(accepted, overridden, data.array("<f8").tolist(), next_token)
