"""Which rank does what: rank 0 leads, then the draft's ranks, then the target's."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from typing import Literal

from judge_decoding.config import Deployment
from judge_decoding.errors import UserError

Role = Literal["leader", "draft", "target"]


@dataclass(frozen=True)
class Place:
    """One rank: its number in the world, its role, its index among the `size` ranks of the role."""

    rank: int
    role: Role
    index: int
    size: int

    def __str__(self) -> str:
        if self.size == 1:
            return f"rank {self.rank} ({self.role})"
        return f"rank {self.rank} ({self.role} {self.index + 1} of {self.size})"


class Layout:
    """The places of a deployment's world."""

    def __init__(self, draft: int, target: int) -> None:
        """The number of ranks of each; draft 0 where the deployment has none."""
        self.draft = range(1, 1 + draft)
        self.target = range(1 + draft, 1 + draft + target)
        self.size = 1 + draft + target

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
        return cls(ranks.draft.tp if deployment.draft else 0, ranks.target.tp)

    def place(self, rank: int) -> Place:
        if rank == 0:
            return Place(0, "leader", 0, 1)
        if rank in self.draft:
            return Place(rank, "draft", rank - self.draft.start, len(self.draft))
        return Place(rank, "target", rank - self.target.start, len(self.target))

    def check_world(self, size: int) -> None:
        """UserError unless the MPI world has as many ranks as the deployment asks for."""
        if size == self.size:
            return
        raise UserError(
            f"ranks: the MPI world has {size} ranks, the deployment needs {self.size}: 1 leader + "
            f"{len(self.draft)} draft + {len(self.target)} target; start it as "
            f"`mpiexec -n 1 LEADER : -n {self.size - 1} {sys.executable} -m "
            "judge_decoding.ranks.worker --config FILE`"
        )


def config_hash(deployment: Deployment) -> str:
    """16 hex digits over what every rank builds from; the loop's and the server's settings may
    differ (a command line changes them in rank 0 alone)."""
    parts = {"engine", "dtype", "target", "draft", "judge", "limits", "ranks"}
    core = json.dumps(deployment.model_dump(mode="json", include=parts), sort_keys=True)
    return hashlib.sha256(core.encode()).hexdigest()[:16]
