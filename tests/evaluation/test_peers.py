"""Peers of the benchmark: files written for them, what they read, and those that cannot run."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import perturb, write_deployment, write_llama, write_tokenizer
from safetensors.torch import load_file

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import load_deployment
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.evaluation import bench
from judge_decoding.evaluation.bench_rows import ratios, summarize
from judge_decoding.evaluation.bench_system import (
    BenchAnswer,
    NotMeasured,
    ReadBytes,
    RuleSystem,
)
from judge_decoding.evaluation.draft_length import best_draft_len
from judge_decoding.evaluation.peers.child import ChildPeer
from judge_decoding.evaluation.peers.gguf_models import GgufModels
from judge_decoding.evaluation.peers.hugging_face import transformers_model
from judge_decoding.evaluation.peers.llamacpp import rounds_of
from judge_decoding.evaluation.peers.write_gguf import write_gguf
from judge_decoding.evaluation.read_bytes import ReadProbe, gguf_bytes, model_bytes, module_bytes
from judge_decoding.pipeline import Pipeline, load_pipeline

LAYERS = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
NORMS = 5 * 64
HEAD = 256 * 64


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that any program can run, its draft, and a deployment of both."""
    folder = tmp_path_factory.mktemp("plain")
    target = write_llama(folder / "target")
    write_tokenizer(target)
    draft = perturb(target, folder / "draft", noise=0.05)
    write_deployment(folder, target, draft)
    return folder


@pytest.fixture(scope="module")
def pipeline(plain: Path) -> Pipeline:
    return load_pipeline(load_deployment(plain / "deployment.yaml"))


class Fixed:
    """A system with a set speed."""

    name = "fixed"
    reads = ReadBytes(target=3_000_000, draft=500_000)

    def __init__(self, draft_len: int | None, seconds: float = 1.0) -> None:
        self.draft_len = draft_len
        self.seconds = seconds

    def answer(self, prompt_ids: object, max_tokens: int) -> BenchAnswer:
        return BenchAnswer(self.seconds, [(self.seconds, max_tokens)], cut=True)


class Echo(Fixed):
    """Answers with what it was asked; refuses an empty prompt, dies of token 0."""

    def answer(self, prompt_ids: object, max_tokens: int) -> BenchAnswer:
        if not prompt_ids:
            raise ValueError("an empty\nprompt")
        if prompt_ids == [0]:
            os._exit(9)
        text = f"{prompt_ids} {max_tokens} {self.draft_len}"
        return BenchAnswer(self.seconds, [(self.seconds, max_tokens)], cut=True, text=text)


def test_a_peer_in_a_process_of_its_own() -> None:
    peer = ChildPeer(Echo, 3, seconds=0.5)
    assert (peer.name, peer.draft_len, peer.reads) == ("fixed", 3, Fixed.reads)
    other = peer.with_draft_len(2)
    assert peer.answer((5, 6), 7).text == "[5, 6] 7 3"
    assert other.answer([5], 8) == BenchAnswer(0.5, [(0.5, 8)], cut=True, text="[5] 8 2")
    with pytest.raises(NotMeasured, match="its process died"):
        peer.answer([0], 1)
    with pytest.raises(NotMeasured, match=r"^an empty prompt$"):
        ChildPeer(Echo, None).answer([], 1)


def test_a_folder_written_as_gguf_is_read_back_bit_by_bit(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="in the build extra")
    from transformers import AutoModelForCausalLM

    target = Checkpoint(plain / "target")
    path = write_gguf(tmp_path / "model.gguf", target, "F32", target=target)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    read, wrote = model.state_dict(), load_file(plain / "target" / "model.safetensors")
    assert read.keys() == wrote.keys()
    assert all(torch.equal(read[name], wrote[name]) for name in wrote)
    assert gguf_bytes(path) == 4 * (LAYERS + NORMS + HEAD)  # the embeddings are not read


def test_a_draft_takes_what_it_shares_and_rotary_scaling_is_refused(
    plain: Path, tiny_target: Path, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="in the build extra")
    from safetensors.torch import save_file

    shared = "model.embed_tokens.weight"
    own = load_file(plain / "draft" / "model.safetensors")
    ids = {"draft_vocab_ids": torch.arange(8, dtype=torch.int32)}
    draft = tmp_path / "draft"
    draft.mkdir()
    save_file({n: t for n, t in own.items() if n != shared} | ids, draft / "model.safetensors")
    config = (plain / "draft" / "config.json").read_text()
    (draft / "config.json").write_text(
        config.replace("{", f'{{"shared_with_target": ["{shared}"],', 1)
    )
    target = Checkpoint(plain / "target")
    path = write_gguf(tmp_path / "draft.gguf", Checkpoint(draft), "Q8_0", target=target)
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert len(stored) == 21 and stored["blk.1.ffn_up.weight"].tensor_type.name == "Q8_0"
    embedding = target.tensors.get(shared).float().numpy()
    quantized = gguf.quants.quantize(embedding, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(stored["token_embd.weight"].data, quantized)
    scaled = Checkpoint(tiny_target)
    with pytest.raises(NotMeasured, match="has rotary scaling"):
        write_gguf(tmp_path / "scaled.gguf", scaled, "F32", target=scaled)


def test_biases_are_not_lost_on_the_way_to_a_peer(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model", model_type="qwen2")
    checkpoint = Checkpoint(folder)
    with pytest.raises(NotMeasured, match="has biases, which are not written to GGUF here"):
        write_gguf(tmp_path / "model.gguf", checkpoint, "F32", target=checkpoint)
    state = transformers_model(folder, torch.float32, {}).state_dict()
    assert sum(name.endswith(".bias") for name in state) == 6  # q, k and v of two layers
    for name in checkpoint.tensors.names():
        assert torch.equal(state[name], checkpoint.tensors.get(name)), name


def test_files_that_are_no_gguf_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGML" + bytes(40))
    with pytest.raises(ValueError, match=r"model\.gguf is not a GGUF file"):
        gguf_bytes(path)
    path.write_bytes(b"GGUF\x01" + bytes(40))
    with pytest.raises(ValueError, match="is GGUF version 1"):
        gguf_bytes(path)


def test_the_bytes_of_a_pass_are_layers_norms_and_head(plain: Path, pipeline: Pipeline) -> None:
    from transformers import LlamaForCausalLM

    # The engine keeps each norm's weight twice.
    assert model_bytes(pipeline.engines.target) == 4 * (LAYERS + 2 * NORMS + HEAD)
    assert model_bytes(None) == 0 and model_bytes(object()) is None
    model = LlamaForCausalLM.from_pretrained(plain / "target")
    assert module_bytes(model) == 4 * (LAYERS + NORMS + HEAD)
    model.lm_head.weight = model.model.embed_tokens.weight
    assert module_bytes(model) == 4 * (LAYERS + NORMS + HEAD)
    probe = ReadProbe(1 << 20)
    probe.sample()
    probe.sample()
    figures = probe.figures()
    assert 0 < figures["slowest"] <= figures["read_gb_per_s"] <= figures["fastest"]


def test_a_row_counts_reads_ends_and_equal_texts() -> None:
    answers = [
        BenchAnswer(1.0, [(0.6, 1), (0.2, 3), (0.2, 4)], cut=True, drafted=6, text="a"),
        BenchAnswer(0.5, [(0.4, 1), (0.1, 3)], cut=False, drafted=4, text="b"),
    ]
    alone = [BenchAnswer(1, [], True, text="a"), BenchAnswer(1, [], True, text="c")]
    row = summarize(Fixed(2), answers, bandwidth=48.0, alone=alone)
    assert (row["tokens_per_answer"], row["cut_answers"], row["same_as_none"]) == (6.0, 1, 0.5)
    # Two draft passes a round: 4 MB; three later rounds of 1/6 s on average.
    assert row["weight_gb_per_s"] == pytest.approx(0.004 * 6)
    assert row["bandwidth_share"] == pytest.approx(0.024 / 48)
    assert row["ms_per_round_p50"] == pytest.approx(200)
    averaged = [BenchAnswer(1.0, [(0.6, 1), (0.4, 3)], cut=True, drafted=None, each=False)]
    row = summarize(Fixed(2), averaged, bandwidth=48.0)
    unknown = ("ms_per_round_p50", "ms_per_round_p90", "weight_gb_per_s", "same_as_none")
    assert [row[key] for key in unknown] == [None] * 4
    rows = [{"name": n, "tokens_per_s": s} for n, s in (("judge", 3.0), ("llamacpp", 2.0))]
    assert ratios(rows) == {"judge_vs_llamacpp": 1.5}


def test_llama_cpps_totals_become_rounds() -> None:
    timings = {"prompt_ms": 500.0, "predicted_ms": 800.0, "predicted_n": 10, "draft_n_accepted": 5}
    rounds = rounds_of(timings)
    assert rounds == [(0.5, 1), (0.2, 2), (0.2, 2), (0.2, 2), (0.2, 3)]
    assert rounds_of({"prompt_ms": 500.0, "predicted_ms": 0.1, "predicted_n": 1}) == [(0.5, 1)]


def test_the_fastest_draft_length_is_taken() -> None:
    seconds = {1: 0.5, 2: 0.25, 4: 1.0}
    best, speeds = best_draft_len(lambda k: Fixed(k, seconds[k]), [[1], [2]], 10, [1, 2, 4])
    assert best.draft_len == 2 and speeds == {1: 20.0, 2: 40.0, 4: 10.0}


def test_an_own_draft_length_goes_past_the_deployments_schedule(pipeline: Pipeline) -> None:
    decoder = pipeline.decoder
    decoder.draft_len_schedule = {3: 1}
    try:
        own = RuleSystem(pipeline, Acceptance("strict"), name="own", draft_len=6)
        usual = RuleSystem(pipeline, Acceptance("strict"))
        long, short = own.answer([5, 6, 7], 24), usual.answer([5, 6, 7], 24)
        assert decoder.draft_len_schedule == {3: 1}
    finally:
        decoder.draft_len_schedule = {}
    assert long.text == short.text and long.drafted is not None and short.drafted is not None
    assert len(long.rounds) < len(short.rounds)
    assert long.drafted / len(long.rounds) > 4 and short.drafted / len(short.rounds) <= 1
    assert (own.name, own.draft_len, usual.name, usual.draft_len) == ("own", 6, "strict", 4)


def test_peers_that_cannot_run_are_reasons_in_the_report(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("xllamacpp", "openvino_genai", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    report = bench.run(
        pipeline, ["Hi"], rules=["none"], peers=["hf", "llamacpp-draft", "openvino"], max_tokens=4
    )
    assert [row["name"] for row in report["results"]] == ["none"]
    peers = "is not installed; pip install 'judge-decoding[peers]'"
    assert report["not_measured"] == {
        "hf": "transformers is not installed; pip install transformers",
        "llamacpp-draft": f"xllamacpp {peers}",
        "openvino": f"openvino-genai {peers}",
    }


def test_a_gguf_target_goes_to_peers_as_its_own_file(plain: Path, tmp_path: Path) -> None:
    deployment = load_deployment(plain / "deployment.yaml")
    own = deployment.target.model_copy(update={"model": tmp_path / "own.gguf"})
    pair = deployment.model_copy(update={"target": own})
    assert GgufModels(pair, tmp_path).target == tmp_path / "own.gguf"
    bare = deployment.model_copy(update={"draft": None})
    with pytest.raises(NotMeasured, match="the deployment has none"):
        _ = GgufModels(bare, tmp_path).draft


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the peers extra")
def test_llama_cpp_writes_the_same_text(pipeline: Pipeline) -> None:
    report = bench.run(
        pipeline,
        ["Say one.", "Say two."],
        rules=["none"],
        peers=["llamacpp", "llamacpp-draft", "openvino"],
        max_tokens=12,
        tune=True,
    )
    # OpenVINO reads no float32 from a GGUF file; the wheel may be missing as well.
    assert list(report["not_measured"]) == ["openvino"]
    rows = {row["name"]: row for row in report["results"]}
    assert list(rows) == ["none", "strict-tuned", "llamacpp", "llamacpp-draft"]
    assert set(report["tuned"]) == {"strict-tuned", "llamacpp-draft"}
    assert {row["tokens"] for row in rows.values()} == {rows["none"]["tokens"]}
    assert rows["llamacpp"]["rounds"] == rows["none"]["rounds"]
    assert rows["llamacpp-draft"]["rounds"] < rows["llamacpp"]["rounds"]
    assert report["provenance"]["versions"]["xllamacpp"]
