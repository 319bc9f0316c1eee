"""A deployment as a model of lm-evaluation-harness: its command, with this model in it.

    python -m judge_decoding.evaluation.harness run --model judge-decoding \\
        --model_args config=configs/demo.yaml,rule=judge,threshold=0.68 --tasks gsm8k

All options are the harness's own. Model arguments:

config         deployment file
rule           acceptance rule; default the deployment's. `none` is the target alone
threshold      the judge's
max_draft_len  drafted tokens per round
batch          answers at a time; default the deployment's limits.max_sequences

Answers (`generate_until`) run through the loop, batched; that is where a rule matters. Choices
(`loglikelihood`) are scored by the target alone, whatever the rule: nothing is drafted there.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Sequence
from typing import Any

from judge_decoding.config import load_deployment
from judge_decoding.decoding.contracts import RULES, Sampling
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from judge_decoding.torch_engine.engine import TorchTarget

NAME = "judge-decoding"
MAX_TOKENS = 256
"""New tokens per answer where the task does not say; this is the harness's own default."""


class LoopModel:
    """The methods that the harness calls; `register` adds the harness's base class."""

    def __init__(
        self,
        config: str,
        rule: str | None = None,
        threshold: float | None = None,
        max_draft_len: int | None = None,
        batch: int | None = None,
        **harness: Any,
    ) -> None:
        """harness  batch_size, max_batch_size, device: the harness always sends them; we ignore
        them, since the deployment decides"""
        super().__init__()
        if rule is not None and rule not in RULES:
            raise UserError(f"rule: unknown {rule!r}; known are {', '.join(RULES)}")
        deployment = load_deployment(config)
        limits = deployment.limits.model_dump()
        if batch is not None:
            limits["max_sequences"] = batch
        self.pipeline = load_pipeline(
            deployment.override(max_draft_len=max_draft_len, draft_len_schedule={}, limits=limits)
        )
        atexit.register(self.pipeline.close)  # the harness never closes a model
        self.acceptance = deployment.default_acceptance(rule=rule, threshold=threshold)
        self._bos = self.pipeline.tokenizer.encode("")

    # Text and ids.

    @property
    def eot_token_id(self) -> int:
        return self._bos[0] if self._bos else self.pipeline.engines.target.end_ids[0]

    @property
    def tokenizer_name(self) -> str:
        return str(self.pipeline.tokenizer.folder)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The harness only records this: a deployment has one template, its target's."""
        return "the target's" if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.pipeline.tokenizer.chat_text(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            instead="leave out --apply_chat_template",
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        ids = self.pipeline.tokenizer.encode(string, special=add_special_tokens is not False)
        twice = self._bos * 2  # a chat template has already written one
        if add_special_tokens is None and self._bos and ids[: len(twice)] == twice:
            ids = ids[len(self._bos) :]
        return ids

    # What the harness asks for.

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        results = self.pipeline.decoder.generate([self._request(*r.args) for r in requests])
        return [result.text for result in results]

    def _request(self, context: str, wanted: dict[str, Any]) -> Request:
        most = self.pipeline.deployment.limits.max_tokens
        until = wanted.get("until") or []
        stops = [until] if isinstance(until, str) else until
        temperature = float(wanted.get("temperature") or 0) if wanted.get("do_sample") else 0.0
        ids, longest = self.tok_encode(context), self.pipeline.engines.target.max_context
        tokens = min(int(wanted.get("max_gen_toks") or MAX_TOKENS), most, longest - 1)
        return Request(
            ids[-(longest - tokens) :],  # keep the end, like the harness's other models
            tokens,
            self.acceptance,
            Sampling(temperature, int(wanted.get("top_k") or 0), float(wanted.get("top_p") or 1.0)),
            stop=tuple(stop for stop in stops if stop),
        )

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Per continuation: (sum of log-likelihoods in nats, whether greedy decoding writes it)."""
        target = self.pipeline.engines.target
        if not isinstance(target, TorchTarget):
            raise UserError(
                "lm_eval: log-likelihoods need the target's logits, which only engine torch in "
                "one process hands out; take a task that generates its answer"
            )
        found = []
        for _texts, context, continuation in requests:
            room = target.max_context - len(continuation)
            if room < 1:
                raise UserError(
                    f"lm_eval: a continuation of {len(continuation)} tokens does not fit the "
                    f"context of {target.max_context}; raise limits.max_context"
                )
            read = target.teacher_forced(context[-room:], continuation)
            greedy = read.argmax.tolist() == list(continuation)
            found.append((float(read.logprob.sum()), greedy))
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context that do not overlap."""
        totals = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            size = self.pipeline.engines.target.max_context - 1
            parts = [ids[at : at + size] for at in range(0, len(ids), size)]
            before = [[self.eot_token_id], *([part[-1]] for part in parts)]
            windows = [(None, one, part) for one, part in zip(before, parts, strict=False)]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(windows)))
        return totals


def register() -> type[Any]:
    """The model under its name in the harness; UserError without the harness."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise UserError("lm_eval: it is not installed; pip install -e '.[eval]'") from None
    model: type[Any] = type("JudgeDecoding", (LoopModel, TemplateLM), {})
    register_model(NAME)(model)
    return model


def main() -> None:
    """The harness's command."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"harness: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
