"""A rank that holds a shard, or the draft and a shard, and answers the leader.

    mpiexec -n 1 LEADER : -n 3 python -m judge_decoding.ranks.worker --config FILE

Its role follows from its rank (`layout`). It ends when the leader says so, and with the job.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from judge_decoding.config import Deployment, RanksConfig
    from judge_decoding.config.checkpoints import Checkpoints
    from judge_decoding.config.layout import Model, Place
    from judge_decoding.engine.base import ProposeRequest, VerifyRequest
    from judge_decoding.engine.round import Proposer
    from judge_decoding.engine.torch_engine import TorchDrafter, TorchTarget
    from judge_decoding.engine.trtllm import TrtDrafter, TrtTarget
    from judge_decoding.engine.trtllm_loading import Follower
    from judge_decoding.ranks.comm import Comm
    from judge_decoding.ranks.messages import CheckIntegrity, Message, Prefill, Release

    Part = TorchDrafter | TorchTarget | TrtDrafter | TrtTarget | Follower

_GROUP_SHARE = 0.8
"""Of `timeout_s`, for waits inside a group: the rank that waits there must report which peer it
waits for before the leader's own time is up."""
_LAST_WORDS_S = 30.0
_BETWEEN_ROUNDS_S = 2e-3
"""What the leader needs from a round's answer to the next round, responses and all: a rank looks
out for it so long without a sleep, unless the other model's ranks compute meanwhile."""


def set_environment() -> None:
    """Before PyTorch is loaded: an OpenMP thread without work sleeps after 0.5 ms. By default it
    spins for 14 ms after each parallel region, on the core that another rank now computes on.
    Shorter than 0.5 ms it would sleep within a forward, between its regions (docs/ranks.md).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the deployment YAML")
    arguments = parser.parse_args()
    set_environment()
    from judge_decoding.config import load_deployment
    from judge_decoding.config.layout import Layout
    from judge_decoding.errors import UserError
    from judge_decoding.ranks.comm import Comm
    from judge_decoding.serving.environment import announce

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
    """What this rank holds, by the model's name; `proposer` where rounds come in one message."""

    engines: dict[Model, Part]
    proposer: Proposer | None = None


def _work(comm: Comm, place: Place, deployment: Deployment) -> None:
    import torch

    from judge_decoding.config.checkpoints import Checkpoints
    from judge_decoding.config.layout import config_hash
    from judge_decoding.ranks import codecs, messages
    from judge_decoding.ranks.comm import SPIN_S

    ranks = deployment.ranks
    assert ranks is not None
    hello = messages.Hello(
        config_hash(deployment), place.role, place.index, comm.host, os.getpid(), comm.bell
    )
    comm.send(0, codecs.encode(hello), "hello", ranks.startup_timeout_s)
    group = ranks.draft if place.role == "draft" else ranks.target
    torch.set_num_threads(group.threads or max(1, torch.get_num_threads() // group.tp))
    engines: dict[Model, Part] = {}
    checkpoints = Checkpoints.of(deployment)
    for model in place.models:
        engine, fingerprint = _load(comm, place, model, deployment, checkpoints)
        engines[model] = engine
        ready = messages.Ready(
            model,
            fingerprint,
            engine.vocab_size,
            engine.max_context,
            engine.max_sequences,
            getattr(engine, "end_ids", ()),
        )
        comm.send(0, codecs.encode(ready), "ready", ranks.timeout_s)
    del checkpoints  # the files of the weights are closed
    held = _Held(engines, _proposer(comm, engines, ranks))
    alone = deployment.draft is None or ranks.colocate_draft
    spin_s = _BETWEEN_ROUNDS_S if alone else SPIN_S
    _serve(comm, place, held, ranks.timeout_s, spin_s)
    if deployment.engine == "trtllm":
        for engine in engines.values():
            engine.close()  # type: ignore[union-attr]


def _load(
    comm: Comm, place: Place, model: Model, deployment: Deployment, checkpoints: Checkpoints
) -> tuple[Part, str]:
    """This rank's part of a model, and the fingerprint of the whole."""
    if deployment.engine == "trtllm":
        from judge_decoding.engine.trtllm_loading import load_rank

        return load_rank(deployment, checkpoints, model, place.index, place.rank)
    from judge_decoding.engine.loading import deployed_drafter, deployed_target
    from judge_decoding.ranks.group import MpiGroup

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


def _proposer(comm: Comm, engines: dict[Model, Part], ranks: RanksConfig) -> Proposer | None:
    from judge_decoding.engine.torch_engine import TorchDrafter
    from judge_decoding.ranks.group import GroupDrafter

    assert comm.layout is not None
    if not comm.layout.colocated:
        return None
    drafter = engines.get("draft")
    assert drafter is None or isinstance(drafter, TorchDrafter)
    return GroupDrafter(comm, comm.layout.target, drafter, _GROUP_SHARE * ranks.timeout_s)


def _serve(comm: Comm, place: Place, held: _Held, timeout_s: float, spin_s: float) -> None:
    """Answer the leader until it says `Shutdown`."""
    from judge_decoding.ranks import codecs, messages

    while True:
        received = comm.receive(None, source=0, spin_s=spin_s)
        assert received is not None
        _, message, call = received
        if isinstance(message, messages.Welcome):
            comm.hosts = dict(enumerate(message.hosts))
            comm.bells = dict(enumerate(message.bells))
            continue
        try:
            answer = _answer(held, message)
        except Exception as error:
            # The leader decides: a failed integrity check is a finding, all else ends the job.
            answer = _error(error)
        if answer is None:
            continue
        results = (messages.Proposals, messages.Verdicts, messages.Outcome)
        if place.index > 0 and isinstance(answer, results):
            answer = codecs.digest(answer)
        what = f"{messages.name(answer)} {call}"
        comm.send(0, codecs.encode(answer, call), what, timeout_s)
        if isinstance(message, messages.Shutdown):
            return


def _answer(held: _Held, message: Message) -> Message | None:
    from judge_decoding.engine.torch_engine import TorchDrafter, TorchTarget
    from judge_decoding.engine.trtllm import TrtDrafter, TrtTarget
    from judge_decoding.engine.trtllm_loading import Follower
    from judge_decoding.ranks import messages as m

    draft, target = held.engines.get("draft"), held.engines.get("target")
    match message:
        case m.Ping() | m.Shutdown():
            return m.Done()
        case m.Propose(requests) if isinstance(draft, (TorchDrafter, TrtDrafter)):
            return m.Proposals(draft.propose(requests), draft.clock)
        case m.Verify(requests) if isinstance(target, (TorchTarget, TrtTarget)):
            return m.Verdicts(target.verify(requests), target.clock)
        case m.Round(proposes, verifies) if held.proposer and isinstance(target, TorchTarget):
            return _round(held.proposer, draft, target, proposes, verifies)
        case m.Prefill() | m.Release() | m.CheckIntegrity():
            engine = held.engines.get(message.model)
            if engine is not None and not isinstance(engine, Follower):
                return _keep_cache(engine, message)
    raise RuntimeError(f"no answer to {m.name(message)} here")


def _round(
    proposer: Proposer,
    draft: Part | None,
    target: TorchTarget,
    proposes: Sequence[ProposeRequest],
    verifies: Sequence[VerifyRequest],
) -> Message:
    from judge_decoding.engine.base import EngineClock
    from judge_decoding.engine.round import run_round
    from judge_decoding.ranks import messages as m

    done = run_round(proposer, target, proposes, verifies)
    tokens = [p._replace(probs=None, vocab_ids=None) for p in done.proposals]
    clock = draft.clock if draft is not None else EngineClock()
    return m.Outcome(tokens, done.verdicts, done.propose_s, clock, target.clock)


def _keep_cache(
    engine: TorchDrafter | TorchTarget | TrtDrafter | TrtTarget,
    message: Prefill | Release | CheckIntegrity,
) -> Message | None:
    from judge_decoding.ranks import messages as m

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


def _error(error: Exception) -> Message:
    """The message for an exception; its traceback goes to this rank's stderr where it is a bug."""
    from judge_decoding.errors import UserError
    from judge_decoding.ranks import messages
    from judge_decoding.ranks.comm import RankTimeout

    if not isinstance(error, (AssertionError, RankTimeout, UserError)):
        traceback.print_exc()
    about = error.rank if isinstance(error, RankTimeout) else -1
    return messages.Error(type(error).__name__, " ".join(str(error).split()), about)


def _last_words(comm: Comm, error: Exception) -> None:
    """Tell the leader why this rank ends, and give it the time to end the job in good order."""
    from judge_decoding.ranks import codecs

    message = _error(error)
    if comm.rank == 0:
        print(f"judge-decoding: {error}", file=sys.stderr, flush=True)
        return
    try:
        comm.send(0, codecs.encode(message), "error", _LAST_WORDS_S)
        comm.receive(_LAST_WORDS_S, source=0)
    except Exception:
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
