"""From a deployment to a loop that is ready to run, every mismatch refused on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding import SpeculativeDecoder
from judge_decoding.engine.base import Acceptance, Sampling
from judge_decoding.engine.loading import deployed_drafter, deployed_judge, deployed_target
from judge_decoding.engine.round import RunRound
from judge_decoding.engine.torch_engine import TorchDrafter, TorchTarget
from judge_decoding.engine.trtllm import TrtDrafter, TrtTarget
from judge_decoding.engine.trtllm_loading import compiled_judge, engine_check, load_engines
from judge_decoding.errors import UserError
from judge_decoding.ranks.comm import start_mpi, under_mpiexec
from judge_decoding.ranks.leader import Ranks, RemoteDrafter, RemoteTarget, lead
from judge_decoding.text import Tokenizer


@dataclass(frozen=True)
class Pipeline:
    """All parts of a deployment; `ranks` where the models run in other processes."""

    deployment: Deployment
    tokenizer: Tokenizer
    decoder: SpeculativeDecoder
    target: TorchTarget | RemoteTarget | TrtTarget
    drafter: TorchDrafter | RemoteDrafter | TrtDrafter | None
    ranks: Ranks | None = None

    def close(self) -> None:
        """End the ranks or executors in good order, where there are any."""
        if self.ranks is not None:
            self.ranks.close()
        for engine in (self.drafter, self.target):
            if isinstance(engine, (TrtDrafter, TrtTarget)):
                engine.close()


def load_pipeline(deployment: Deployment) -> Pipeline:
    """Load and check models, judge and tokenizer. UserError names what does not fit what.

    With a `ranks` section and under mpiexec, this process leads the ranks that hold the models
    (`ranks.leader.lead`); otherwise it holds them itself.
    """
    if deployment.ranks is not None and under_mpiexec():
        start_mpi(deployment)  # first: an error below then ends the ranks that wait for this one
    checkpoints = Checkpoints.of(deployment)
    config = checkpoints.target.config  # what the engine cannot run is refused first
    tokenizer = Tokenizer(deployment.target.model)
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"tokenizer: {deployment.target.model} has {tokenizer.size} tokens, its model only "
            f"{config.vocab_size}; put the model's own tokenizer.json there"
        )
    checkpoints.check_vocabulary()
    ranks: Ranks | None = None
    check_engine: Callable[[Acceptance, Sampling], None] | None = None
    run_round: RunRound | None = None
    target: TorchTarget | RemoteTarget | TrtTarget
    drafter: TorchDrafter | RemoteDrafter | TrtDrafter | None
    if deployment.trtllm is not None and deployment.engine == "trtllm":
        if deployment.trtllm.mode == "leader":
            if not under_mpiexec():
                raise UserError("trtllm.mode leader: start this and its ranks with mpirun or srun")
            check_engine = engine_check(deployment)
            ranks = lead(deployment, checkpoints, compiled_judge(deployment))
            target, drafter = ranks.target, ranks.drafter
        else:
            drafter, target = load_engines(deployment, checkpoints)
            check_engine = target.check
    elif deployment.ranks is not None and under_mpiexec():
        judge = deployed_judge(deployment, checkpoints.target)
        ranks = lead(deployment, checkpoints, judge)
        target, drafter, run_round = ranks.target, ranks.drafter, ranks.run_round
    else:
        judge = deployed_judge(deployment, checkpoints.target)
        target = deployed_target(deployment, checkpoints, judge)
        drafter = deployed_drafter(deployment, checkpoints)
    decoder = SpeculativeDecoder(
        drafter,
        target,
        tokenizer=tokenizer,
        max_draft_len=deployment.max_draft_len,
        draft_len_schedule=deployment.draft_len_schedule,
        prefill_chunk=deployment.limits.prefill_chunk,
        check_engine=check_engine,
        run_round=run_round,
    )
    return Pipeline(deployment, tokenizer, decoder, target, drafter, ranks)
