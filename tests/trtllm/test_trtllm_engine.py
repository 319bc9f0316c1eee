"""The TensorRT-LLM drafter and target in the real loop, on a RECORDING FAKE of the Executor API.

These tests check our side of the contract. The fake assumes that the runtime keeps its own side
(tests/fakes/executor_fake.py); docs/h100.md has the commands that prove it on a GPU.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment, JudgeConfig
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.contracts import (
    Acceptance,
    Proposal,
    ProposeRequest,
    Sampling,
    VerifyRequest,
)
from judge_decoding.decoding.loop import Result, SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from judge_decoding.ranks import codec, worker
from judge_decoding.ranks.messages import Error
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import load_drafter, load_target
from judge_decoding.trtllm.engine import TrtDrafter, TrtTarget
from judge_decoding.trtllm.executor import (
    CUDA_GRAPHS,
    Executor,
    ExecutorError,
    executor_config,
    open_executor,
)
from judge_decoding.trtllm.manifest import engine_folder, manifest_for
from judge_decoding.trtllm.open_engines import open_trtllm_engines
from tests.fakes import executor_fake as fake
from tests.fakes.tiny_llama import TinyLlama
from tests.rank_scripts.trtllm_worker import RUNTIME
from tests.rank_world import World
from tests.torch_engine.test_engine import judge

LIMITS = {"dtype": "float32", "max_sequences": 8, "max_context": 160, "prefill_chunk": 16}
BOUNDS = {"max_context": 160, "max_sequences": 8}
MAX_DRAFT_LEN = 8


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: spinning threads cost more than they compute
    yield
    torch.set_num_threads(threads)
    for opened in fake.Executor.opened:
        assert not opened.waiting, "answers that nobody fetched"
    fake.Executor.opened.clear()
    fake.Executor.models.clear()
    fake.Executor.plugin = None


def plugin(threshold: float, end_ids: tuple[int, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(threshold=threshold, end_ids=end_ids, max_draft_len=MAX_DRAFT_LEN)


def opened(role: str, model: fake.Model) -> fake.Executor:
    fake.Executor.models[role] = model
    drafts = role == "draft"
    scores = None if drafts else [fake.AdditionalModelOutput("judge_scores")]
    settings = fake.ExecutorConfig(
        max_num_tokens=BOUNDS["max_context"],
        gather_generation_logits=drafts,
        additional_model_outputs=scores,
    )
    return fake.Executor(Path(f"/engines/{role}"), fake.ModelType.DECODER_ONLY, settings)


def wrapped(handle: fake.Executor, timeout_s: float = 60.0) -> Executor:
    return Executor(handle, fake, name="target executor (GPU 1, 2)", timeout_s=timeout_s)


# Tables: small vocabularies, whose answers can all be worked out by hand.


def one_hot(token: int, size: int = 64) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token), size) * 10.0


def count_up(text: list[int]) -> torch.Tensor:
    """The target writes 1, 2, 3, ..."""
    return one_hot((text[-1] + 1) % 64)


def by_token(scores: dict[int, float]) -> Any:
    return lambda text: scores.get(text[-1], 0.1)


def table_target(
    scores: dict[int, float] | None = None,
    threshold: float = 0.5,
    end_ids: tuple[int, ...] = (),
    timeout_s: float = 60.0,
) -> tuple[TrtTarget, fake.Executor]:
    """A target of count_up, with a judge of the given scores (else 0.1), or without a judge."""
    if scores is not None:
        fake.Executor.plugin = plugin(threshold, end_ids)
    handle = opened("target", fake.Model(count_up, by_token(scores or {})))
    target = TrtTarget(
        wrapped(handle, timeout_s),
        end_ids=end_ids,
        judge=None if scores is None else judge(),
        threshold=1.0 if scores is None else threshold,
        vocab_size=64,
        **BOUNDS,
    )
    return target, handle


def verify(target: TrtTarget, draft: list[int], **acceptance: Any) -> Any:
    chosen = Acceptance(**({"rule": "judge"} | acceptance))
    request = VerifyRequest(0, 0, [7, 1], Proposal(draft), acceptance=chosen)
    return target.verify([request])[0]


@pytest.mark.parametrize(
    ("draft", "accepted", "next_token"),
    [
        ([2, 3, 4], 3, 5),  # all drafts, and the bonus
        ([2, 9, 10], 1, 3),  # only the first, and the correction
        ([9, 3, 4], 0, 2),
        ([2], 1, 3),
        ([], 0, 2),
    ],
)
def test_without_a_judge_the_stock_rule_decides(
    draft: list[int], accepted: int, next_token: int
) -> None:
    target, handle = table_target()
    assert verify(target, draft, rule="strict")[:4] == (
        accepted,
        [False] * accepted,
        [],
        next_token,
    )
    sent = handle.requests[0]
    assert sent.input_token_ids == [7, 1]
    assert sent.max_tokens == len(draft) + 1
    assert sent.output_config.additional_model_outputs is None
    assert sent.sampling_config == fake.SamplingConfig(top_k=1)
    target.check_integrity({0: [7, 1, *draft[:accepted]]})


def test_provenance_is_the_sign_of_the_scores() -> None:
    """Only the judge accepts 20. After it, 21 is the target's own next number, so it is aligned
    although its score is high. Both refuse 40."""
    target, _ = table_target({20: 0.75, 21: 0.875, 2: 0.25})
    verdict = verify(target, [2, 20, 21, 40, 41])
    assert verdict.accepted == 3
    assert verdict.overridden == [False, True, False]
    assert verdict.scores == pytest.approx([0.25, 0.75, 0.875, 0.1, 0.1])
    assert verdict.next_token == 22


def test_the_bonus_follows_an_overridden_run() -> None:
    target, _ = table_target({20: 0.9, 30: 0.9})
    assert verify(target, [20, 30])[:2] == (2, [True, True])
    assert verify(target, [20, 30]).next_token == 31


def test_end_ids_are_protected_in_the_engine() -> None:
    target, _ = table_target({20: 0.9, 50: 0.9}, end_ids=(50,))
    assert verify(target, [20, 50]).accepted == 1
    assert verify(target, [20, 50]).next_token == 21


def test_a_stricter_request_is_cut_and_asks_for_the_targets_own_token() -> None:
    target, handle = table_target({20: 0.6, 30: 0.8, 40: 0.6})
    draft = [30, 20, 40]
    assert verify(target, draft)[:2] == (3, [True] * 3)
    cut = verify(target, draft, threshold=0.7)
    assert cut[:2] == (1, [True])
    assert cut.next_token == 31
    assert cut.scores == pytest.approx([0.8, 0.6, 0.6])
    again = handle.requests[-1]
    assert again.input_token_ids == [7, 1, 30]
    assert again.max_tokens == 1
    assert again.external_draft_tokens_config is None
    target.check_integrity({0: [7, 1, 30]})
    assert verify(target, draft, threshold=0.6)[:2] == (1, [True])  # at the threshold it is refused
    assert verify(target, draft, rule="strict")[:4] == (0, [], [], 2)
    assert verify(target, draft, threshold=1.0)[0] == 0


def test_only_the_cut_sequences_of_a_batch_cost_a_second_pass() -> None:
    target, handle = table_target({20: 0.6})
    rules = [{"rule": "judge"}, {"rule": "strict"}, {"rule": "none"}]
    drafts = [[20], [20], []]
    verdicts = target.verify(
        [
            VerifyRequest(i, 0, [1], Proposal(draft), acceptance=Acceptance(**rule))
            for i, (draft, rule) in enumerate(zip(drafts, rules, strict=True))
        ]
    )
    assert [(v.accepted, v.next_token) for v in verdicts] == [(1, 21), (0, 2), (0, 2)]
    assert handle.batches == [3, 1]
    target.check_integrity({0: [1, 20], 1: [1], 2: [1]})


@pytest.mark.parametrize(
    ("acceptance", "sampling", "message"),
    [
        ({"rule": "topk"}, {}, "rule topk: engine trtllm has only none, strict, rejection, judge"),
        ({"rule": "synthetic"}, {}, "rule synthetic"),
        ({"rule": "judge", "threshold": 0.3}, {}, "0.3 is below the 0.5 compiled into"),
        ({"rule": "judge", "threshold": 0.9}, {"temperature": 1.0}, "threshold is the engine's"),
        ({"rule": "rejection"}, {"temperature": 0.7}, "use rule judge without a threshold"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_before_anything_is_sent(
    acceptance: dict[str, Any], sampling: dict[str, Any], message: str
) -> None:
    target, handle = table_target({})
    request = VerifyRequest(
        0, 0, [1], Proposal([2]), Sampling(**sampling), Acceptance(**acceptance)
    )
    with pytest.raises(UserError, match=message):
        target.verify([request])
    assert not handle.requests
    target.check_integrity({})


def test_what_the_engine_can_do_is_not_refused() -> None:
    target, _ = table_target({})
    for threshold in (None, 0.5, 0.9, 1.0):
        target.check(Acceptance("judge", threshold), Sampling())
    for rule in ("none", "strict", "rejection"):
        target.check(Acceptance(rule), Sampling())  # type: ignore[arg-type]
    target.check(Acceptance("judge"), Sampling(0.7))
    target.check(Acceptance("none"), Sampling(0.7))
    target, _ = table_target()
    target.check(Acceptance("rejection"), Sampling(0.7))


def test_an_engine_without_scores_for_its_drafts_is_found_out() -> None:
    target, _ = table_target({20: 0.9})
    request = VerifyRequest(0, 0, [1], Proposal([2, 3]), acceptance=Acceptance("judge"))
    for outputs, message in (
        ([], "no output judge_scores; build the target with the plugin"),
        ([("context_judge_scores", [[[0.5, 0.5]]])], "no output judge_scores"),
        ([("generation_judge_scores", [[[0.5]]])], "lacks a drafted token"),
        ([("generation_judge_scores", [[[0.5, torch.nan]]])], "lacks a drafted token"),
    ):
        named = [SimpleNamespace(name=n, output=torch.tensor(cells)) for n, cells in outputs]
        with pytest.raises(ExecutorError, match=message):
            target._verdict(request, fake.Result([[2, 3, 4]], additional_outputs=named))
    for tokens in ([], [3, 4], [2, 3, 4, 5]):
        with pytest.raises(ExecutorError, match=r"without a token|no prefix"):
            target._verdict(request, fake.Result([tokens]))


def test_a_request_that_fails_names_its_executor_and_leaks_nothing() -> None:
    target, handle = table_target()
    handle.fail = {2: "out of KV blocks"}
    requests = [VerifyRequest(i, 0, [1], Proposal([2])) for i in range(3)]
    with pytest.raises(ExecutorError, match=r"target executor \(GPU 1, 2\): request 2: out of KV"):
        target.verify(requests)
    assert not handle.waiting
    target.check_integrity({0: [1], 1: [1], 2: [1]})
    for number in range(3):
        target.release(number)
    target.check_integrity({})


def test_a_time_out_names_its_executor_and_cancels_what_is_in_flight() -> None:
    target, handle = table_target(timeout_s=0.2)
    handle.hang = {2, 3}
    requests = [VerifyRequest(i, 0, [1], Proposal([2])) for i in range(3)]
    message = r"target executor \(GPU 1, 2\): 2 requests without an answer after 0.2 s"
    with pytest.raises(ExecutorError, match=message):
        target.verify(requests)
    assert handle.cancelled == [2, 3]
    target.check_integrity({0: [1], 1: [1], 2: [1]})


def test_integrity_tells_a_lost_or_wrong_text() -> None:
    target, _ = table_target()
    verify(target, [2, 3], rule="strict")
    target.check_integrity({0: [7, 1, 2]})
    for expected in ({}, {0: [7, 2]}, {0: [7, 1, 2, 3, 4]}, {0: [7], 1: [7]}):
        with pytest.raises(AssertionError):
            target.check_integrity(expected)
    with pytest.raises(ValueError, match="keep=9"):
        target.verify([VerifyRequest(0, 9, [1])])


# The loop: the same answers as with the PyTorch engine, whose model stands behind the fake.


def tiny_decoder(
    tiny_target: Path, tiny_draft: Path, threshold: float, end_ids: tuple[int, ...] = ()
) -> SpeculativeDecoder:
    fake.Executor.plugin = plugin(threshold, end_ids)
    big = TinyLlama(load_target(Checkpoint(tiny_target), judge=judge(), **LIMITS))
    small = TinyLlama(load_target(Checkpoint(tiny_draft), **LIMITS))
    target = TrtTarget(
        wrapped(opened("target", big)),
        end_ids=end_ids,
        judge=judge(),
        threshold=threshold,
        vocab_size=256,
        **BOUNDS,
    )
    drafter = TrtDrafter(wrapped(opened("draft", small)), vocab_size=256, **BOUNDS)
    return loop(drafter, target, tiny_target)


def torch_decoder(
    tiny_target: Path, tiny_draft: Path, end_ids: tuple[int, ...] = ()
) -> SpeculativeDecoder:
    target = load_target(Checkpoint(tiny_target), judge=judge(), **LIMITS)
    target.end_ids = end_ids
    return loop(
        load_drafter(Checkpoint(tiny_draft), target=Checkpoint(tiny_target), **LIMITS),
        target,
        tiny_target,
    )


def loop(drafter: Any, target: Any, folder: Path) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        Engines(drafter, target), tokenizer=Tokenizer(folder), max_draft_len=5, prefill_chunk=16
    )


PROMPTS = [[7, 3, 250, 19], list(range(1, 40)), [200]]
THRESHOLD = 0.5


def run(decoder: SpeculativeDecoder, requests: list[Request]) -> list[Result]:
    """Runs all requests in one batch; the books are checked after every round."""
    numbers = [decoder.add(request) for request in requests]
    while decoder.num_active:
        decoder.step()
        decoder.check_integrity(deep=True)
    return [decoder.result(number) for number in numbers]


def same(ours: list[Result], reference: list[Result]) -> None:
    for a, b in zip(ours, reference, strict=True):
        assert a.token_ids == b.token_ids
        assert a.provenance == b.provenance
        assert (a.text, a.finish_reason, a.record) == (b.text, b.finish_reason, b.record)
        for x, y in zip(a.judge_scores, b.judge_scores, strict=True):
            assert x is None or x == pytest.approx(y, abs=1e-4)


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [("none", None), ("strict", None), ("judge", THRESHOLD), ("judge", 0.6), ("judge", 1.0)],
)
def test_the_loop_gives_the_pytorch_engines_tokens_and_provenance(
    tiny_target: Path, tiny_draft: Path, rule: Any, threshold: float | None
) -> None:
    requests = [Request(p, 20, Acceptance(rule, threshold)) for p in PROMPTS]
    ours = run(tiny_decoder(tiny_target, tiny_draft, THRESHOLD), requests)
    same(ours, run(torch_decoder(tiny_target, tiny_draft), requests))
    sources = [s for r in ours for s in r.provenance]
    assert ("judged" in sources) == (rule == "judge" and threshold != 1.0)
    assert ("aligned" in sources) == (rule != "none")
    scored = [score is not None for r in ours for score in r.judge_scores]
    assert scored == [rule == "judge" and source != "target" for source in sources]


def test_a_mixed_batch_is_one_enqueue_a_pass(tiny_target: Path, tiny_draft: Path) -> None:
    rules = [Acceptance("none"), Acceptance("strict"), Acceptance("judge", THRESHOLD)]
    requests = [Request([9, 4, i], 20, r) for i, r in enumerate(rules)]
    decoder = tiny_decoder(tiny_target, tiny_draft, THRESHOLD)
    same(run(decoder, requests), run(torch_decoder(tiny_target, tiny_draft), requests))
    target, draft = fake.Executor.opened
    assert draft.batches[0] == 2
    assert target.batches[0] == 3


@pytest.mark.parametrize("position", [1, 4, 7])
def test_stop_rules_hold_inside_accepted_runs(
    tiny_target: Path, tiny_draft: Path, position: int
) -> None:
    free = Request(PROMPTS[0], 30, Acceptance("strict"), ignore_end=True)
    whole = run(torch_decoder(tiny_target, tiny_draft), [free])[0]
    ends = (whole.token_ids[position], 255)
    stop = whole.text[position : position + 2]
    requests = [
        Request(PROMPTS[0], 30, Acceptance("strict")),
        Request(PROMPTS[0], 30, Acceptance("strict"), stop=(stop,), ignore_end=True),
        Request(PROMPTS[0], position, Acceptance("strict"), ignore_end=True),
        Request(PROMPTS[0], 30, Acceptance("judge", THRESHOLD)),
    ]
    ours = run(tiny_decoder(tiny_target, tiny_draft, THRESHOLD, ends), requests)
    same(ours, run(torch_decoder(tiny_target, tiny_draft, ends), requests))
    assert [r.finish_reason for r in ours[:3]] == ["stop", "stop", "length"]


def test_a_cancelled_sequence_leaves_the_others_alone(tiny_target: Path, tiny_draft: Path) -> None:
    requests = [Request(p, 20, Acceptance("strict")) for p in PROMPTS[:2]]
    alone = run(torch_decoder(tiny_target, tiny_draft), requests[1:])
    decoder = tiny_decoder(tiny_target, tiny_draft, THRESHOLD)
    first, second = (decoder.add(r) for r in requests)
    decoder.step()
    decoder.cancel(first)
    decoder.check_integrity()
    while decoder.num_active:
        decoder.step()
    assert decoder.result(first).finish_reason == "cancelled"
    assert decoder.result(second).token_ids == alone[0].token_ids
    decoder.check_integrity()


def test_a_long_prompt_is_read_in_pieces_that_resend_the_prefix(
    tiny_target: Path, tiny_draft: Path
) -> None:
    run(
        tiny_decoder(tiny_target, tiny_draft, THRESHOLD),
        [Request(list(range(1, 40)), 4, Acceptance("strict"))],
    )
    target, draft = fake.Executor.opened
    for handle in (target, draft):
        lengths = [len(r.input_token_ids) for r in handle.requests[:3]]
        assert lengths == [16, 32, 39]
        assert [r.max_tokens for r in handle.requests[:2]] == [1, 1]


# Sampling.


def sampled(distribution: list[float]) -> fake.Model:
    logits = torch.tensor(distribution).log()
    model = fake.Model(lambda text: logits)
    model.vocab_size = len(distribution)
    model.padded_vocab_size = len(distribution) + 1
    return model


P, Q = [0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2]


def sampling_pair() -> tuple[TrtDrafter, TrtTarget]:
    bounds = {"vocab_size": 4, "max_context": 64, "max_sequences": 8}
    drafter = TrtDrafter(wrapped(opened("draft", sampled(Q))), **bounds)
    target = TrtTarget(wrapped(opened("target", sampled(P))), end_ids=(), **bounds)
    return drafter, target


def propose(drafter: TrtDrafter, sampling: Sampling, sequence: int = 0, length: int = 2) -> Any:
    request = ProposeRequest(sequence, 0, [1], length, sampling, with_probs=True)
    return drafter.propose([request])[0]


def test_draft_distributions_reach_the_runtime_as_they_were_drawn_from() -> None:
    """They include the temperature, which the runtime's own softmax of draft logits leaves out, and
    have no padding columns."""
    drafter, target = sampling_pair()
    sampling = Sampling(temperature=0.5, seed=3)
    proposal = propose(drafter, sampling)
    expected = (torch.tensor(Q).log() / 0.5).softmax(-1)
    assert proposal.probs is not None
    assert torch.allclose(proposal.probs, expected.expand(2, 4))
    target.verify([VerifyRequest(0, 0, [1], proposal, sampling, Acceptance("rejection"))])
    draft = fake.Executor.opened[1].requests[0].external_draft_tokens_config
    assert draft is not None
    assert draft.logits is not None
    assert draft.logits.dtype == torch.float32
    assert torch.allclose(draft.logits.softmax(-1), expected.expand(2, 4))
    assert (draft.acceptance_threshold, draft.fast_logits) == (None, None)


def test_the_vocabulary_is_padded_as_the_runtime_pads_it() -> None:
    _, target = sampling_pair()
    target._padding = 2  # tp 3
    request = VerifyRequest(0, 0, [1], Proposal([0], torch.tensor([Q])), Sampling(1.0))
    draft = target._verify_request(request, [1]).external_draft_tokens_config
    assert draft.logits.shape == (1, 6)
    assert torch.allclose(draft.logits.softmax(-1)[0], torch.tensor([*Q, 0.0, 0.0]))


def test_rejection_keeps_the_targets_distribution() -> None:
    drafter, target = sampling_pair()
    counts = torch.zeros(4)
    for seed in range(1500):
        sampling = Sampling(temperature=1.0, seed=seed)
        proposal = propose(drafter, sampling, length=1)
        request = VerifyRequest(0, 0, [1], proposal, sampling, Acceptance("rejection"))
        verdict = target.verify([request])[0]
        counts[proposal.tokens[0] if verdict.accepted else verdict.next_token] += 1
    share = counts / counts.sum()
    assert float((share - torch.tensor(P)).abs().max()) < 0.04  # 3 standard errors of 1500 draws


def test_every_round_draws_with_a_seed_of_its_own_that_repeats() -> None:
    drafter, _ = sampling_pair()
    sampling = Sampling(temperature=1.0, seed=5)
    for _ in range(2):
        drafter.propose([ProposeRequest(0, 0, [1], 3, sampling)])
        drafter.propose([ProposeRequest(0, 1, [2, 3], 3, sampling)])
        drafter.release(0)
    seeds = [r.sampling_config.seed for r in fake.Executor.opened[0].requests]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]
    config = fake.Executor.opened[0].requests[0].sampling_config
    assert (config.temperature, config.top_k, config.top_p) == (1.0, None, 1.0)


def test_greedy_drafts_ask_for_no_distributions() -> None:
    drafter, _ = sampling_pair()
    assert propose(drafter, Sampling()).probs is None
    assert not fake.Executor.opened[0].requests[0].output_config.return_generation_logits


def test_numbers_of_sequences_may_come_in_any_order() -> None:
    target, _ = table_target()
    for order in itertools.permutations(range(3)):
        target.verify([VerifyRequest(i, 0, [i + 1], Proposal([i + 2])) for i in order])
        target.check_integrity({i: [i + 1, i + 2] for i in range(3)})


# Opening: from a deployment to executors.


def deployment(tmp_path: Path, tiny_target: Path, tiny_draft: Path, **changes: Any) -> Deployment:
    values: dict[str, Any] = {
        "name": "tiny",
        "engine": "trtllm",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "acceptance": {"rule": "strict"},
        "max_draft_len": 5,
        "limits": {"max_sequences": 4, "max_context": 128},
        "ranks": {"draft": {"devices": [0]}, "target": {"tp": 2, "devices": [1, 2]}},
        "trtllm": {"engines": str(tmp_path / "engines"), "gpu": "h100", "gpus_per_node": 4},
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return Deployment.model_validate(values, context={"folder": tmp_path})


@pytest.fixture
def tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the fake in place of the package, on a machine with the right GPU."""
    package = SimpleNamespace(__file__="/site/tensorrt_llm/__init__.py")
    monkeypatch.setitem(sys.modules, "tensorrt_llm", package)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.bindings", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorrt_llm.bindings.executor", fake)
    monkeypatch.setattr("judge_decoding.trtllm.executor.check_tensorrt_llm", lambda: "1.2.1")
    monkeypatch.setattr("judge_decoding.trtllm.open_engines.this_runtime", lambda: RUNTIME)


def write_engines(d: Deployment) -> None:
    for role in ("draft", "target"):
        folder = engine_folder(d, role)
        folder.mkdir(parents=True)
        manifest = manifest_for(d, role, Checkpoints.of(d), RUNTIME)
        manifest.save(folder)
        for name in ("config.json", *(f"rank{i}.engine" for i in range(manifest.tp))):
            (folder / name).write_text("{}")


def test_a_deployment_loads_and_answers(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path, tensorrt_llm: None
) -> None:
    d = deployment(tmp_path, tiny_target, tiny_draft)
    write_engines(d)
    fake.Executor.models["draft"] = TinyLlama(load_target(Checkpoint(tiny_draft), **LIMITS))
    fake.Executor.models["target"] = TinyLlama(load_target(Checkpoint(tiny_target), **LIMITS))
    pipeline = load_pipeline(d)
    assert [h.model for h in fake.Executor.opened] == [
        fake.Executor.models["draft"],
        fake.Executor.models["target"],
    ]
    request = Request(PROMPTS[0], 12, Acceptance("strict"), ignore_end=True)
    reference = torch_decoder(tiny_target, tiny_draft).generate([request])[0]
    assert pipeline.decoder.generate([request])[0].token_ids == reference.token_ids
    with pytest.raises(UserError, match="rule topk: engine trtllm has only"):
        pipeline.decoder.add(Request([1], 4, Acceptance("topk")))
    with pytest.raises(UserError, match="names no judge"):
        pipeline.decoder.add(Request([1], 4, Acceptance("judge")))
    assert pipeline.decoder.num_active == 0
    pipeline.close()
    assert all(h.closed for h in fake.Executor.opened)


def test_a_mismatch_is_refused_before_anything_is_loaded(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path, tensorrt_llm: None
) -> None:
    d = deployment(tmp_path, tiny_target, tiny_draft)
    with pytest.raises(UserError, match=r"manifest.json; build it with build/build_engines.py"):
        open_trtllm_engines(d, Checkpoints.of(d))
    write_engines(d)
    longer = deployment(tmp_path, tiny_target, tiny_draft, max_draft_len=6)
    with pytest.raises(UserError, match="max_draft_len 5, but 6 is needed"):
        open_trtllm_engines(longer, Checkpoints.of(longer))
    manifest = manifest_for(d, "target", Checkpoints.of(d), RUNTIME)
    other = manifest.model_copy(update={"tensorrt": "10.13.3"})
    other.save(engine_folder(d, "target"))
    with pytest.raises(UserError, match=r"tensorrt 10.13.3, but 10.14.1 is needed"):
        open_trtllm_engines(d, Checkpoints.of(d))
    assert not fake.Executor.opened
    manifest.save(engine_folder(d, "target"))
    with pytest.raises(UserError, match=r"engines/draft does not load \(\[TensorRT-LLM\]"):
        open_trtllm_engines(d, Checkpoints.of(d))  # the fake holds no models


def test_leader_mode_is_refused_in_one_process(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path
) -> None:
    with pytest.raises(UserError, match="start this and its ranks with mpirun"):
        load_pipeline(deployment(tmp_path, tiny_target, tiny_draft, trtllm={"mode": "leader"}))


def test_a_rank_beside_an_orchestrator_is_refused(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    comm = SimpleNamespace(
        rank=3,
        size=4,
        send=lambda rank, data, *_: sent.append(data),
        receive=lambda *_, **__: None,
    )
    monkeypatch.setattr("judge_decoding.ranks.worker.Comm", lambda _: comm)
    config = tmp_path / "deployment.yaml"
    d = deployment(tmp_path, tiny_target, tiny_draft)
    config.write_text(yaml.safe_dump(d.model_dump(mode="json", exclude_none=True)))
    monkeypatch.setattr(sys, "argv", ["worker", "--config", str(config)])
    assert worker.main() == 2
    (message,) = (codec.decode(data)[0] for data in sent)
    assert isinstance(message, Error)
    assert message.kind == "UserError"
    assert "spawns its ranks itself; start one process alone" in message.text


@pytest.mark.slow
def test_leader_mode_drives_the_first_rank_of_each_executor(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path
) -> None:
    """Four real MPI ranks: the leader, the draft's, and two of the target's, one of which only
    follows. The tokens are the PyTorch engine's, all ranks end in order, and MPI serves many
    threads without an environment variable that asks for it."""
    d = deployment(tmp_path, tiny_target, tiny_draft, trtllm={"mode": "leader"})
    write_engines(d)
    config, requests = tmp_path / "deployment.yaml", tmp_path / "requests.json"
    config.write_text(yaml.safe_dump(d.model_dump(mode="json", exclude_none=True)))
    asked = [{"prompt": p, "tokens": 8, "acceptance": {"rule": "strict"}} for p in PROMPTS]
    requests.write_text(json.dumps(asked))
    module = "tests.rank_scripts.trtllm_worker"
    with World(config, 3, requests, worker_module=module) as world:
        results = world.results()
        world.ends_clean()
    free = [Request(p, 8, Acceptance("strict")) for p in PROMPTS]
    reference = torch_decoder(tiny_target, tiny_draft, (0,)).generate(free)
    assert [r["ids"] for r in results] == [r.token_ids for r in reference]
    assert [r["provenance"] for r in results] == [r.provenance for r in reference]


def test_an_mpi_of_one_thread_at_a_time_is_refused(
    tmp_path: Path,
    tiny_target: Path,
    tiny_draft: Path,
    tensorrt_llm: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: only leader mode was checked (there the environment sets the level), and not
    orchestrator mode."""
    fake.Executor.models["target"] = fake.Model(count_up)
    d = deployment(tmp_path, tiny_target, tiny_draft)
    mpi = SimpleNamespace(THREAD_MULTIPLE=3, Query_thread=lambda: 2)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)
    with pytest.raises(UserError, match="serves one thread at a time"):
        open_executor(d, "target")
    mpi.Query_thread = lambda: 3
    open_executor(d, "target").close()


def test_without_tensorrt_llm_the_message_names_the_container(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path
) -> None:
    d = deployment(tmp_path, tiny_target, tiny_draft)
    with pytest.raises(UserError, match=r"not installed here; run inside the container nvcr.io"):
        open_trtllm_engines(d, Checkpoints.of(d))


def test_a_missing_plugin_is_named(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path, tensorrt_llm: None
) -> None:
    path = tmp_path / "judge.safetensors"
    judge().save(path)
    changes: dict[str, Any] = {"judge": JudgeConfig(path=path), "acceptance": {"rule": "judge"}}
    d = deployment(tmp_path, tiny_target, tiny_draft, **changes)
    with pytest.raises(
        UserError, match=r"trtllm.plugin: /opt/.*libjudge_accept_plugin.so does not load"
    ):
        open_executor(d, "target")


def parallel(d: Deployment, role: Any) -> fake.ParallelConfig:
    config = executor_config(fake, d, role)
    assert config.parallel_config is not None
    return config.parallel_config  # type: ignore[no-any-return]


def test_orchestrator_mode_spawns_the_ranks_of_each_executor(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path, tensorrt_llm: None
) -> None:
    d = deployment(tmp_path, tiny_target, tiny_draft)
    config = executor_config(fake, d, "target")
    assert config.kv_cache_config == fake.KvCacheConfig(True, free_gpu_memory_fraction=0.9)
    assert (config.max_batch_size, config.max_beam_width, config.max_num_tokens) == (4, 1, 8192)
    assert not config.enable_chunked_context  # the scheduler would cut drafts (executor_config)
    assert not config.gather_generation_logits
    assert config.additional_model_outputs is None  # rule strict: no plugin
    drafting = executor_config(fake, d, "draft")
    assert drafting.gather_generation_logits
    # The line-by-line review, 7: one-row steps are started as CUDA graphs, and graphs are kept.
    for knobs, graphs, kept in (
        (drafting.extended_runtime_perf_knob_config, True, CUDA_GRAPHS),
        (config.extended_runtime_perf_knob_config, False, 0),
    ):
        assert (knobs.cuda_graph_mode, knobs.cuda_graph_cache_size) == (graphs, kept)
    spawned = fake.OrchestratorConfig(True, "/site/tensorrt_llm/bin/executorWorker")
    for role, devices in (("draft", [0]), ("target", [1, 2])):
        assert parallel(d, role) == fake.ParallelConfig(
            fake.CommunicationType.MPI,
            fake.CommunicationMode.ORCHESTRATOR,
            device_ids=devices,
            orchestrator_config=spawned,
        )


def test_leader_mode_gives_each_executor_its_ranks_of_the_world(
    tmp_path: Path, tiny_target: Path, tiny_draft: Path
) -> None:
    ranks = {"draft": {"devices": [0]}, "target": {"tp": 8, "devices": list(range(8, 16))}}
    changes: dict[str, Any] = {"ranks": ranks, "trtllm": {"mode": "leader", "gpus_per_node": 4}}
    d = deployment(tmp_path, tiny_target, tiny_draft, **changes)
    mpi, mode = fake.CommunicationType.MPI, fake.CommunicationMode.LEADER
    assert parallel(d, "draft") == fake.ParallelConfig(mpi, mode, [0], [1], num_nodes=1)
    expected = fake.ParallelConfig(mpi, mode, [0, 1, 2, 3], list(range(2, 10)), num_nodes=2)
    assert parallel(d, "target") == expected
