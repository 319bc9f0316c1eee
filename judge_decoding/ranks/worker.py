"""A rank that holds models, or shards of them, and answers the leader.

`launch` is its program. Its role follows from its rank (`config.layout`). It ends when the leader
tells it to, or with the job.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import traceback
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from judge_decoding.config import Deployment, RanksConfig, load_deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Layout, Model, Place, config_hash
from judge_decoding.decoding.contracts import EngineClock
from judge_decoding.decoding.round import Proposer, run_round
from judge_decoding.errors import UserError
from judge_decoding.ranks import codec
from judge_decoding.ranks import messages as m
from judge_decoding.ranks.comm import SPIN_S, Comm, RankTimeout
from judge_decoding.ranks.group import GroupDrafter, MpiGroup
from judge_decoding.ranks.run_folder import announce
from judge_decoding.torch_engine.engine import TorchDrafter, TorchTarget
from judge_decoding.torch_engine.loading import deployed_drafter, deployed_target
from judge_decoding.trtllm.engine import TrtDrafter, TrtTarget
from judge_decoding.trtllm.open_engines import Follower, load_rank

_Engine: TypeAlias = TorchDrafter | TorchTarget | TrtDrafter | TrtTarget
_Part: TypeAlias = _Engine | Follower

_GROUP_SHARE = 0.8
"""The share of `timeout_s` for a wait inside a group: the rank that waits there must report which
peer it waits for before the leader's own time is up."""
_LAST_WORDS_S = 30.0
_BETWEEN_ROUNDS_S = 2e-3
"""The time that the leader needs from a round's answer to the next round, responses included. A
rank polls for this long without a sleep, unless the other model's ranks compute meanwhile."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the deployment YAML")
    arguments = parser.parse_args()
    try:
        deployment = load_deployment(arguments.config)
    except UserError as error:
        print(f"judge-decoding: {error}", file=sys.stderr, flush=True)
        return 2
    wait_s = deployment.ranks.startup_timeout_s if deployment.ranks else _LAST_WORDS_S
    faulthandler.dump_traceback_later(wait_s, exit=True)  # MPI holds the GIL while it waits
    comm = Comm(deployment)
    faulthandler.cancel_dump_traceback_later()
    try:
        layout = Layout.of(deployment)
        if comm.rank == 0:
            raise UserError("ranks: rank 0 leads; start workers as the ranks after it (mpiexec)")
        layout.check_world(comm.size)
        comm.layout = layout
        place = layout.place(comm.rank)
        announce(str(place))
        build = deployment.trtllm if deployment.engine == "trtllm" else None
        if build is not None and build.mode == "orchestrator":
            raise UserError(
                "trtllm.mode orchestrator: it spawns its ranks itself; start one process alone"
            )
        _work(comm, place, deployment)
    except Exception as error:
        _last_words(comm, error)
        return 2 if isinstance(error, UserError) else 1
    comm.finalize()
    return 0


class _Held(NamedTuple):
    """This rank's engines by model, and its `proposer` if a round comes in one message."""

    engines: dict[Model, _Part]
    proposer: Proposer | None = None


def _work(comm: Comm, place: Place, deployment: Deployment) -> None:
    ranks = deployment.ranks
    assert ranks is not None
    hello = m.Hello(
        config_hash(deployment), place.role, place.index, comm.host, os.getpid(), comm.bell
    )
    comm.send(0, codec.encode(hello), "hello", ranks.startup_timeout_s)
    group = ranks.draft if place.role == "draft" else ranks.target
    torch.set_num_threads(group.threads or max(1, torch.get_num_threads() // group.tp))
    engines: dict[Model, _Part] = {}
    checkpoints = Checkpoints.of(deployment)
    for model in place.models:
        engine, fingerprint = _load(comm, place, model, deployment, checkpoints)
        engines[model] = engine
        ready = m.Ready(
            model,
            fingerprint,
            engine.vocab_size,
            engine.max_context,
            engine.max_sequences,
            getattr(engine, "end_ids", ()),
        )
        comm.send(0, codec.encode(ready), "ready", ranks.timeout_s)
    del checkpoints  # closes the weight files
    held = _Held(engines, _proposer(comm, engines, ranks))
    alone = deployment.draft is None or ranks.colocate_draft
    spin_s = _BETWEEN_ROUNDS_S if alone else SPIN_S
    _serve(comm, place, held, ranks.timeout_s, spin_s)
    if deployment.engine == "trtllm":
        for engine in engines.values():
            engine.close()  # type: ignore[union-attr]


def _load(
    comm: Comm, place: Place, model: Model, deployment: Deployment, checkpoints: Checkpoints
) -> tuple[_Part, str]:
    """This rank's part of a model, and the fingerprint of the whole model."""
    if deployment.engine == "trtllm":
        return load_rank(deployment, checkpoints, model, place.index, place.rank)
    assert deployment.ranks is not None
    assert comm.layout is not None
    members = comm.layout.draft if model == "draft" else comm.layout.target
    group = MpiGroup(comm, members, _GROUP_SHARE * deployment.ranks.timeout_s)
    if model == "draft":
        drafter = deployed_drafter(deployment, checkpoints, group)
        assert drafter is not None
        return drafter, checkpoints[model].fingerprint
    judge = checkpoints.checked_judge()
    return deployed_target(deployment, checkpoints, judge, group), checkpoints[model].fingerprint


def _proposer(comm: Comm, engines: dict[Model, _Part], ranks: RanksConfig) -> Proposer | None:
    assert comm.layout is not None
    if not comm.layout.colocated:
        return None
    drafter = engines.get("draft")
    assert drafter is None or isinstance(drafter, TorchDrafter)
    return GroupDrafter(comm, comm.layout.target, drafter, _GROUP_SHARE * ranks.timeout_s)


def _serve(comm: Comm, place: Place, held: _Held, timeout_s: float, spin_s: float) -> None:
    """Answer the leader until it sends `Shutdown`."""
    while True:
        received = comm.receive(None, source=0, spin_s=spin_s)
        assert received is not None
        _, message, call = received
        if isinstance(message, m.Welcome):
            comm.hosts = dict(enumerate(message.hosts))
            comm.bells = dict(enumerate(message.bells))
            continue
        try:
            answer = _answer(held, message)
        except Exception as error:
            # The leader decides: it reports a failed integrity check, any other error ends the job.
            answer = _error(error)
        if answer is None:
            continue
        if place.index > 0 and isinstance(answer, (m.Proposals, m.Verdicts, m.RoundReply)):
            answer = codec.digest(answer)
        comm.send(0, codec.encode(answer, call), f"{m.name(answer)} {call}", timeout_s)
        if isinstance(message, m.Shutdown):
            return


def _answer(held: _Held, message: m.Message) -> m.Message | None:
    """The answer to a message, or None if it has none. RuntimeError if this rank does not hold the
    model for it."""
    draft, target = held.engines.get("draft"), held.engines.get("target")
    match message:
        case m.Ping() | m.Shutdown():
            return m.Done()
        case m.Propose(requests) if isinstance(draft, (TorchDrafter, TrtDrafter)):
            return m.Proposals(draft.propose(requests), draft.clock)
        case m.Verify(requests) if isinstance(target, (TorchTarget, TrtTarget)):
            return m.Verdicts(target.verify(requests), target.clock)
        case m.RoundRequest() if held.proposer and isinstance(target, TorchTarget):
            return _round(held.proposer, draft, target, message)
        case m.Prefill() | m.Release() | m.CheckIntegrity():
            engine = held.engines.get(message.model)
            if isinstance(engine, _Engine):
                return _keep_cache(engine, message)
    raise RuntimeError(f"no answer to {m.name(message)} here")


def _round(
    proposer: Proposer, draft: _Part | None, target: TorchTarget, request: m.RoundRequest
) -> m.RoundReply:
    done = run_round(proposer, target, request.proposes, request.verifies)
    tokens = [p._replace(probs=None, vocab_ids=None) for p in done.proposals]
    clock = draft.clock if draft is not None else EngineClock()
    return m.RoundReply(tokens, done.verdicts, done.propose_s, clock, target.clock)


def _keep_cache(
    engine: _Engine, message: m.Prefill | m.Release | m.CheckIntegrity
) -> m.Done | None:
    match message:
        case m.Prefill(_, sequence, keep, tokens):
            engine.prefill(sequence, keep, tokens)
        case m.Release(_, sequences):
            for sequence in sequences:
                engine.release(sequence)
            return None
        case m.CheckIntegrity(_, expected, deep):
            engine.check_integrity(expected, deep=deep)
    return m.Done(engine.clock)


def _error(error: Exception) -> m.Error:
    """The message for an exception. A bug's traceback goes to this rank's stderr."""
    if not isinstance(error, (AssertionError, RankTimeout, UserError)):
        traceback.print_exc()
    about = error.rank if isinstance(error, RankTimeout) else -1
    return m.Error(type(error).__name__, " ".join(str(error).split()), about)


def _last_words(comm: Comm, error: Exception) -> None:
    """Tell the leader why this rank ends, and give it time to end the job in good order."""
    message = _error(error)
    if comm.rank == 0:
        print(f"judge-decoding: {error}", file=sys.stderr, flush=True)
        return
    try:
        comm.send(0, codec.encode(message), "error", _LAST_WORDS_S)
        comm.receive(_LAST_WORDS_S, source=0)
    except Exception:
        traceback.print_exc()
