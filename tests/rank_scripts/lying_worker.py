"""A worker whose last target rank decides differently from its peers, as a broken CPU might."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from judge_decoding.decoding.contracts import Verdict, VerifyRequest
from judge_decoding.ranks import worker
from judge_decoding.torch_engine.engine import TorchTarget

honest = TorchTarget.verify


def verify(self: TorchTarget, requests: Sequence[VerifyRequest]) -> list[Verdict]:
    verdicts = honest(self, requests)
    group = self.model._group
    if group is not None and group.index == group.size - 1:
        return [v._replace(next_token=v.next_token ^ 1) for v in verdicts]
    return verdicts


if __name__ == "__main__":
    TorchTarget.verify = verify  # type: ignore[method-assign]
    sys.exit(worker.main())
