"""Real MPI ranks on tiny models: the same tokens as one process, and every failure ends the job."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import load_deployment
from judge_decoding.config.layout import Layout
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from judge_decoding.torch_engine.tensor_parallel import Shard
from tests.conftest import perturb, write_judge, write_llama, write_tokenizer
from tests.rank_scripts.generate import run
from tests.rank_world import ROOT, World

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs" / "demo.yaml"
TIMEOUT_S = 3


class Models:
    """Models with three key heads (2 + 1 on two ranks) and 100 MLP columns (50 + 50, 34 + 33 + 33).

    The draft covers a short-list of the vocabulary, as the demo's does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = write_llama(
            folder / "target",
            hidden_size=96,
            intermediate_size=100,
            num_attention_heads=6,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
        write_tokenizer(self.target)
        self.draft = perturb(self.target, folder / "draft", noise=0.05)
        file = self.draft / "model.safetensors"
        ids = torch.arange(1, 251, dtype=torch.int32)
        save_file(load_file(file) | {"draft_vocab_ids": ids}, file)
        self.judge = write_judge(folder / "judge.safetensors", self.target, scale=0.02, seed=4)

    def deployment(self, draft_tp: int, target_tp: int, **changes: Any) -> Path:
        """draft_tp 0 means colocated."""
        path = self.folder / f"{draft_tp}-{target_tp}-{len(changes)}.yaml"
        ranks = {
            **({"draft": {"tp": draft_tp}} if draft_tp else {"colocate_draft": True}),
            "target": {"tp": target_tp},
            "timeout_s": 60,
            "startup_timeout_s": 100,
        }
        values: dict[str, Any] = {
            "name": "tiny",
            "dtype": "float32",
            "target": {"model": str(self.target)},
            "draft": {"model": str(self.draft)},
            "judge": {"path": str(self.judge)},
            "max_draft_len": 5,
            "limits": {"max_sequences": 5, "max_context": 160, "prefill_chunk": 16},
            "ranks": ranks | changes.pop("ranks", {}),
        }
        path.write_text(yaml.safe_dump(values | changes))
        return path

    def requests(self, name: str, requests: list[dict[str, Any]]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(requests))
        return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("ranks"))


def prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, 256, (length,), generator=generator).tolist()


# Every sampling option and stop rule. The numbers are floats that JSON keeps.
OPTIONS: dict[str, Any] = {
    "prompt": prompt(11),
    "tokens": 24,
    "constraints": {
        **{"repetition": 1.25, "presence": 0.5, "frequency": 0.25},
        **{"bias": [[40, 2.5], [41, -100.0]], "bad_words": [[50], [60, 61]]},
    },
    **{"stop_ids": [7, 8], "end_id": 9, "min_tokens": 6},
}

# Twelve sequences over five slots: they join while others run and end at different times; one is
# cancelled, long prompts are read in chunks, and every rule occurs.
MIXED: list[dict[str, Any]] = [
    {"prompt": prompt(5), "tokens": 40, "acceptance": {"rule": "none"}},
    {"prompt": prompt(50), "tokens": 12, "join": 1},
    {"prompt": prompt(5), "tokens": 40, "join": 2},
    {"prompt": prompt(9), "tokens": 90, "join": 3, "cancel": 9},
    {
        "prompt": prompt(7),
        "tokens": 30,
        "join": 10,
        "acceptance": {"rule": "rejection"},
        "sampling": {"temperature": 0.9, "top_p": 0.95, "seed": 2**63 + 11},
    },
    {"prompt": prompt(8), "tokens": 20, "join": 12, "acceptance": {"rule": "judge"}},
    {"prompt": prompt(8), "tokens": 20, "join": 30, "acceptance": {"rule": "kl", "kl_tau": 3.0}},
    {"prompt": prompt(4), "tokens": 9, "join": 60, "acceptance": {"rule": "synthetic"}},
    {
        "prompt": prompt(6),
        "tokens": 20,
        "join": 61,
        "acceptance": {"rule": "typical"},
        "sampling": {"temperature": 1.2, "top_k": 30, "seed": 4},
        "max_draft_len": 2,
    },
    OPTIONS | {"join": 62, "sampling": {"logprobs": 3}, "acceptance": {"rule": "none"}},
    OPTIONS | {"join": 62, "sampling": {"logprobs": 3}},
    OPTIONS
    | {
        **{"join": 63, "sampling": {"temperature": 0.8, "min_p": 0.05, "seed": 3, "logprobs": 0}},
        "acceptance": {"rule": "rejection"},
    },
]


@pytest.fixture(scope="module")
def in_process(models: Models) -> list[dict[str, Any]]:
    pipeline = load_pipeline(load_deployment(models.deployment(1, 1)))
    assert pipeline.ranks is None
    return run(pipeline, MIXED)


@pytest.mark.parametrize(("draft_tp", "target_tp"), [(1, 1), (1, 2), (2, 3), (0, 1), (0, 2)])
def test_ranks_give_what_one_process_gives(
    models: Models, in_process: list[dict[str, Any]], draft_tp: int, target_tp: int
) -> None:
    """Tokens, provenance, scores and records are equal; caches are checked after every round."""
    config = models.deployment(draft_tp, target_tp)
    with World(config, draft_tp + target_tp, models.requests("mixed", MIXED)) as world:
        results = world.results()
        world.ends_clean()
    for got, wanted in zip(results, in_process, strict=True):
        scores = [pytest.approx(s, abs=1e-5) if s is not None else None for s in wanted["scores"]]
        logprobs = pytest.approx(wanted["logprobs"], abs=1e-4)
        assert got == wanted | {"scores": scores, "logprobs": logprobs}
    alone, strict, sampled = results[-3:]  # with all options
    assert (strict["ids"], strict["top"]) == (alone["ids"], alone["top"])
    assert len(strict["top"]) == len(strict["ids"]) and len(strict["top"][0]) == 3
    assert len(sampled["logprobs"]) == len(sampled["ids"])
    assert results[0]["ids"] == results[2]["ids"]  # strict is the target's own
    assert results[3]["reason"] == "cancelled"
    # The comparison is meaningful only if drafts were accepted, refused and judged.
    records = [r["record"] for r in results]
    assert sum(r["num_accepted_draft_tokens"] for r in records) > 50
    assert sum(r["num_draft_tokens"] - r["num_accepted_draft_tokens"] for r in records) > 20
    assert sum(r["num_judged_tokens"] for r in records) > 5


@pytest.fixture
def endless(models: Models) -> Path:
    """A file with one request that is repeated without end."""
    return models.requests("endless", [{"prompt": prompt(5), "tokens": 100, "repeat": True}])


def test_a_killed_rank_ends_the_job(models: Models, endless: Path) -> None:
    with World(models.deployment(1, 2), 3, endless) as world:
        os.kill(world.pids()[3], signal.SIGKILL)
        assert world.wait(20) != 0
        world.ends_clean()


@pytest.mark.parametrize(
    ("draft_tp", "rank", "role"),
    [(1, 1, "draft"), (1, 2, "target 1 of 2"), (0, 1, "draft and target 1 of 2")],
)
def test_a_rank_that_stalls_ends_the_job_by_name(
    models: Models, endless: Path, draft_tp: int, rank: int, role: str
) -> None:
    config = models.deployment(draft_tp, 2, ranks={"timeout_s": TIMEOUT_S}, name="stall")
    with World(config, draft_tp + 2, endless) as world:
        os.kill(world.pids()[rank], signal.SIGSTOP)
        assert world.wait(TIMEOUT_S + 20) == 1
        world.ends_clean()
    host = os.uname().nodename
    last = "round request" if not draft_tp else {1: "propose", 2: "verify"}[rank]
    named = (
        rf"rank {rank} \({role}\) on host {host}, last message: ({last}|check integrity) \d+ sent"
    )
    assert re.search(f"judge-decoding: ending the job: .*{named}", world.err), world.err


def test_a_rank_that_cannot_load_says_why(models: Models, tmp_path: Path, endless: Path) -> None:
    """The leader finds no error in the folder, since only the rank needs this tensor."""
    broken = shutil.copytree(models.draft, tmp_path / "draft")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors")
    config = models.deployment(1, 1, draft={"model": str(broken)}, name="b", max_draft_len=3)
    with World(config, 2, endless) as world:
        assert world.wait() == 2
        world.ends_clean()
    assert "Traceback" not in world.err
    assert re.search(
        rf"rank 1 \(draft\) on host \S+ failed: model: {broken} has no tensor model.norm.weight",
        world.err,
    ), world.err


def test_ranks_that_disagree_end_the_job(models: Models, endless: Path) -> None:
    module = "tests.rank_scripts.lying_worker"
    with World(models.deployment(1, 2), 3, endless, worker_module=module) as world:
        assert world.wait() == 1
        world.ends_clean()
    assert re.search("the ranks of one model disagree: verdicts .* of rank 3", world.err)


def test_a_rank_with_another_deployment_is_refused(models: Models, endless: Path) -> None:
    limits = {"max_sequences": 2, "max_context": 160, "prefill_chunk": 16}
    other = models.deployment(1, 1, limits=limits)
    with World(models.deployment(1, 1), 2, endless, worker_config=other) as world:
        assert world.wait() == 2
        world.ends_clean()
    assert "reads another deployment" in world.err


def test_a_world_of_another_size_is_refused(models: Models, endless: Path) -> None:
    with World(models.deployment(1, 2), 2, endless) as world:
        assert world.wait() != 0  # 2, or the code that mpiexec makes of the others' end
        world.ends_clean()
    assert re.search(
        r"the MPI world has 3 ranks, the deployment needs 4: 1 leader \+ 1 draft \+ 2 target; "
        r"start it as `mpiexec -n 1 LEADER : -n 3 \S+ -m judge_decoding.ranks.launch",
        world.err,
    ), world.err


def test_a_leader_that_cannot_start_takes_the_ranks_along(models: Models, endless: Path) -> None:
    config = models.deployment(1, 1, judge={"path": "/nowhere/judge"}, name="judge", engine="torch")
    with World(config, 2, endless) as world:
        assert world.wait() != 0
        world.ends_clean()
    assert "judge-decoding: judge: no file /nowhere/judge" in world.err


def test_idle_ranks_cost_almost_nothing(models: Models) -> None:
    """The minimum of three periods, since other tests' load only makes a wake-up more expensive."""
    waiting = models.requests("idle", [{"prompt": prompt(3), "tokens": 4, "idle_s": 2.0}])
    with World(models.deployment(1, 1), 2, waiting) as world:
        spells = world.results()[0]["idle_cpu"]
    assert all(sorted(shares) == ["1", "2"] for shares in spells)
    least = {rank: min(shares[rank] for shares in spells) for rank in ("1", "2")}
    assert max(least.values()) < 0.05, spells


def test_what_the_ranks_cannot_do_is_refused(models: Models) -> None:
    devices = {"draft": {"tp": 1, "devices": [1]}}
    config = load_deployment(models.deployment(1, 1, ranks=devices, name="gpu"))
    with pytest.raises(UserError, match=r"ranks.draft.devices: \[1\], but .* run on the CPU"):
        Layout.of(config)
    shard = Checkpoint(models.target).config
    with pytest.raises(UserError, match="tp 4 is more than the model's 3 key-value heads"):
        Shard.of(shard, 3, 4)


def test_a_colocated_draft_has_no_rank_of_its_own() -> None:
    layout = Layout(1, 2, colocated=True)
    assert (layout.size, layout.draft, layout.target) == (3, range(1, 2), range(1, 3))
    first, second = layout.place(1), layout.place(2)
    assert str(first) == "rank 1 (draft and target 1 of 2)"
    assert str(second) == "rank 2 (target 2 of 2)"
    assert (first.models, second.models) == (("draft", "target"), ("target",))
    with pytest.raises(UserError, match=r"the deployment needs 3: 1 leader \+ 2 target; start it"):
        layout.check_world(4)


def test_the_demo_target_on_two_ranks_writes_what_it_writes_on_one(tmp_path: Path) -> None:
    """SmolLM2-135M in fp32: nine heads over three key heads, so 6 + 3 heads on the ranks."""
    base = load_deployment(CONFIG).override(dtype="float32")
    pipeline = load_pipeline(base)
    asked: dict[str, Any] = {
        "prompt": pipeline.tokenizer.chat([{"role": "user", "content": "Name three metals."}]),
        "tokens": 24,
    }
    own = run(pipeline, [asked | {"acceptance": {"rule": "none"}}])[0]["ids"]
    config = tmp_path / "demo.yaml"
    values = base.model_dump(mode="json") | {"ranks": {"target": {"tp": 2}}}
    config.write_text(yaml.safe_dump(values))
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps([asked]))
    with World(config, 3, requests) as world:
        result = world.results()[0]
    assert result["ids"] == own
    assert result["record"]["num_accepted_draft_tokens"] > 0
