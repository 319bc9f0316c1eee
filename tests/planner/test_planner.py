"""The planner: published speeds, memory by hand, the acceptance model, the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from judge_decoding.commands.main import app
from judge_decoding.commands.options import DEMO
from judge_decoding.config import Deployment, ModelConfig, load_deployment, shipped
from judge_decoding.errors import UserError
from judge_decoding.planner.gpus import GPUS, Gpu, allreduce_s
from judge_decoding.planner.plan import LONGEST, AssumedAcceptance, Plan, acceptances
from judge_decoding.planner.roofline import Pass, Placed, judge_time, pass_time
from judge_decoding.planner.shapes import SHAPES, ModelShape, shape_of

LLAMA = shipped("configs/llama-8b-70b-h100x2.yaml")


@pytest.mark.parametrize(
    ("shape", "gpu", "tp", "weight_bytes", "published"),
    [
        ("llama-3.1-8b", "h100", 1, 2, 158.3),
        ("llama-3.3-70b", "h200", 1, 1, 51.1),
        ("llama-3.1-405b", "h200", 4, 1, 33.5),
        ("llama-3.1-70b", "h200", 8, 1, 179.0),
        ("llama-3.1-405b", "h200", 8, 1, 57.0),
    ],
)
def test_published_speeds_without_speculation(
    shape: str, gpu: str, tp: int, weight_bytes: int, published: float
) -> None:
    """Batch 1 with one set of constants; planning.md has sources and what is not reproduced."""
    ours = 1 / pass_time(Placed(SHAPES[shape], GPUS[gpu], tp, weight_bytes)).total
    assert ours == pytest.approx(published, rel=0.2)


def test_nothing_is_faster_than_memory() -> None:
    """70B in FP8 on one H200: 68 tok/s even at its full bandwidth."""
    model = Placed(SHAPES["llama-3.1-70b"], GPUS["h200"], 1, 1)
    roof = GPUS["h200"].bandwidth / model.streamed_bytes
    assert roof == pytest.approx(68, rel=0.01)
    assert 1 / pass_time(model).total < 0.8 * roof


SMALL = ModelShape(layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=2, vocab=32)
"""Parameters per layer: 2 * 8 * 2 * (4 + 2) + 3 * 8 * 16 = 192 + 384; of the head: 256."""
SLOW = Gpu(memory=1e6, bandwidth=1000.0, bf16=1000.0, fp8=2000.0, nvlink=500.0)


def test_a_pass_by_hand_that_is_bound_by_arithmetic() -> None:
    """3 tokens of each of 5 texts on one GPU in bf16, with every term."""
    one = pass_time(Placed(SMALL, SLOW), rows=3, sequences=5, context=7)
    weights = (2 * 576 + 256) * 2
    cache = 5 * 7 * (2 * 2 * 2 * 2 * 2)  # keys and values, layers, heads, their size, bytes
    assert one.memory == pytest.approx((weights + cache) / (1000.0 * 0.8))
    assert one.compute == pytest.approx(2 * 15 * (2 * 576 + 256) / (1000.0 * 0.5))
    assert one.allreduce == 0.0
    assert one.overhead == pytest.approx(2 * 10e-6 + 300e-6)
    assert one.total == one.compute + one.overhead
    assert one.bound == "arithmetic"


def test_a_pass_by_hand_on_two_gpus_in_fp8() -> None:
    """Half of the arithmetic at the FP8 rate; two all-reduces per layer send all rows in bf16."""
    model = Placed(SMALL, SLOW, tp=2, weight_bytes=1, kv_element_bytes=1)
    two = pass_time(model, rows=3, sequences=5, context=7)
    assert model.streamed_bytes == (2 * 576 + 256 * 2) / 2
    assert model.held_bytes == model.streamed_bytes + 256 * 2
    assert model.token_bytes == 2 * 2 * 1 * 2
    assert two.memory == pytest.approx((model.streamed_bytes + 35 * 8) / 800.0)
    assert two.compute == pytest.approx(2 * 15 * (2 * 576 + 256) / 2 / (2000.0 * 0.5))
    message = 15 * 8 * 2
    transfer = 2 * (2 - 1) / 2 * message / (500.0 * 0.8)
    assert two.allreduce == pytest.approx(2 * 2 * (8e-6 + transfer))
    assert two.total == pytest.approx(max(two.memory, two.compute) + two.allreduce + two.overhead)
    assert two.bound == "arithmetic"
    across = pass_time(Placed(SMALL, SLOW, 2, 1, 1, nodes=2), rows=3, sequences=5, context=7)
    assert across.allreduce - two.allreduce == pytest.approx(2 * 2 * (50e-6 - 8e-6))


def test_four_gpus_send_one_and_a_half_messages() -> None:
    """A ring of n ranks sends 2 (n - 1) / n messages. Two KV heads on four ranks are copied."""
    model = Placed(SMALL, SLOW, tp=4)
    four = pass_time(model)
    assert four.allreduce == pytest.approx(2 * 2 * (10e-6 + 1.5 * 8 * 2 / 400.0))
    assert four.compute == pytest.approx(2 * (2 * (2 * 8 * 2 * 8 + 384) + 256) / 4 / 500.0)
    assert four.memory == pytest.approx((model.streamed_bytes + 1024 * model.token_bytes) / 800.0)
    assert model.token_bytes == 2 * 2 * 1 * 2 * 2


@pytest.mark.parametrize(
    ("terms", "bound", "total"),
    [
        ((3.0, 2.0, 1.0, 0.5), "memory bandwidth", 4.5),
        ((2.0, 3.0, 1.0, 0.5), "arithmetic", 4.5),
        ((2.0, 1.0, 3.0, 0.5), "all-reduce", 5.5),
        ((2.0, 1.0, 0.5, 3.0), "launch and scheduling", 5.5),
    ],
)
def test_a_pass_is_bound_by_its_largest_term(
    terms: tuple[float, float, float, float], bound: str, total: float
) -> None:
    assert (Pass(*terms).bound, Pass(*terms).total) == (bound, total)


def test_the_judges_time_by_hand() -> None:
    """9 rows of float32 logits read and written, 9 bf16 hidden states read, two kernels."""
    expected = 9 * (2 * 4 * 32 + 2 * 8) / 800.0 + 2 * 10e-6
    assert judge_time(Placed(SMALL, SLOW), 9) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554),
        ("llama-3.1-405b", 405.853),
    ],
)
def test_shapes_have_the_published_numbers_of_parameters(name: str, billions: float) -> None:
    shape = SHAPES[name]
    embeddings = 1 if name.startswith("llama-3.2") else 2  # 1B and 3B tie them
    total = shape.layer_parameters() + embeddings * shape.head_parameters
    assert total / 1e9 == pytest.approx(billions, rel=5e-4)


def test_ranks_that_outnumber_the_kv_heads_hold_copies() -> None:
    shape = SHAPES["llama-3.1-405b"]
    assert shape.layer_parameters(8) == shape.layer_parameters()
    # k and v of the 8 heads once more, in each of 126 layers
    copies = 126 * 2 * 16384 * 128 * 8
    assert shape.layer_parameters(16) == shape.layer_parameters() + copies


def test_cache_bytes_by_hand() -> None:
    shape = SHAPES["llama-3.1-70b"]
    assert shape.kv_bytes(2) == 2 * 80 * 8 * 128 * 2 == 327_680
    assert shape.kv_bytes(1, tp=4) == 327_680 / 8
    assert shape.kv_bytes(2, tp=16) == shape.kv_bytes(2, tp=8)  # a rank holds a whole KV head


def test_a_folder_is_read_and_a_name_stands_in(tiny_target: Path, tmp_path: Path) -> None:
    known = shape_of(ModelConfig(model=tmp_path / "none", shape="llama-3.1-8b"))
    assert known == SHAPES["llama-3.1-8b"]
    read = shape_of(ModelConfig(model=tiny_target, shape="llama-3.1-8b"))
    assert read == ModelShape(2, 64, 96, 4, 2, 16, 256)
    with pytest.raises(UserError, match=r"unknown shape 'llama-4'; known are llama-3.2-1b"):
        shape_of(ModelConfig(model=tmp_path / "none", shape="llama-4"))
    with pytest.raises(UserError, match=r"no .*/none/config.json; give its `shape`"):
        shape_of(ModelConfig(model=tmp_path / "none"))


# The acceptance model.


@given(st.integers(1, 64), st.floats(0.0, 1.0))
def test_the_rate_gives_back_its_length(draft_len: int, share: float) -> None:
    length = 1 + share * draft_len
    acceptance = AssumedAcceptance("", length, draft_len)
    assert acceptance.at(draft_len) == pytest.approx(length, abs=1e-6)
    assert 0 <= acceptance.rate <= 1
    lengths = [acceptance.at(k) for k in range(65)]
    assert lengths[0] == 1
    assert all(a <= b <= a + 1 for a, b in itertools.pairwise(lengths))


def test_the_geometric_model_by_hand() -> None:
    """a = 1/2: 1 + 1/2 + 1/4 = 1.75 at k = 2, 1.875 at k = 3."""
    acceptance = AssumedAcceptance("", 1.75, 2)
    assert acceptance.rate == pytest.approx(0.5)
    assert acceptance.at(3) == pytest.approx(1.875)


# A deployment.


def deployment(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "test",
        "engine": "trtllm",
        "target": {"model": "target", "shape": "llama-3.1-70b"},
        "draft": {"model": "draft", "shape": "llama-3.1-8b"},
        "judge": {"path": "judge.safetensors"},
        "acceptance": {"rule": "judge"},
        "max_draft_len": 25,
        "limits": {"max_sequences": 4, "max_context": 8192},
        "ranks": {"draft": {"devices": [0]}, "target": {"tp": 2, "devices": [1, 2]}},
        "trtllm": {"engines": "engines", "gpu": "h100", "target": {"quantization": "fp8"}},
    }
    for key, value in changes.items():
        values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
    return values


def planned(
    tmp_path: Path, gpu: str = "h100", *, sequences: int = 1, context: int = 1024, **changes: Any
) -> Plan:
    values = deployment(tmp_path, **changes)
    model = Deployment.model_validate(values, context={"folder": tmp_path})
    return Plan(model, gpu, sequences=sequences, context=context)


def test_memory_by_hand(tmp_path: Path) -> None:
    """8B in bf16: 16.06 GB on GPU 0. 70B in FP8 over two GPUs: 68.45 GB of layers and a head of
    2.10 in halves, and an embedding of 2.10 on each."""
    memory = planned(tmp_path).memory()
    assert set(memory) == {"draft", "target"}
    assert memory["draft"].weights["draft"] / 1e9 == pytest.approx(16.06, abs=0.01)
    expected = (68.45 + 2.10) / 2 + 2.10
    assert memory["target"].weights["target"] / 1e9 == pytest.approx(expected, abs=0.01)
    target = memory["target"]
    free = 80e9 - target.weights["target"] - target.activations["target"]
    assert target.caches["target"] == pytest.approx(0.9 * free)
    one = 8192 * 327_680 / 2
    assert target.full_sequences == int(0.9 * free // one)
    assert target.fits


def test_what_does_not_fit_says_by_how_much(tmp_path: Path) -> None:
    """70B in bf16 on two H100: 69.5 + 2.1 GB of weights leave 8.4 GB less what a pass needs."""
    bf16 = {"trtllm": {"target": {"quantization": "none"}}}
    fits = planned(tmp_path, **bf16).memory()["target"]
    assert fits.fits
    assert fits.full_sequences < 4
    one_gpu = {"ranks": {"draft": {"devices": [1]}, "target": {"tp": 1, "devices": [0]}}}
    not_fits = planned(tmp_path, **bf16, **one_gpu).memory()["target"]
    assert not not_fits.fits
    short = not_fits.weights["target"] + not_fits.activations["target"] - 80e9
    assert not_fits.missing == pytest.approx(short + 8192 * 327_680)
    assert not_fits.caches["target"] == 0


def test_shared_gpus_hold_both_in_order_of_loading(tmp_path: Path) -> None:
    shared = {
        "ranks": {"draft": {"devices": [0]}, "target": {"tp": 2, "devices": [0, 1]}},
        "trtllm": {
            "shared_gpus": True,
            "draft": {"kv_cache_free_gpu_memory_fraction": 0.25},
            "target": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
        },
    }
    memory = planned(tmp_path, **shared).memory()
    assert set(memory) == {"shared", "target"}
    m = memory["shared"]
    draft = 80e9 - m.weights["draft"] - m.activations["draft"]
    assert m.caches["draft"] == pytest.approx(0.25 * draft)
    rest = 0.75 * draft - m.weights["target"] - m.activations["target"]
    assert m.caches["target"] == pytest.approx(0.9 * rest)


def test_a_round_adds_up_and_the_best_length_is_the_fastest(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    judge = AssumedAcceptance("judge", 20.7, 25)
    r = plan.round(judge, 25)
    assert r.total == pytest.approx(r.propose + r.verify.total + r.judge + r.host)
    assert r.tokens_per_s == pytest.approx(20.7 / r.total)
    assert r.propose == pytest.approx(25 * plan.round(judge, 1).propose)
    assert r.dominant == "draft loop"  # anchors: at judge-level acceptance it is
    speeds = {k: plan.round(judge, k).tokens_per_s for k in range(1, LONGEST + 1)}
    assert plan.best(judge).draft_len == max(speeds, key=lambda k: speeds[k])
    standard = AssumedAcceptance("standard", 7.3, 25)
    assert plan.best(standard).draft_len < plan.best(judge).draft_len


def test_many_rows_are_bound_by_arithmetic(tmp_path: Path) -> None:
    few = planned(tmp_path).round(AssumedAcceptance("", 5.0, 25), 25)
    wide = {"limits": {"max_sequences": 32}, "trtllm": {"max_num_tokens": 65536}}
    many = planned(tmp_path, sequences=32, **wide).round(AssumedAcceptance("", 5.0, 25), 25)
    assert few.verify.bound == "memory bandwidth"
    assert many.verify.bound == "arithmetic"
    assert many.verify.total > few.verify.total


def test_no_judge_costs_no_judge(tmp_path: Path) -> None:
    strict = planned(tmp_path, acceptance={"rule": "strict"})
    assert strict.round(AssumedAcceptance("", 5.0, 25), 8).judge == 0


def test_all_reduces_cost_more_on_more_gpus_and_most_across_nodes() -> None:
    latencies = [allreduce_s(tp) for tp in (1, 2, 4, 8, 16)]
    assert latencies == sorted(latencies)
    assert latencies[0] == 0
    assert allreduce_s(3) == allreduce_s(4)
    assert allreduce_s(8, nodes=2) == allreduce_s(16)


def test_gpus_of_two_nodes_are_counted_by_their_numbers(tmp_path: Path) -> None:
    """GPUs 4 to 11 lie on two nodes of 8, which the size of the group does not show."""
    judge = AssumedAcceptance("", 5.0, 25)
    trtllm = {"mode": "leader", "target": {"quantization": "fp8"}}
    one, two = (
        planned(
            tmp_path,
            trtllm=trtllm,
            ranks={"draft": {"devices": [16]}, "target": {"tp": 8, "devices": devices}},
        ).round(judge, 25)
        for devices in (list(range(8)), list(range(4, 12)))
    )
    layers = 2 * SHAPES["llama-3.1-70b"].layers
    more = two.verify.allreduce - one.verify.allreduce
    assert more == pytest.approx(layers * (allreduce_s(8, 2) - allreduce_s(8)))


def test_whole_texts_count_against_a_pass(tmp_path: Path) -> None:
    """With 1,024 tokens and 25 drafted ones, 7 fit in 8,192, so 16 need three passes of 6."""
    five, limits = AssumedAcceptance("", 5.0, 25), {"limits": {"max_sequences": 16}}
    plan = planned(tmp_path, sequences=16, **limits)
    r = plan.round(five, 25)
    assert (plan.passes(25), r.passes) == (3, 3)
    together = {"trtllm": {"max_num_tokens": 32768}}
    wide = planned(tmp_path, sequences=16, **limits, **together).round(five, 25)
    six = planned(tmp_path, sequences=6, **limits).round(five, 25)
    assert (wide.passes, six.passes) == (1, 1)
    assert r.verify_s == 3 * r.verify.total == 3 * six.verify.total
    assert r.propose == pytest.approx(wide.propose * 27 / 25)
    assert planned(tmp_path, context=8192).passes(25) == 1  # a pass always takes one


def test_the_schedule_says_the_configured_draft_length(tmp_path: Path) -> None:
    changes = {"limits": {"max_sequences": 16}, "draft_len_schedule": {2: 25, 8: 12}}
    found = [planned(tmp_path, sequences=n, **changes).configured for n in (1, 2, 3, 8, 9)]
    assert found == [25, 25, 12, 12, 0]
    none = planned(tmp_path, sequences=9, **changes).round(AssumedAcceptance("", 5.0, 25), 0)
    assert (none.propose, none.length) == (0, 1)


def test_lengths_are_the_papers_or_the_given_at_the_files_draft_length(tmp_path: Path) -> None:
    model = planned(tmp_path, max_draft_len=8).deployment
    assert [(a.length, a.draft_len) for a in acceptances(model, [])] == [(7.3, 25), (20.7, 25)]
    assert [(a.length, a.draft_len) for a in acceptances(model, [4.5, 9])] == [(4.5, 8), (9, 8)]
    with pytest.raises(UserError, match=r"acceptance-length: 9.5 is not in 1..9"):
        acceptances(model, [9.5])


# The command.


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_command_prints_a_table_and_a_document(tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text(yaml.safe_dump(deployment(tmp_path)))
    result = command("--config", str(file), "--acceptance-length", "12", "--gpu", "h100", "--json")
    assert result.exit_code == 0
    assert "H100 (trtllm.gpu)" in result.stdout
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["deployment"] == "test"
    h100 = found["gpus"]["h100"]
    assert h100["fits"]
    (r,) = h100["rounds"]
    assert r["configured"]["draft_len"] == 25
    assert r["configured"]["mean_acceptance_length"] == pytest.approx(12)
    assert r["best"]["tokens_per_s"] >= r["configured"]["tokens_per_s"]
    everything = json.loads(
        command("--config", str(file), "--all-gpus", "--json").stdout.splitlines()[-1]
    )
    assert everything["context"] == 1024
    file.write_text(yaml.safe_dump(deployment(tmp_path, limits={"max_context": 512})))
    short = json.loads(command("--config", str(file), "--json").stdout.splitlines()[-1])
    assert short["context"] == 512  # the default is no reason to refuse it
    assert set(everything["gpus"]) == {"h100", "h200", "b200"}
    assert set(short["gpus"]) == {"h100"}  # the file's trtllm.gpu


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", str(DEMO)], "runs engine torch, plans are for engine trtllm"),
        (["--config", "none.yaml"], "no file none.yaml"),
        (["--config", str(DEMO), "--gpu", "a100"], "gpu: unknown 'a100'; known are h100"),
        (["--config", str(LLAMA), "--gpu", "h100", "--all-gpus"], "leave --gpu out"),
        (["--config", str(DEMO), "--sequences", "0"], "sequences"),
        (
            ["--config", str(LLAMA), "--sequences", "33"],
            "33 is above the deployment's limits",
        ),
        (
            ["--config", str(LLAMA), "--context", "9000"],
            "9000 is above the deployment's limits",
        ),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], message: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_every_shipped_gpu_config_has_a_plan() -> None:
    files = sorted(shipped("configs").glob("llama-*.yaml"))
    assert files
    for file in files:
        loaded = load_deployment(file)
        assert loaded.trtllm is not None
        memory = Plan(loaded, loaded.trtllm.gpu).memory()
        assert all(m.fits for m in memory.values()), file.name
