"""Which rank does what: rank 0 leads, then the draft's ranks, then the target's.

A colocated draft has no ranks of its own: the target's first rank holds it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from typing import Literal

from judge_decoding.config.deployment import Deployment
from judge_decoding.errors import UserError

RankRole = Literal["leader", "draft", "target"]
Model = Literal["draft", "target"]
MODELS: tuple[Model, ...] = ("draft", "target")


@dataclass(frozen=True)
class Place:
    """One rank: its number in the world, its role, its index among the `size` ranks of the role.

    with_draft  whether this rank of the target also holds the draft
    """

    rank: int
    role: RankRole
    index: int
    size: int
    with_draft: bool = False

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that the rank holds, or holds a shard of."""
        if self.role == "leader":
            return ()
        return MODELS if self.with_draft else (self.role,)

    def __str__(self) -> str:
        role = "draft and target" if self.with_draft else self.role
        if self.size == 1:
            return f"rank {self.rank} ({role})"
        return f"rank {self.rank} ({role} {self.index + 1} of {self.size})"


class Layout:
    """The places of all ranks of a deployment."""

    def __init__(self, draft: int, target: int, *, colocated: bool = False) -> None:
        """draft, target  number of ranks of each; draft is 0 if the deployment has none
        colocated      the target's first rank is the draft's only one
        """
        own = 0 if colocated else draft
        self.colocated = colocated
        self.draft = range(1, 1 + draft)
        self.target = range(1 + own, 1 + own + target)
        self.size = 1 + own + target

    @classmethod
    def of(cls, deployment: Deployment) -> Layout:
        ranks = deployment.ranks
        if ranks is None:
            raise UserError("ranks: the deployment has no `ranks` section; give it one")
        for name, group in (("draft", ranks.draft), ("target", ranks.target)):
            gpus = [device for device in group.devices if device != "cpu"]
            if gpus and deployment.engine == "torch":
                raise UserError(
                    f"ranks.{name}.devices: {gpus}, but the ranks of engine torch run on the CPU; "
                    "leave devices out"
                )
        draft = ranks.draft.tp if deployment.draft else 0
        return cls(draft, ranks.target.tp, colocated=ranks.colocate_draft)

    def place(self, rank: int) -> Place:
        if rank == 0:
            return Place(0, "leader", 0, 1)
        if rank in self.draft and not self.colocated:
            return Place(rank, "draft", rank - self.draft.start, len(self.draft))
        index, with_draft = rank - self.target.start, rank in self.draft
        return Place(rank, "target", index, len(self.target), with_draft)

    def check_world(self, size: int) -> None:
        """Raise UserError unless the MPI world has as many ranks as the deployment asks for."""
        if size == self.size:
            return
        draft = "" if self.colocated else f"{len(self.draft)} draft + "
        raise UserError(
            f"ranks: the MPI world has {size} ranks, the deployment needs {self.size}: 1 leader + "
            f"{draft}{len(self.target)} target; start it as "
            f"`mpiexec -n 1 LEADER : -n {self.size - 1} {sys.executable} -m "
            "judge_decoding.ranks.launch --config FILE`"
        )


def config_hash(deployment: Deployment) -> str:
    """16 hex digits over the settings that every rank builds from. The loop's and the server's
    settings may differ, because a command line changes them in rank 0 only."""
    parts = {"engine", "dtype", "target", "draft", "judge", "limits", "ranks"}
    core = json.dumps(deployment.model_dump(mode="json", include=parts), sort_keys=True)
    return hashlib.sha256(core.encode()).hexdigest()[:16]
