"""From a deployment to a loop that is ready to run, every mismatch refused on the way."""

from __future__ import annotations

from dataclasses import dataclass

from judge_decoding.config import Deployment
from judge_decoding.decoding import SpeculativeDecoder
from judge_decoding.engine.torch_engine import (
    TorchDrafter,
    TorchTarget,
    load_drafter,
    load_target,
)
from judge_decoding.engine.weights import fingerprint, read_config, tokenizer_hash
from judge_decoding.errors import UserError
from judge_decoding.judge import Judge
from judge_decoding.text import Tokenizer


@dataclass(frozen=True)
class Pipeline:
    """All parts of an in-process deployment."""

    deployment: Deployment
    tokenizer: Tokenizer
    decoder: SpeculativeDecoder
    target: TorchTarget
    drafter: TorchDrafter | None


def load_pipeline(deployment: Deployment) -> Pipeline:
    """Load and check models, judge and tokenizer. UserError names what does not fit what."""
    limits = deployment.limits
    folder = deployment.target.model
    config = read_config(folder)
    tokenizer = Tokenizer(folder)
    judge = None
    if deployment.judge is not None:
        judge = Judge.load(deployment.judge.path)
        judge.check_target(fingerprint(folder), tokenizer_hash(folder), config.hidden_size)
    bounds = {
        "max_sequences": limits.max_sequences,
        "max_context": limits.max_context,
        "prefill_chunk": limits.prefill_chunk,
    }
    drafter = None
    if deployment.draft is not None:
        check_vocabulary(deployment)
        drafter = load_drafter(
            deployment.draft.model, target=folder, dtype=deployment.dtype, **bounds
        )
    target = load_target(folder, dtype=deployment.dtype, judge=judge, **bounds)
    decoder = SpeculativeDecoder(
        drafter,
        target,
        tokenizer=tokenizer,
        max_draft_len=deployment.max_draft_len,
        draft_len_schedule=deployment.draft_len_schedule,
        draft_min_prob=deployment.draft_min_prob,
        prefill_chunk=limits.prefill_chunk,
    )
    return Pipeline(deployment, tokenizer, decoder, target, drafter)


def check_vocabulary(deployment: Deployment) -> None:
    """UserError unless draft and target mean the same by every token id."""
    assert deployment.draft is not None
    draft, target = deployment.draft.model, deployment.target.model
    sizes = read_config(draft).vocab_size, read_config(target).vocab_size
    if sizes[0] != sizes[1]:
        raise UserError(
            f"draft: {draft} has a vocabulary of {sizes[0]} tokens, the target's is {sizes[1]}; "
            "draft and target must share one tokenizer"
        )
    if (draft / "tokenizer.json").is_file() and tokenizer_hash(draft) != tokenizer_hash(target):
        raise UserError(
            f"draft: {draft} has another tokenizer than the target {target}; "
            "draft and target must share one"
        )
