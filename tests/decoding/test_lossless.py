"""Rejection sampling writes the target's own distribution: tokens of a round counted jointly.

The chi-square test covers every text of a few tokens over a vocabulary of three, where every row
depends on the token before it. Seeds are fixed, so a test always gives the same p-value. All demand
more than 1e-3; a correct implementation falls below that for one choice of seeds in a thousand.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import chisquare

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.decoding import acceptance as rules
from judge_decoding.decoding import verdict
from judge_decoding.decoding.contracts import Acceptance, Proposal, Sampling, VerifyRequest
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sampling import probabilities
from judge_decoding.decoding.sequence import Request
from judge_decoding.decoding.verdict import decide
from judge_decoding.torch_engine import engine as torch_engine
from judge_decoding.torch_engine.engine import load_drafter, load_target
from tests.conftest import perturb, write_llama, write_tokenizer
from tests.rank_world import World

V = 3
LEAST = 1e-3
NOTICED = 1e-6
PLAIN = Sampling(1.0)
FILTERED = Sampling(1.3, top_p=0.85)
REJECTION = Acceptance(rule="rejection")

Text = tuple[int, ...]


def random_logits(seed: int) -> torch.Tensor:
    """Logits [V, V], one row for each previous token."""
    return 1.2 * torch.randn(V, V, generator=torch.Generator().manual_seed(seed))


TARGET, DRAFT = random_logits(1), random_logits(2)


def p_value(texts: Iterable[Text], chances: dict[Text, float]) -> float:
    """p-value of the texts; those that are expected less than five times count as one."""
    counts = Counter(texts)
    total = counts.total()
    assert not [text for text in counts if chances[text] == 0]
    often = [text for text, chance in chances.items() if chance * total >= 5]
    seen, expected = [counts[t] for t in often], [chances[t] * total for t in often]
    if rest := total - sum(expected):
        seen, expected = [*seen, total - sum(seen)], [*expected, rest]
    scale = total / sum(expected)
    return float(chisquare(seen, [scale * one for one in expected])[1])


def chances(length: int, sampling: Sampling) -> dict[Text, float]:
    """Probability of every text of TARGET after token 0."""
    p = probabilities(TARGET, sampling).double()
    return {
        text: float(p[[0, *text[:-1]], text].prod())
        for text in itertools.product(range(V), repeat=length)
    }


def written(k: int, sampling: Sampling, length: int = 3, runs: int = 1500) -> list[Text]:
    """Texts of `length` tokens after token 0, with k tokens drafted per round."""
    q = probabilities(DRAFT, sampling)
    drafts, generator = random.Random(3), torch.Generator().manual_seed(4)
    texts = []
    for _ in range(runs):
        text = [0]
        while len(text) <= length:
            read = [text[-1]]
            for _ in range(k):
                read += drafts.choices(range(V), q[read[-1]].tolist())
            draft = Proposal(read[1:], q[read[:-1]])
            request = VerifyRequest(0, 0, [0], draft, sampling, REJECTION)
            logits = TARGET[read]
            got = decide(request, logits, logits.argmax(-1), None, 1.0, (), generator)
            text += [*read[1 : got.accepted + 1], got.next_token]
        texts.append(tuple(text[1 : length + 1]))
    return texts


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED], ids=["plain", "filtered"])
@pytest.mark.parametrize("k", [2, 3])
def test_a_verdict_keeps_the_targets_joint_distribution(k: int, sampling: Sampling) -> None:
    assert p_value(written(k, sampling), chances(3, sampling)) > LEAST


def test_one_uniform_for_all_tokens_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token alone would still have its distribution; only the joint one shows the error."""
    rejection = rules.rejection
    monkeypatch.setattr(
        verdict.rules, "rejection", lambda p, q, d, u: rejection(p, q, d, u[:1].expand(len(u)))
    )
    assert p_value(written(3, PLAIN), chances(3, PLAIN)) < NOTICED


# ---- through the loop and the engines ----

LENGTH = 3
LIMITS = {"dtype": "float32", "max_sequences": 250, "max_context": 16}
PROMPT = [1, 2]


@dataclass(frozen=True)
class Pair:
    """Folders of a tiny Llama over three tokens, and of a draft that partly agrees with it."""

    target: Path
    draft: Path

    def chances(self, sampling: Sampling) -> dict[Text, float]:
        """Probability of every text after PROMPT, by transformers' own logits."""
        from transformers import LlamaForCausalLM

        texts = list(itertools.product(range(V), repeat=LENGTH))
        model = LlamaForCausalLM.from_pretrained(self.target)
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *text] for text in texts])).logits
        rows = probabilities(logits[:, len(PROMPT) - 1 : -1], sampling).double()
        index = torch.tensor(texts).unsqueeze(-1)
        return dict(zip(texts, rows.gather(-1, index).squeeze(-1).prod(-1).tolist(), strict=True))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    target = write_llama(
        tmp_path_factory.mktemp("lossless") / "target",
        vocab_size=V,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=None,
        initializer_range=0.15,
    )
    write_tokenizer(target, V)
    return Pair(target, perturb(target, target.parent / "draft", noise=0.4))


def generated(pair: Pair, sampling: Sampling, runs: int = 1200) -> list[Text]:
    """One text per seed, with two tokens drafted per round."""
    draft, target = Checkpoint(pair.draft), Checkpoint(pair.target)
    decoder = SpeculativeDecoder(
        Engines(load_drafter(draft, target=target, **LIMITS), load_target(target, **LIMITS))
    )
    temperature, top_p = sampling.temperature, sampling.top_p
    results = decoder.generate(
        [
            Request(PROMPT, LENGTH, REJECTION, Sampling(temperature, 0, top_p, seed), 2)
            for seed in range(runs)
        ]
    )
    accepted = sum(r.record.num_accepted_draft_tokens for r in results)
    drafted = sum(r.record.num_draft_tokens for r in results)
    assert 0.3 < accepted / drafted < 0.95, accepted / drafted  # else the comparison says little
    return [tuple(r.token_ids) for r in results]


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED], ids=["plain", "filtered"])
def test_the_loop_keeps_the_targets_joint_distribution(pair: Pair, sampling: Sampling) -> None:
    assert p_value(generated(pair, sampling), pair.chances(sampling)) > LEAST


def test_a_draft_with_the_targets_own_draws_would_be_noticed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "_DRAFT_SEED_OFFSET", 0)
    assert p_value(generated(pair, PLAIN), pair.chances(PLAIN)) < NOTICED


@pytest.mark.slow
def test_ranks_keep_the_targets_joint_distribution(pair: Pair, tmp_path: Path) -> None:
    """Draft and target run in their own processes, the target in two parts."""
    sampling = {"temperature": FILTERED.temperature, "top_p": FILTERED.top_p}
    common: dict[str, Any] = {
        "prompt": PROMPT,
        "tokens": LENGTH,
        "acceptance": {"rule": "rejection"},
        "max_draft_len": 2,
    }
    asked = [common | {"sampling": sampling | {"seed": seed}} for seed in range(1200)]
    (tmp_path / "requests.json").write_text(json.dumps(asked))
    deployment = {
        "name": "three tokens",
        "dtype": "float32",
        "target": {"model": str(pair.target)},
        "draft": {"model": str(pair.draft)},
        "max_draft_len": 2,
        "limits": {"max_sequences": 250, "max_context": 16, "max_tokens": 8},
        "ranks": {"draft": {"tp": 1}, "target": {"tp": 2}},
    }
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(deployment))
    with World(tmp_path / "deployment.yaml", 3, tmp_path / "requests.json") as world:
        texts = [tuple(result["ids"]) for result in world.results()]
    assert len(texts) == 1200
    assert p_value(texts, pair.chances(FILTERED)) > LEAST
