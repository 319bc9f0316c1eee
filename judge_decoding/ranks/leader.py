"""Rank 0's side: engines for the loop, whose every call is one message to a group of ranks.

`open_ranks` waits until every rank has loaded. From then on, a rank that fails, disagrees or does
not answer in time ends the whole job, with one message on stderr that names it.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn, TypeVar

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Layout, Model, config_hash
from judge_decoding.decoding.contracts import (
    Acceptance,
    EngineClock,
    Proposal,
    ProposeRequest,
    Sampling,
    Verdict,
    VerifyRequest,
)
from judge_decoding.decoding.judge import Judge
from judge_decoding.decoding.round import Engines, Round
from judge_decoding.errors import UserError
from judge_decoding.ranks import codec, run_folder
from judge_decoding.ranks import messages as m
from judge_decoding.ranks.codec import WireError
from judge_decoding.ranks.comm import Comm, RankTimeout
from judge_decoding.trtllm.open_engines import EngineCheck, compiled_judge, engine_check

_Answer = TypeVar("_Answer", bound=m.Message)

LAST_WORDS_S = 1.0
"""Seconds to wait before an abort: mpiexec discards output that it has not passed on yet."""


def open_ranks(deployment: Deployment, checkpoints: Checkpoints) -> Ranks:
    """Greet the ranks of this MPI world and wait until they have loaded the deployment.

    UserError if the world does not match the deployment. All further calls must come from the
    calling thread. Call it once per process, because MPI cannot be started twice.
    """
    check: EngineCheck | None = None
    if deployment.engine == "trtllm":
        check = engine_check(deployment)
        judge = compiled_judge(deployment, checkpoints)
    else:
        judge = checkpoints.checked_judge()
    layout = Layout.of(deployment)
    comm = Comm(deployment)
    layout.check_world(comm.size)
    if comm.rank != 0:
        raise UserError(
            f"ranks: this is rank {comm.rank}, only rank 0 leads; start the others with "
            "python -m judge_decoding.ranks.launch --config FILE"
        )
    comm.layout = layout
    return Ranks(comm, layout, deployment, checkpoints, judge, check)


class Ranks(Engines):
    """The job as rank 0 sees it: engines whose models other ranks hold.

    Not thread-safe: only the thread that made it may use it. `close` (also run when the interpreter
    exits) ends the ranks in good order, `abort` ends them at once.
    """

    def __init__(
        self,
        comm: Comm,
        layout: Layout,
        deployment: Deployment,
        checkpoints: Checkpoints,
        judge: Judge | None,
        check: EngineCheck | None,
    ) -> None:
        """judge  becomes the target's `judge`; the ranks load their own
        check  what `Engines.check` calls; None if the engines verify with every setting
        """
        ranks = deployment.ranks
        assert ranks is not None
        self._comm = comm
        self._layout = layout
        self._timeout_s = ranks.timeout_s
        self._call = 0
        self._waiting = True  # for an answer
        self._closed = False
        self.pids: dict[int, int] = {}
        """Process ids of the other ranks, each on its own host."""
        self.heard: dict[int, float] = {}
        """Unix time of every other rank's last message."""
        atexit.register(self._at_exit)
        ready = self._greet(deployment, checkpoints, ranks.startup_timeout_s)
        self._waiting = False
        everyone = range(layout.size)
        bells = {0: comm.bell} | comm.bells
        welcome = m.Welcome([comm.hosts[r] for r in everyone], [bells[r] for r in everyone])
        self.tell(everyone[1:], welcome)
        # TensorRT-LLM's ranks pass requests on to each other: we ask the first of each group only.
        asked = slice(1 if deployment.engine == "trtllm" else None)
        first = ready[layout.target[0], "target"]
        target = RemoteTarget(self, layout.target[asked], first, judge)
        drafter: RemoteDrafter | None = None
        if layout.draft:
            first = ready[layout.draft[0], "draft"]
            drafter = RemoteDrafter(self, layout.draft[asked], first)
        super().__init__(drafter, target)
        self._check = check
        self._in_one_message = partial(target.run_round, drafter) if layout.colocated else None

    def run_round(
        self, proposes: Sequence[ProposeRequest], verifies: Sequence[VerifyRequest]
    ) -> Round:
        if self._in_one_message is not None:
            return self._in_one_message(proposes, verifies)
        return super().run_round(proposes, verifies)

    def check(self, acceptance: Acceptance, sampling: Sampling) -> None:
        if self._check is not None:
            self._check(acceptance, sampling)

    @property
    def hosts(self) -> Mapping[int, str]:
        return self._comm.hosts

    def ping(self) -> dict[int, float]:
        """Seconds that each rank took to answer. A rank that does not answer ends the job."""
        times = {}
        for rank in range(1, self._layout.size):
            started = time.perf_counter()
            self.call([rank], m.Ping(), m.Done)
            times[rank] = time.perf_counter() - started
        return times

    def close(self) -> None:
        """End the ranks in good order. A second call does nothing."""
        if self._closed:
            return
        self.call(range(1, self._layout.size), m.Shutdown(), m.Done)
        self._closed = True
        self._comm.finalize()

    def abort(self, reason: str, code: int = 1) -> NoReturn:
        """Report the reason on stderr and to the launcher, then end every process of the job, this
        one included."""
        self._closed = True
        _say(f"ending the job: {reason}")
        with suppress(OSError):
            run_folder.report_failure(reason)
        with suppress(OSError):
            sys.stdout.flush()
        time.sleep(LAST_WORDS_S)
        self._comm.abort(code)

    def tell(self, ranks: Iterable[int], message: m.Message) -> None:
        """Send a message to `ranks` without waiting for answers."""
        if self._closed:
            raise RuntimeError("ranks: they were shut down already")
        self._call += 1
        data = codec.encode(message, self._call)
        try:
            for rank in ranks:
                self._comm.send(rank, data, f"{m.name(message)} {self._call}", self._timeout_s)
        except RankTimeout as error:
            self.abort(f"{error} by {self._comm.describe(error.rank)}")

    def call(
        self, ranks: Sequence[int], message: m.Message, answer: type[_Answer]
    ) -> list[_Answer | m.Digest]:
        """Send a message to all of `ranks` and return their answers in that order.

        AssertionError if a rank finds its cache wrong; every other failure ends the job.
        """
        self._waiting = True
        self.tell(ranks, message)
        deadline = time.monotonic() + self._timeout_s
        answers: dict[int, _Answer | m.Digest] = {}
        findings = []
        while len(answers) < len(ranks):
            waiting = [rank for rank in ranks if rank not in answers]
            rank, got, call = self._receive(deadline, waiting, self._timeout_s)
            if rank in waiting and call == self._call:
                if isinstance(got, (answer, m.Digest)):
                    answers[rank] = got
                    continue
                if isinstance(got, m.Error) and got.kind == "AssertionError":
                    findings.append(f"{self._layout.place(rank)}: {got.text}")
                    answers[rank] = m.Digest(0)
                    continue
            self._fail(rank, got)
        self._waiting = False
        if findings:
            raise AssertionError("; ".join(findings))
        return [answers[rank] for rank in ranks]

    def _receive(
        self, deadline: float, waiting: Sequence[int], allowed_s: float
    ) -> tuple[int, m.Message, int]:
        """The next message from any rank. At the deadline the job ends, and the error names the
        ranks whose answers we await (`waiting`)."""
        try:
            received = self._comm.receive(max(0.0, deadline - time.monotonic()))
        except WireError as error:
            self.abort(str(error))
        except RankTimeout as error:
            self.abort(f"{error} from {self._comm.describe(error.rank)}")
        if received is None:
            silent = "; ".join(self._comm.describe(rank) for rank in waiting)
            self.abort(f"no answer within {allowed_s:g} s from {silent}")
        self.heard[received[0]] = time.time()
        return received

    def _fail(self, rank: int, got: m.Message) -> NoReturn:
        if isinstance(got, m.Error):
            who = f"{self._layout.place(rank)} on host {self._comm.hosts.get(rank, 'unknown')}"
            if got.about >= 0:
                self.abort(
                    f"no answer from {self._comm.describe(got.about)} (seen by {who}: {got.text})"
                )
            user = got.kind == UserError.__name__
            text = got.text if user else f"{got.kind}: {got.text}"
            self.abort(f"{who} failed: {text}", 2 if user else 1)
        self.abort(f"unexpected {m.name(got)} from {self._comm.describe(rank)}")

    def _greet(
        self, deployment: Deployment, checkpoints: Checkpoints, timeout_s: float
    ) -> dict[tuple[int, Model], m.Ready]:
        """Receive each rank's `Hello` and its `Ready` per model, and compare them with what this
        rank has."""
        models = {"target": checkpoints.target.fingerprint}
        if checkpoints.draft is not None:
            models["draft"] = checkpoints.draft.fingerprint
        expected = config_hash(deployment)
        deadline = time.monotonic() + timeout_s
        places = {rank: self._layout.place(rank) for rank in range(1, self._layout.size)}
        awaited = [(rank, model) for rank, place in places.items() for model in place.models]
        ready: dict[tuple[int, Model], m.Ready] = {}
        while waiting := sorted({key[0] for key in awaited if key not in ready}):
            rank, got, _ = self._receive(deadline, waiting, timeout_s)
            place = places[rank]
            if isinstance(got, m.Hello):
                self._comm.hosts[rank], self._comm.bells[rank] = got.host, got.bell
                self.pids[rank] = got.pid
                _say(f"{place} is process {got.pid} on host {got.host}")
                if (got.role, got.index) != (place.role, place.index):
                    self.abort(f"{place} takes itself for {got.role} {got.index + 1}", 2)
                if got.config_hash != expected:
                    self.abort(
                        f"{place} on host {got.host} reads another deployment "
                        f"({got.config_hash}, here {expected}); give every rank the same file",
                        2,
                    )
            elif isinstance(got, m.Ready):
                if got.fingerprint != models[got.model]:
                    self.abort(
                        f"{place} on host {self._comm.hosts[rank]} has another {got.model} model "
                        f"({got.fingerprint}, here {models[got.model]}); copy the same model to "
                        "every host",
                        2,
                    )
                ready[rank, got.model] = got
            else:
                self._fail(rank, got)
        return ready

    def _at_exit(self) -> None:
        if self._closed:
            return
        if self._comm.on_owner_thread and not self._waiting:
            self.close()
        else:
            self.abort("rank 0 exits in the middle of a call or of the start")


def _say(text: str) -> None:
    with suppress(OSError):  # nobody reads stderr any more, but the job must still end
        print(f"judge-decoding: {text}", file=sys.stderr, flush=True)


class _Remote:
    """What both engines have in common (`decoding.contracts.Engine`)."""

    _model: Model

    def __init__(self, ranks: Ranks, members: range, ready: m.Ready) -> None:
        self._ranks = ranks
        self._members = members
        self.vocab_size = ready.vocab_size
        self.max_context = ready.max_context
        self.max_sequences = ready.max_sequences
        self.clock = EngineClock()
        """The clock of the group's first rank, as of its last answer."""

    def prefill(self, sequence: int, keep: int, tokens: Sequence[int]) -> None:
        message = m.Prefill(self._model, sequence, keep, tokens)
        done = self._ranks.call(self._members, message, m.Done)[0]
        assert isinstance(done, m.Done)
        self.clock = done.clock

    def release(self, sequence: int) -> None:
        self._ranks.tell(self._members, m.Release(self._model, [sequence]))

    def check_integrity(self, expected: Mapping[int, Sequence[int]], *, deep: bool = False) -> None:
        """Every rank checks its own caches; the error names the rank."""
        message = m.CheckIntegrity(self._model, dict(expected), deep)
        self._ranks.call(self._members, message, m.Done)

    def _ask(self, message: m.Message, answer: type[_Answer]) -> _Answer:
        """The first rank's answer. The job ends if another rank's answer differs."""
        first, *others = self._ranks.call(self._members, message, answer)
        assert isinstance(first, answer)
        if others:
            wanted = codec.digest(first)
            for rank, got in zip(self._members[1:], others, strict=True):
                if got != wanted:
                    self._ranks.abort(
                        f"the ranks of one model disagree: {m.name(first)} {got} of rank {rank}, "
                        f"{wanted} of rank {self._members[0]}; all must run on CPUs of one kind"
                    )
        return first


class RemoteDrafter(_Remote):
    """The draft's ranks (`decoding.contracts.Drafter`)."""

    _model = "draft"

    def propose(self, requests: Sequence[ProposeRequest]) -> list[Proposal]:
        answer = self._ask(m.Propose(requests), m.Proposals)
        self.clock = answer.clock
        return answer.proposals


class RemoteTarget(_Remote):
    """The target's ranks (`decoding.contracts.Target`)."""

    _model = "target"

    def __init__(self, ranks: Ranks, members: range, ready: m.Ready, judge: Judge | None) -> None:
        super().__init__(ranks, members, ready)
        self.end_ids = ready.end_ids
        self.judge = judge

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        answer = self._ask(m.Verify(requests), m.Verdicts)
        self.clock = answer.clock
        return answer.verdicts

    def run_round(
        self,
        drafter: RemoteDrafter | None,
        proposes: Sequence[ProposeRequest],
        verifies: Sequence[VerifyRequest],
    ) -> Round:
        """Make both calls in one message, for a colocated draft (`Engines.run_round`)."""
        assert drafter is not None
        if not verifies:
            return Round([], [], 0.0)
        answer = self._ask(m.RoundRequest(proposes, verifies), m.RoundReply)
        drafter.clock, self.clock = answer.draft_clock, answer.target_clock
        return Round(answer.proposals, answer.verdicts, answer.propose_s)
