"""Draft and target as TensorRT-LLM engines, driven through its Executor API.

The engines implement `decoding.contracts` by the runtime's means:

    cache      a request resends its whole prefix and KV block reuse finds what is cached, so `keep`
               only tells which tokens of a sequence's text still hold; nothing is rolled back
    verify     one context request with `external_draft_tokens_config` and max_tokens k + 1; the
               stock decoder accepts in the engine, whose logits the judge's plugin has edited
    end ids    requests carry none, so no answer ends inside the runtime; the loop stops answers

Sources, NVIDIA/TensorRT-LLM as read near v1.2.1: cpp/tensorrt_llm/nanobind/executor/request.cpp
@008b2b8 (names), tensorrt_llm/runtime/model_runner_cpp.py @0383291 and examples/run_dtm_pld.py
(use), cpp/tensorrt_llm/batch_manager/{llmRequest,createNewDecoderRequests}.cpp and
utils/inflightBatchingUtils.cpp, layers/externalDraftTokensLayer.cpp (what comes back). This module
has not run on a real engine here (docs/h100.md).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

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
from judge_decoding.decoding.sampling import probabilities
from judge_decoding.trtllm.executor import SCORES, Executor, ExecutorError
from judge_decoding.trtllm.rules import check_request, first_cut

_SCORES_IN_RESULT = f"generation_{SCORES}"  # LlmRequest::createResult adds the prefix


class TrtEngine:
    """The common base of drafter and target: an executor, and every sequence's text."""

    def __init__(
        self, executor: Executor, *, vocab_size: int, max_context: int, max_sequences: int
    ) -> None:
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.max_sequences = max_sequences
        self.clock = EngineClock()
        self._executor = executor
        self._api = executor.api
        self._texts: dict[int, list[int]] = {}

    def prefill(self, sequence: int, keep: int, tokens: Sequence[int]) -> None:
        """Cache the blocks of `tokens` for the next request; the one generated token is dropped."""
        text = self._extend(sequence, keep, tokens)
        self._run([self._request(text, 1, Sampling())])

    def release(self, sequence: int) -> None:
        self._texts.pop(sequence, None)

    def check_integrity(self, expected: Mapping[int, Sequence[int]], *, deep: bool = False) -> None:
        """Checks this process's records: the texts, and that no request is in flight. `deep` adds
        nothing, since the runtime offers no way to read cached blocks."""
        if self._executor.in_flight:
            raise AssertionError(f"requests {sorted(self._executor.in_flight)} were left in flight")
        if set(expected) != set(self._texts):
            raise AssertionError(f"held: {sorted(self._texts)}, expected: {sorted(expected)}")
        for sequence, tokens in expected.items():
            if self._texts[sequence][: len(tokens)] != list(tokens):
                raise AssertionError(f"sequence {sequence}: the engine holds another text")

    def close(self) -> None:
        self._executor.close()

    def _extend(self, sequence: int, keep: int, tokens: Sequence[int]) -> list[int]:
        """Keep the first `keep` tokens of the sequence's text, append `tokens`, and return it."""
        text = self._texts.get(sequence, [])
        if not tokens or not 0 <= keep <= len(text):
            raise ValueError(
                f"sequence {sequence}: keep={keep} and {len(tokens)} tokens, text of {len(text)}"
            )
        text = self._texts[sequence] = [*text[:keep], *tokens]
        return text

    def _request(
        self,
        text: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        *,
        outputs: Mapping[str, Any] | None = None,
        draft: Any = None,
    ) -> Any:
        return self._api.Request(
            input_token_ids=list(text),
            max_tokens=max_tokens,
            sampling_config=self._sampling_config(sampling, len(text)),
            output_config=self._api.OutputConfig(exclude_input_from_output=True, **(outputs or {})),
            external_draft_tokens_config=draft,
        )

    def _sampling_config(self, sampling: Sampling, position: int) -> Any:
        if sampling.greedy:
            return self._api.SamplingConfig(top_k=1)
        # Every round is a new request with its own generator; the same seed would repeat its draws.
        digest = hashlib.blake2b(
            f"{self._executor.name} {sampling.seed} {position}".encode(), digest_size=7
        )
        return self._api.SamplingConfig(
            temperature=sampling.temperature,
            top_k=sampling.top_k or None,
            top_p=sampling.top_p,  # always given, since without any filter the runtime is greedy
            seed=int.from_bytes(digest.digest(), "big"),
        )

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        started = time.perf_counter()
        try:
            return self._executor.run(requests)
        finally:
            self.clock.forward += time.perf_counter() - started


class TrtDrafter(TrtEngine):
    """The small model."""

    def propose(self, requests: Sequence[ProposeRequest]) -> list[Proposal]:
        # The runtime's greedy acceptance compares tokens and reads no distributions.
        wanted = [r.with_probs and not r.sampling.greedy for r in requests]
        results = self._run(
            [
                self._request(
                    self._extend(r.sequence, r.keep, r.tokens),
                    r.draft_len,
                    r.sampling,
                    outputs={"return_generation_logits": with_probs},
                )
                for r, with_probs in zip(requests, wanted, strict=True)
            ]
        )
        proposals = []
        for request, result, with_probs in zip(requests, results, wanted, strict=True):
            tokens = list(result.output_token_ids[0])
            self._texts[request.sequence] += tokens
            probs = None
            if with_probs:  # raw logits [1, draft_len, padded V]
                logits = result.generation_logits[0, : len(tokens), : self.vocab_size]
                probs = probabilities(logits, request.sampling)
            proposals.append(Proposal(tokens, probs))
        return proposals


class TrtTarget(TrtEngine):
    """The large model, with its judge compiled in.

    judge         None if the engine has no plugin; threshold is then 1
    threshold     the engine's; a request's own may be higher (rule strict is 1): see `verify`
    logits_dtype  dtype that the runtime takes draft distributions in
    tp            the runtime pads the vocabulary to a multiple of it
    """

    def __init__(
        self,
        executor: Executor,
        *,
        end_ids: Sequence[int],
        judge: Judge | None = None,
        threshold: float = 1.0,
        logits_dtype: torch.dtype = torch.float32,
        tp: int = 1,
        **bounds: int,
    ) -> None:
        super().__init__(executor, **bounds)
        self.end_ids = tuple(end_ids)
        self.judge = judge
        self._threshold = threshold
        self._logits_dtype, self._padding = logits_dtype, -self.vocab_size % tp

    def check(self, acceptance: Acceptance, sampling: Sampling) -> None:
        """UserError for a rule, threshold or sampling that this engine does not support."""
        check_request(acceptance, sampling, self._threshold)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """With greedy sampling, a request that is stricter than the engine is served exactly. Its
        run is cut at the first token that only the judge accepted and whose score is too low. The
        edited row hides the target's own token there, so a second request, without a draft, asks
        for it."""
        for request in requests:
            self.check(request.acceptance, request.sampling)
        # 1. One request per sequence, all in flight together.
        texts = [self._extend(r.sequence, r.keep, r.tokens) for r in requests]
        results = self._run(
            [self._verify_request(r, text) for r, text in zip(requests, texts, strict=True)]
        )
        # 2. What the engine accepted, and where a stricter request must be cut.
        verdicts = [self._verdict(r, result) for r, result in zip(requests, results, strict=True)]
        cuts = {
            i: cut for i, r in enumerate(requests) if (cut := first_cut(r, verdicts[i])) is not None
        }
        # 3. The target's own token where a run was cut.
        again = [
            self._request([*texts[i], *requests[i].draft.tokens[:n]], 1, requests[i].sampling)
            for i, n in cuts.items()
        ]
        for (i, n), result in zip(cuts.items(), self._run(again), strict=True):
            own = self._tokens(result)[0]
            verdicts[i] = Verdict(n, verdicts[i].overridden[:n], verdicts[i].scores, own)
        for i, (request, text) in enumerate(zip(requests, texts, strict=True)):
            text += request.draft.tokens[: verdicts[i].accepted]
            if request.acceptance.rule != "judge":
                verdicts[i] = verdicts[i]._replace(scores=[])
        return verdicts

    def _verify_request(self, request: VerifyRequest, text: Sequence[int]) -> Any:
        tokens, probs = request.draft.tokens, request.draft.probs
        if not tokens:
            return self._request(text, 1, request.sampling)
        logits = None
        if probs is not None and not request.sampling.greedy:
            # The runtime's softmax turns log p back into p, which includes temperature and filters.
            padded = torch.nn.functional.pad(probs, (0, self._padding))
            logits = padded.clamp_min(1e-38).log().to(self._logits_dtype)
        draft = self._api.ExternalDraftTokensConfig(tokens, logits)
        outputs = {}
        if self.judge is not None:
            outputs["additional_model_outputs"] = [self._api.AdditionalModelOutput(SCORES, False)]
        return self._request(text, len(tokens) + 1, request.sampling, outputs=outputs, draft=draft)

    def _verdict(self, request: VerifyRequest, result: Any) -> Verdict:
        """The runtime returns the accepted draft tokens, then one token of the target's own."""
        drafted, tokens = request.draft.tokens, self._tokens(result)
        n = len(tokens) - 1
        if n > len(drafted) or tokens[:n] != drafted[:n]:
            raise self._broken(f"it returned {tokens}, which is no prefix of the draft {drafted}")
        if not drafted or self.judge is None:
            return Verdict(n, [False] * n, [], tokens[n])
        cells = self._scores(result)[: len(drafted)]
        if len(cells) < len(drafted) or bool(cells.isnan().any()):
            # The engine lacks this plugin or its hidden state is not finite; either is fatal.
            raise self._broken(f"{SCORES} lacks a drafted token: {cells.tolist()}")
        return Verdict(n, cells.signbit()[:n].tolist(), cells.abs().tolist(), tokens[n])

    def _scores(self, result: Any) -> torch.Tensor:
        for output in result.additional_outputs:
            if output.name == _SCORES_IN_RESULT:  # [1, max_tokens, max_draft_len], row 0 is ours
                row: torch.Tensor = output.output[0, 0]
                return row.float().cpu()
        raise self._broken(f"it has no output {SCORES}; build the target with the plugin")

    def _tokens(self, result: Any) -> list[int]:
        if not (tokens := list(result.output_token_ids[0])):
            raise self._broken("it answered without a token")
        return tokens

    def _broken(self, what: str) -> ExecutorError:
        return ExecutorError(f"{self._executor.name}: {what}")
