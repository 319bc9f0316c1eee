"""The PyTorch engine: drafter and target over `Llama`, preallocated slots, ragged batches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.decoding.constraints import constrain
from judge_decoding.decoding.contracts import (
    EngineClock,
    Proposal,
    ProposeRequest,
    Sampling,
    Verdict,
    VerifyRequest,
)
from judge_decoding.decoding.judge import Judge
from judge_decoding.decoding.sampling import draw, greedy, log_probabilities, probabilities
from judge_decoding.decoding.verdict import decide
from judge_decoding.errors import UserError
from judge_decoding.torch_engine.llama import KeyValues, Llama, Segment
from judge_decoding.torch_engine.slots import Slots
from judge_decoding.torch_engine.tensor_parallel import Group
from judge_decoding.torch_engine.weights import Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DRAFT_SEED_OFFSET = 0x9E3779B9  # the draft's draws must not repeat the target's
_DEEP_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


class TorchEngine:
    """What drafter and target share: a model, its slots, and reading tokens in chunks."""

    role = "model"
    """What messages call it."""

    def __init__(
        self, model: Llama, *, max_sequences: int, max_context: int, prefill_chunk: int = 256
    ) -> None:
        config = model.config
        if max_context > config.max_position_embeddings:
            raise UserError(
                f"limits: max_context {max_context} is more than the {self.role}'s "
                f"{config.max_position_embeddings} positions"
            )
        self.model = model
        self.vocab_size = config.vocab_size
        self.max_context = max_context
        self.max_sequences = max_sequences
        self.prefill_chunk = prefill_chunk
        self.clock = EngineClock()
        self._slots = Slots(max_sequences, max_context)
        self._kv = KeyValues(model.local, max_sequences, max_context, model.dtype)
        self._generators: dict[int, torch.Generator] = {}

    @torch.inference_mode()
    def prefill(self, sequence: int, keep: int, tokens: Sequence[int]) -> None:
        self._read([(sequence, keep, tokens)], [1])

    def release(self, sequence: int) -> None:
        self._slots.release(sequence)
        self._generators.pop(sequence, None)

    @torch.inference_mode()
    def check_integrity(self, expected: Mapping[int, Sequence[int]], *, deep: bool = False) -> None:
        self._slots.check(expected)
        if not deep:
            return
        tolerance = _DEEP_TOLERANCE[self.model.products_in]
        errors = {}  # collected before one is raised: the ranks of a group must stay in step
        for sequence, tokens in expected.items():
            if not tokens:
                continue
            fresh = KeyValues(self.model.local, 1, len(tokens), self.model.dtype)
            for start in range(0, len(tokens), self.prefill_chunk):
                piece = torch.tensor(tokens[start : start + self.prefill_chunk])
                self.model.forward(piece, [Segment(0, start, len(piece))], fresh)
            held = self._kv.data[:, self._slots.slot(sequence), :, : len(tokens)]
            errors[sequence] = float((held - fresh.data[:, 0]).abs().max() / fresh.data.abs().max())
        for sequence, error in errors.items():
            if not error <= tolerance:
                raise AssertionError(f"sequence {sequence}: cached values are off by {error:.2e}")

    def _read(
        self, parts: Sequence[tuple[int, int, Sequence[int]]], rows: Sequence[int]
    ) -> torch.Tensor:
        """Append each (sequence, keep, tokens); return the last `rows[i]` hidden states of each.

        Returns pre-norm [sum(rows), H]. A text longer than a chunk is first read alone, chunk by
        chunk, so that memory is bounded; the last chunks of all sequences share one pass.
        """
        started = time.perf_counter()
        segments: list[Segment] = []
        packed: list[int] = []
        for (sequence, keep, tokens), wanted in zip(parts, rows, strict=True):
            last = max(self.prefill_chunk, wanted)
            while len(tokens) > last:
                piece, tokens = tokens[: self.prefill_chunk], tokens[self.prefill_chunk :]
                if len(tokens) < wanted:  # the last piece must hold all wanted rows
                    cut = len(piece) + len(tokens) - wanted
                    piece, tokens = [*piece, *tokens][:cut], [*piece, *tokens][cut:]
                segment = self._slots.extend(sequence, keep, piece)
                self.model.forward(torch.tensor(piece), [segment], self._kv)
                keep += len(piece)
            segments.append(self._slots.extend(sequence, keep, tokens))
            packed.extend(tokens)
        hidden = self.model.forward(torch.tensor(packed), segments, self._kv)
        if len(segments) == 1:
            hidden = hidden[hidden.shape[0] - rows[0] :]
        else:
            pieces = torch.split(hidden, [s.rows for s in segments])
            hidden = torch.cat(
                [p[p.shape[0] - wanted :] for p, wanted in zip(pieces, rows, strict=True)]
            )
        self.clock.forward += time.perf_counter() - started
        return hidden

    def _generator(self, sequence: int, sampling: Sampling, offset: int) -> torch.Generator:
        if sequence not in self._generators:
            seed = (sampling.seed + offset) % 2**63
            self._generators[sequence] = torch.Generator().manual_seed(seed)
        return self._generators[sequence]


class TorchDrafter(TorchEngine):
    """The small model. `vocab_ids` int64 [S] is its head's short-list; None for every id."""

    role = "draft"

    def __init__(
        self, model: Llama, *, vocab_ids: torch.Tensor | None = None, **bounds: int
    ) -> None:
        super().__init__(model, **bounds)
        self.vocab_ids = vocab_ids

    @torch.inference_mode()
    def propose(self, requests: Sequence[ProposeRequest]) -> list[Proposal]:
        tokens: list[list[int]] = [[] for _ in requests]
        probs: list[list[torch.Tensor]] = [[] for _ in requests]
        parts = [(r.sequence, r.keep, r.tokens) for r in requests]
        active = list(range(len(requests)))
        while active:
            # One pass over the tokens that each active sequence has not read yet.
            hidden = self._read([parts[i] for i in active], [1] * len(active))
            started = time.perf_counter()
            logits = self.model.logits(self.model.final_norm(hidden))
            columns = greedy(logits).tolist()
            self.clock.forward += time.perf_counter() - started
            # Choose a token for each, and go on with the sequences that want more.
            going = []
            for row, i in enumerate(active):
                request = requests[i]
                column, own = columns[row], logits[row]
                if request.sampling.constraints is not None:
                    own = constrain(
                        own[None],
                        request.sampling.constraints,
                        self._slots.tokens(request.sequence),
                        vocab_ids=self.vocab_ids,
                        vocab_size=self.vocab_size,
                    )[0]
                    column = int(greedy(own[None]))
                if request.with_probs or not request.sampling.greedy:
                    p = probabilities(own, request.sampling)
                    if not request.sampling.greedy:
                        generator = self._generator(
                            request.sequence, request.sampling, _DRAFT_SEED_OFFSET
                        )
                        column = draw(p, generator)
                    if request.with_probs:
                        probs[i].append(p)
                token = column if self.vocab_ids is None else int(self.vocab_ids[column])
                end = parts[i][1] + len(parts[i][2])
                parts[i] = (request.sequence, end, [token])
                tokens[i].append(token)
                if len(tokens[i]) < request.draft_len:
                    going.append(i)
            active = going
        return [
            Proposal(t, torch.stack(p) if p else None, self.vocab_ids if p else None)
            for t, p in zip(tokens, probs, strict=True)
        ]


class TeacherForced(NamedTuple):
    """The target's view of a given response of n tokens (`TorchTarget.teacher_forced`).

    pre_norm, post_norm  [n, H] in the model's dtype, at each token's own position
    argmax               int64 [n], the target's own choice for each position
    logprob              float32 [n], log-probability of each token of the response
    """

    pre_norm: torch.Tensor
    post_norm: torch.Tensor
    argmax: torch.Tensor
    logprob: torch.Tensor


class TorchTarget(TorchEngine):
    """The large model with its judge. It runs steps 2 and 3 of a round (`decoding.loop`)."""

    role = "target"

    def __init__(self, model: Llama, *, judge: Judge | None = None, **bounds: int) -> None:
        super().__init__(model, **bounds)
        self.end_ids = model.config.end_ids
        self.judge = judge

    @torch.inference_mode()
    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        # 2. Verify: one pass over every sequence's new text and its draft.
        rows = [len(r.draft.tokens) + 1 for r in requests]
        pre_norm = self._read(
            [(r.sequence, r.keep, [*r.tokens, *r.draft.tokens]) for r in requests], rows
        )
        started = time.perf_counter()
        post_norm = self.model.final_norm(pre_norm)
        logits = self.model.logits(post_norm)
        self.clock.forward += time.perf_counter() - started
        # 3. Accept: the judge scores the rows of all sequences together, then each sequence's rule
        # decides on its own rows.
        scores = self._scores(requests, pre_norm, post_norm)
        choices = greedy(logits)
        verdicts = []
        row = 0
        for request, count in zip(requests, rows, strict=True):
            generator = None
            if not request.sampling.greedy or request.acceptance.rule == "synthetic":
                generator = self._generator(request.sequence, request.sampling, 0)
            part = slice(row, row + count)
            own, own_choices = logits[part], choices[part]
            if request.sampling.constraints is not None:
                text = self._slots.tokens(request.sequence)
                own = constrain(own, request.sampling.constraints, text)
                own_choices = greedy(own)
            # The judge has scored all rows, but only rule `judge` may use the scores.
            judged = request.acceptance.rule == "judge"
            verdict = decide(
                request,
                own,
                own_choices,
                scores[row + 1 : row + count] if scores is not None and judged else None,
                self._threshold(request),
                self.end_ids,
                generator,
            )
            if (alternatives := request.sampling.logprobs) is not None:
                n = verdict.accepted
                emitted = [*request.draft.tokens[:n], verdict.next_token]
                raw = logits[row : row + n + 1]
                verdict = verdict._replace(logprobs=log_probabilities(raw, emitted, alternatives))
            # 5. Roll back: the cache keeps the accepted prefix (`next_token` is not read yet).
            self._slots.truncate(
                request.sequence, request.keep + len(request.tokens) + verdict.accepted
            )
            verdicts.append(verdict)
            row += count
        return verdicts

    def _threshold(self, request: VerifyRequest) -> float:
        threshold = request.acceptance.threshold
        if threshold is None:
            return self.judge.metadata.threshold if self.judge else 1.0
        return threshold

    def _scores(
        self, requests: Sequence[VerifyRequest], pre_norm: torch.Tensor, post_norm: torch.Tensor
    ) -> torch.Tensor | None:
        """The score of every row, float32 [rows]; None if no request has rule `judge`."""
        if not any(r.acceptance.rule == "judge" for r in requests):
            return None
        if self.judge is None:
            raise UserError("rule judge: the deployment names no judge file")
        started = time.perf_counter()
        feature = pre_norm if self.judge.metadata.feature == "pre_norm" else post_norm
        scores = self.judge.score(feature)
        self.clock.judge += time.perf_counter() - started
        return scores

    @torch.inference_mode()
    def teacher_forced(
        self,
        prompt: Sequence[int],
        response: Sequence[int],
        block: int = 9,
        *,
        sequence: int | None = None,
        keep: int = 0,
    ) -> TeacherForced:
        """Read a response as verification does, in passes of the last token and `block` drafts.

        sequence  the sequence to read into; None for a temporary one
        keep      positions of `sequence` that already hold the beginning of `prompt`,
                  keep < len(prompt)

        In bf16, one long pass would give other features than inference sees.
        """
        own = -1 if sequence is None else sequence
        text, first = [*prompt, *response], len(prompt)
        parts: list[tuple[torch.Tensor, ...]] = []
        try:
            for start in range(first, len(text), block):
                end = min(start + block, len(text))
                pre = self._read([(own, keep, text[keep:end])], [end - start + 1])
                keep = end - 1  # its token is read again: that row is the first of the next pass
                post = self.model.final_norm(pre)
                logits = self.model.logits(post[:-1]).float()
                read = torch.tensor(text[start:end]).unsqueeze(-1)
                logprob = logits.log_softmax(-1).gather(-1, read)[:, 0]
                parts.append((pre[1:].clone(), post[1:].clone(), greedy(logits), logprob))
        finally:
            if sequence is None:
                self.release(own)
        return TeacherForced(*(torch.cat(column) for column in zip(*parts, strict=True)))


def load_target(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    max_context: int,
    weights: Weights | None = None,
    judge: Judge | None = None,
    group: Group | None = None,
    **bounds: int,
) -> TorchTarget:
    """Load the target, or in a `group` this rank's shard; `bounds` are those of `TorchEngine`."""
    model = Llama(
        checkpoint, dtype=DTYPES[dtype], context=max_context, weights=weights, group=group
    )
    return TorchTarget(model, judge=judge, max_context=max_context, **bounds)


def load_drafter(
    checkpoint: Checkpoint,
    *,
    target: Checkpoint,
    dtype: str,
    max_context: int,
    weights: Weights | None = None,
    group: Group | None = None,
    **bounds: int,
) -> TorchDrafter:
    """Load a draft, or in a `group` this rank's shard. It may share tensors with the target.

    The tensor `draft_vocab_ids` int32 [S], if there is one, is the short-list of the draft's head.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    ids = tensors.get("draft_vocab_ids").long() if "draft_vocab_ids" in tensors else None
    if ids is not None and (int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size):
        raise UserError(
            f"draft: {tensors.folder} has draft_vocab_ids outside [0, {config.vocab_size})"
        )
    model = Llama(
        checkpoint,
        dtype=DTYPES[dtype],
        context=max_context,
        weights=weights,
        shared=target,
        head_ids=ids,
        group=group,
    )
    return TorchDrafter(model, vocab_ids=ids, max_context=max_context, **bounds)
