"""Turns a deployment into a loop that is ready to run, and refuses every mismatch."""

from __future__ import annotations

from dataclasses import dataclass

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.errors import UserError
from judge_decoding.ranks.comm import start_mpi, under_mpiexec
from judge_decoding.ranks.leader import Ranks, open_ranks
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.loading import open_torch_engines
from judge_decoding.trtllm.open_engines import open_trtllm_engines


@dataclass(frozen=True)
class Pipeline:
    """All parts of a deployment; `ranks` are its engines if this process leads other ranks."""

    deployment: Deployment
    tokenizer: Tokenizer
    decoder: SpeculativeDecoder
    engines: Engines
    ranks: Ranks | None = None

    def close(self) -> None:
        """End the ranks or executors in good order, if there are any."""
        self.engines.close()


def load_pipeline(deployment: Deployment) -> Pipeline:
    """Load and check models, judge and tokenizer. UserError names the parts that do not match.

    With a `ranks` section and under mpiexec, this process leads the ranks that hold the models
    (`ranks.leader`); otherwise it holds them itself.
    """
    led = deployment.ranks is not None and under_mpiexec()
    if led:
        start_mpi(deployment)  # first, so that an error below ends the ranks that wait for this one
    checkpoints = Checkpoints.of(deployment)
    config = checkpoints.target.config  # read first, to refuse a model that the engine cannot run
    checkpoints.check_vocabulary()
    tokenizer = Tokenizer(deployment.target.model, deployment.chat_template)
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"tokenizer: {deployment.target.model} has {tokenizer.size} tokens, its model only "
            f"{config.vocab_size}; put the model's own tokenizer.json there"
        )
    engines: Engines
    ranks: Ranks | None = None
    trtllm = deployment.trtllm if deployment.engine == "trtllm" else None
    if trtllm is not None and trtllm.mode == "orchestrator":
        engines = open_trtllm_engines(deployment, checkpoints)
    elif led:
        engines = ranks = open_ranks(deployment, checkpoints)
    elif trtllm is not None:
        raise UserError("trtllm.mode leader: start this and its ranks with mpirun or srun")
    else:
        engines = open_torch_engines(deployment, checkpoints)
    decoder = SpeculativeDecoder(
        engines,
        tokenizer=tokenizer,
        max_draft_len=deployment.max_draft_len,
        draft_len_schedule=deployment.draft_len_schedule,
        prefill_chunk=deployment.limits.prefill_chunk,
    )
    return Pipeline(deployment, tokenizer, decoder, engines, ranks)
