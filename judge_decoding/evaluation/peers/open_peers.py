"""Opens the peers of a benchmark by name; one that cannot run is a reason and not an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from judge_decoding.errors import UserError
from judge_decoding.evaluation.bench_system import BenchSystem, NotMeasured
from judge_decoding.evaluation.draft_length import best_draft_len
from judge_decoding.evaluation.peers.child import ChildPeer
from judge_decoding.evaluation.peers.gguf_models import GgufModels
from judge_decoding.evaluation.peers.hugging_face import load_target, open_hugging_face
from judge_decoding.evaluation.peers.llamacpp import LlamaCpp, xllamacpp
from judge_decoding.evaluation.peers.openvino import OpenVino, openvino_genai

if TYPE_CHECKING:
    from judge_decoding.pipeline import Pipeline

PEERS = ("hf", "hf-assisted", "llamacpp", "llamacpp-draft", "openvino", "openvino-draft")
"""transformers, llama.cpp and OpenVINO on the same weights, each alone and with our draft."""

Speeds = Mapping[int, float]


def open_peers(
    names: Sequence[str],
    pipeline: Pipeline,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    folder: Path,
) -> tuple[list[BenchSystem], dict[str, str], dict[str, Speeds]]:
    """The named peers; reasons of those that cannot run; tok/s by draft length, where searched.

    prompts  token ids: the longest is answered once, which also warms a peer up
    folder   for the files that peers need; must outlive them
    """
    systems: list[BenchSystem] = []
    missing: dict[str, str] = {}
    tuned: dict[str, Speeds] = {}
    opened = _Opener(pipeline, prompts, max_tokens, folder, tuned)
    for name in names:
        try:
            system = opened.open(name)
            system.answer(max(prompts, key=len), min(max_tokens, 32))
        # Foreign native code may raise anything. The reason stands in the table.
        except (NotMeasured, UserError, RuntimeError, ValueError, OSError) as error:
            missing[name] = " ".join(str(error).split())[:300]
        else:
            systems.append(system)
    return systems, missing, tuned


class _Opener:
    """What the peers of one benchmark share."""

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        folder: Path,
        tuned: dict[str, Speeds],
    ) -> None:
        self._pipeline, self._prompts, self._max_tokens = pipeline, prompts, max_tokens
        self._files = GgufModels(pipeline.deployment, folder)
        self._tuned = tuned
        self._hugging_face: object = None
        self._drafting: ChildPeer | None = None

    def open(self, name: str) -> BenchSystem:
        if name.startswith("hf"):
            if self._hugging_face is None:
                self._hugging_face = load_target(self._pipeline)
            return open_hugging_face(name, self._hugging_face, self._pipeline)
        # Before any file is written for it.
        if name.startswith("llamacpp"):
            xllamacpp()
            make = self._llamacpp
        else:
            openvino_genai()
            make = self._openvino
        return self._fastest(name, make) if name.endswith("-draft") else make(name, None)

    def _fastest(self, name: str, make: Callable[[str, int | None], BenchSystem]) -> BenchSystem:
        system, self._tuned[name] = best_draft_len(
            lambda length: make(name, length), self._prompts, self._max_tokens
        )
        return system

    def _llamacpp(self, name: str, draft_len: int | None) -> BenchSystem:
        return ChildPeer(
            LlamaCpp,
            name,
            self._files.target,
            context=self._pipeline.deployment.limits.max_context,
            threads=torch.get_num_threads(),
            draft=None if draft_len is None else self._files.draft,
            draft_len=draft_len,
        )

    def _openvino(self, name: str, draft_len: int | None) -> BenchSystem:
        if draft_len is not None and self._drafting is not None:
            return self._drafting.with_draft_len(draft_len)
        system = ChildPeer(
            OpenVino,
            name,
            self._files.target,
            end_ids=list(self._pipeline.engines.target.end_ids),
            threads=torch.get_num_threads(),
            tokenizer=self._pipeline.deployment.target.model,
            draft=None if draft_len is None else self._files.draft,
            draft_len=draft_len,
        )
        if draft_len is not None:
            self._drafting = system
        return system
