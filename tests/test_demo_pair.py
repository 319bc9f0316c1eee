"""The shipped pair itself: forward, strict, caches, judge. `make test` prepares the target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.sequence import Request
from judge_decoding.evaluation.peers.hugging_face import transformers_model
from judge_decoding.pipeline import Pipeline, load_pipeline
from tests.torch_engine.test_llama import logits_of

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
PROMPTS = [
    "What is the capital of Norway?",
    "Write a two-line poem about the sea.",
    "Explain in one sentence why the sky is blue.",
    "List three uses of copper.",
    "def add(a, b): what does this Python function probably do?",
]


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    found = load_deployment(CONFIG)
    assert found.target.model.is_file(), "run `make target` first"
    return found


@pytest.fixture(scope="module")
def pipeline(deployment: Deployment) -> Pipeline:
    return load_pipeline(deployment.override(dtype="float32"))


@torch.inference_mode()
def test_the_target_agrees_with_transformers_over_512_positions(deployment: Deployment) -> None:
    """Both have our reading of the file. That it is transformers' own is what the judge's target
    fingerprint says, which was made from that; reading the file with transformers takes a minute.
    """
    path = deployment.target.model
    tokens = torch.randint(0, 49152, (512,), generator=torch.Generator().manual_seed(0))
    reference = transformers_model(path, torch.float32, {})
    expected = reference(tokens.unsqueeze(0)).logits[0]
    assert float((logits_of(path, tokens, 256) - expected).abs().max()) <= 1e-3


def test_strict_is_the_targets_own_output(pipeline: Pipeline) -> None:
    """In fp32, for five real prompts and draft lengths 1..8, one at a time and all together."""
    prompts = [pipeline.tokenizer.chat([{"role": "user", "content": p}]) for p in PROMPTS]
    decoder = pipeline.decoder
    own = [
        r.token_ids for r in decoder.generate([Request(p, 32, Acceptance("none")) for p in prompts])
    ]
    for k in range(1, 9):
        strict = [Request(p, 32, Acceptance("strict"), max_draft_len=k) for p in prompts]
        batched = decoder.generate(strict)
        assert [r.token_ids for r in batched] == own
        single = [decoder.generate([request])[0] for request in strict[k % 5 :][:1]]
        assert [r.token_ids for r in single] == own[k % 5 :][:1]
        assert sum(r.record.num_accepted_draft_tokens for r in batched) > 30


def test_the_caches_are_right_after_every_judged_round(pipeline: Pipeline) -> None:
    decoder = pipeline.decoder
    for p in PROMPTS[:2]:
        prompt = pipeline.tokenizer.chat([{"role": "user", "content": p}])
        decoder.add(Request(prompt, 24, Acceptance("judge", threshold=0.3)))
    while decoder.num_active:
        decoder.step()
        decoder.check_integrity(deep=True)


def test_the_judge_at_threshold_1_is_strict_and_below_it_is_not(pipeline: Pipeline) -> None:
    prompt = pipeline.tokenizer.chat([{"role": "user", "content": PROMPTS[1]}])
    runs = {
        name: pipeline.decoder.generate([Request(prompt, 48, acceptance)])[0]
        for name, acceptance in {
            "strict": Acceptance("strict"),
            "one": Acceptance("judge", threshold=1.0),
            "open": Acceptance("judge", threshold=0.0),
        }.items()
    }
    assert runs["one"].token_ids == runs["strict"].token_ids
    assert "judged" in runs["open"].provenance
    lengths = {name: run.record.mean_acceptance_length for name, run in runs.items()}
    assert lengths["open"] > lengths["one"] == lengths["strict"] > 1.3


def test_the_shipped_draft_is_small_and_shares_what_it_does_not_ship(
    deployment: Deployment,
) -> None:
    assert deployment.draft is not None
    files = list(deployment.draft.model.iterdir())
    assert sum(f.stat().st_size for f in files) <= 32 * 2**20
    assert (deployment.draft.model / "README.md").is_file()
