"""The GGUF files that llama.cpp and OpenVINO are given: the deployment's own weights.

The target is the file that the deployment names. For the demo target's folder it is the file in the
package, from which the folder was made. Any other folder is written as a file in the deployment's
dtype. A draft is written in Q8_0, with the whole head: these programs have no short-list.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment
from judge_decoding.evaluation.bench_system import NotMeasured
from judge_decoding.evaluation.peers.write_gguf import write_gguf

_KINDS = {"bfloat16": "BF16", "float32": "F32"}


class GgufModels:
    """Both files, found or written on first use. `folder` must outlive the peers."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self._deployment = deployment
        self._folder = folder

    @cached_property
    def target(self) -> Path:
        model = self._deployment.target.model
        if model.suffix == ".gguf":
            return model
        checkpoint = Checkpoint(model)
        kind = _KINDS[self._deployment.dtype]
        return write_gguf(self._folder / "target.gguf", checkpoint, kind, target=checkpoint)

    @cached_property
    def draft(self) -> Path:
        """NotMeasured if the deployment has no draft."""
        if self._deployment.draft is None:
            raise NotMeasured("it needs a draft, the deployment has none")
        draft, target = Checkpoint(self._deployment.draft.model), self._deployment.target.model
        if draft.folder.suffix == ".gguf":
            return draft.folder
        folder = self._folder / "draft"  # of its own: OpenVINO writes files beside it
        folder.mkdir()
        return write_gguf(folder / "draft.gguf", draft, "Q8_0", target=Checkpoint(target))
