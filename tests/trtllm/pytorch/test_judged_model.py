"""The judged model of the PyTorch backend, against a RECORDING FAKE of upstream's classes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import judge_decoding.trtllm.pytorch as package
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError
from judge_decoding.trtllm.manifest import judge_hash
from judge_decoding.trtllm.pytorch import compat
from judge_decoding.trtllm.pytorch.judged_target import JUDGE, JudgedTarget
from tests.fakes import trtllm_pytorch_fake as fake

V, H, END = 8, 8, 7
VERSIONS = {"two_model": "1.2.1", "one_model": "1.3.0rc24"}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Imports the model's module anew in every test, so that none is left that saw the fake."""
    yield
    for name in ("judge_decoding.trtllm.pytorch.model", "judge_llama"):
        sys.modules.pop(name, None)
    vars(package).pop("model", None)


def write_target(folder: Path, feature: str = "post_norm", **changes: Any) -> dict[str, Any]:
    """A prepared folder whose judge likes tokens 4, 5 and 6; the values of its config.json."""
    metadata = JudgeMetadata(
        feature=feature,
        hidden_size=H,
        target_fingerprint="f" * 16,
        tokenizer_hash="t" * 16,
        threshold=0.5,
        training_data_hash="d",
    )
    folder.mkdir(exist_ok=True)
    weight = torch.tensor([0.5] * 4 + [1.0] * 4)
    bias = -1.5  # right for states of 2 alone: after one layer behind the norm, after two before it
    Judge(weight, bias, metadata).save(folder / JUDGE)
    values = {
        "folder": folder,
        "judge": judge_hash(folder / JUDGE),
        "threshold": 0.5,
        "vocab_size": V,
        "hidden_size": H,
        "end_ids": (END,),
        "protect_end_ids": True,
        "max_draft_len": 3,
        "target_fingerprint": "f" * 16,
    }
    JudgedTarget.model_validate(values | changes).save()
    return {"vocab_size": V, "hidden_size": H, "judge_decoding": {"folder": str(folder)}}


def make(config: dict[str, Any], generation: str, mapping: Any = None, layers: int = 1) -> Any:
    """The registered class, made as upstream makes it; its greedy choice after token t is t - 1."""
    cls = fake.REGISTERED["JudgeLlamaForCausalLM"]
    pretrained = SimpleNamespace(num_hidden_layers=layers, **config)
    model_config = SimpleNamespace(pretrained_config=pretrained, mapping=mapping or fake.Mapping())
    model = cls(model_config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(V, H))
        model.lm_head.weight.copy_(torch.eye(V, H).roll(-1, 0))
    if generation == "one_model":
        model.spec_worker = lambda logits, attn_metadata: logits
    return model


def load(monkeypatch: pytest.MonkeyPatch, generation: str) -> None:
    fake.install(monkeypatch, VERSIONS[generation])
    import_module("judge_decoding.trtllm.pytorch.model")


BATCH = [2, 3, 1, 2, 1, 4, 6, 1, 3, 5, 6, 2]
"""Two prompts (2 3 1 and 2), then two requests: 1 with drafts 4 6 1, and 3 with drafts 5 6 2."""
LENGTHS = [3, 1, 4, 4]


@pytest.mark.parametrize("generation", VERSIONS)
@pytest.mark.parametrize("feature", ["post_norm", "pre_norm"])
def test_drafts_that_the_judge_likes_are_accepted_in_both_generations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, generation: str, feature: str
) -> None:
    """The stock model wants t - 1 after t. The first request's 4 and 6 are judged; after 6 the
    target says 5, not 1. In the second, 5 and 6 are judged and then it says 5, not 2."""
    load(monkeypatch, generation)
    layers = 2 if feature == "pre_norm" else 1
    model = make(write_target(tmp_path / "t", feature), generation, layers=layers)
    metadata = fake.AttentionMetadata(LENGTHS, 2)
    logits = fake.forward_step(model, torch.tensor(BATCH, dtype=torch.int32), metadata)
    drafts = torch.tensor([[4, 6, 1], [5, 6, 2]])
    assert fake.accept(logits, metadata, drafts) == [[0], [1], [4, 6, 5], [5, 6, 5]]


@pytest.mark.parametrize("generation", VERSIONS)
def test_padding_of_a_pass_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, generation: str
) -> None:
    load(monkeypatch, generation)
    model = make(write_target(tmp_path / "t"), generation)
    padded = torch.tensor([*BATCH, 0, 0, 0])
    exact, more = (fake.AttentionMetadata(LENGTHS, 2, size) for size in (None, len(padded)))
    assert torch.equal(
        fake.forward_step(model, padded, more),
        fake.forward_step(model, torch.tensor(BATCH), exact),
    )


def test_a_pass_without_drafts_is_the_stock_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load(monkeypatch, "two_model")
    model = make(write_target(tmp_path / "t"), "two_model")
    metadata = fake.AttentionMetadata([1, 1], 0)
    logits = model(attn_metadata=metadata, input_ids=torch.tensor([4, 6]))
    assert torch.equal(logits, 2 * torch.eye(V)[[3, 5]])


def test_a_pass_of_prompts_alone_is_the_stock_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load(monkeypatch, "one_model")
    model = make(write_target(tmp_path / "t"), "one_model")
    metadata = fake.AttentionMetadata([2, 2], 2)
    logits = fake.forward_step(model, torch.tensor([4, 6, 5, 6]), metadata)
    assert torch.equal(logits, 2 * torch.eye(V)[[5, 5]])


def test_rows_that_do_not_fit_the_version_stop_the_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A 1.3 that returned rows as 1.2 does would judge wrong tokens."""
    load(monkeypatch, "one_model")
    model = make(write_target(tmp_path / "t"), "two_model")
    with pytest.raises(RuntimeError, match=r"returned 12 rows .* 10 were expected"):
        fake.forward_step(model, torch.tensor(BATCH), fake.AttentionMetadata(LENGTHS, 2))


def test_the_judge_survives_upstreams_meta_initialisation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Upstream makes models on the meta device and fills them from the checkpoint, which has no
    judge: its buffers must hold their values and not ask the checkpoint for them."""
    load(monkeypatch, "two_model")
    config = write_target(tmp_path / "t")
    pretrained = SimpleNamespace(num_hidden_layers=1, **config)
    model_config = SimpleNamespace(pretrained_config=pretrained, mapping=fake.Mapping())
    with fake.MetaInitMode():
        model = fake.REGISTERED["JudgeLlamaForCausalLM"](model_config)
    assert model.lm_head.weight.is_meta
    assert model.logits_processor.weight.tolist() == [0.5] * 4 + [1.0] * 4
    assert model.logits_processor.end_ids.tolist() == [END]
    assert not [name for name in model.state_dict() if "logits_processor" in name]


def test_ranks_that_differ_in_one_bit_accept_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first defect of the TensorRT-LLM review: each rank judged its own copy of the state."""
    slots: dict[int, Tensor] = {}
    barrier = threading.Barrier(2, timeout=20)

    def allgather(input: Tensor, mapping: Any, dim: int = -1, sizes: Any = None) -> Tensor:
        slots[mapping.rank] = input
        barrier.wait()
        gathered = torch.cat([slots[0], slots[1]], dim=dim)
        barrier.wait()
        return gathered

    fake.install(monkeypatch, "1.2.1", allgather=allgather)
    import_module("judge_decoding.trtllm.pytorch.model")
    config = write_target(tmp_path / "t")
    accepted: dict[tuple[int, int], list[list[int]]] = {}

    def rank(rank: int, tp: int) -> None:
        mapping = fake.Mapping(tp_size=tp)
        mapping.rank = rank  # type: ignore[attr-defined]
        model = make(config, "two_model", mapping)
        with torch.no_grad():
            model.logits_processor.weight[4] = 0.75  # the score of token 4 is at the threshold
            if rank == 1:
                model.model.embed_tokens.weight[4, 4] += 2**-7  # one bit of bfloat16
        metadata = fake.AttentionMetadata([2], 0)
        logits = fake.forward_step(model, torch.tensor([1, 4]), metadata)
        accepted[tp, rank] = fake.accept(logits, metadata, torch.tensor([[4]]))

    for tp in (1, 2):
        threads = [threading.Thread(target=rank, args=(r, tp)) for r in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert accepted[1, 0] != accepted[1, 1], "the two ranks' own scores no longer differ"
    assert accepted[2, 0] == accepted[2, 1] == accepted[1, 0]


def test_the_module_folder_registers_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `--custom_module_dirs` imports it: its parent on sys.path, then the package's name."""
    fake.install(monkeypatch, "1.3.0rc24")
    folder = Path(package.__file__).parent / "register" / "judge_llama"
    monkeypatch.syspath_prepend(str(folder.parent))
    module = import_module(folder.name)
    assert list(fake.REGISTERED.items()) == [
        ("JudgeLlamaForCausalLM", module.JudgeLlamaForCausalLM)
    ]
    assert module.JudgeLlamaForCausalLM.__module__ == "judge_decoding.trtllm.pytorch.model"


@pytest.mark.parametrize(
    ("version", "generation"),
    [
        ("1.2.1", "two_model"),
        ("1.2.0rc8", "two_model"),
        ("1.3.0rc24", "one_model"),
        ("1.4.0rc1", "one_model"),
    ],
)
def test_generations(version: str, generation: str) -> None:
    assert compat.generation_of(version) == generation


@pytest.mark.parametrize("version", ["1.1.0", "0.20.0", "2.0.0", "1.x"])
def test_another_version_is_stopped_with_one_line(version: str) -> None:
    with pytest.raises(UserError, match=rf"TensorRT-LLM {version}: .*1\.2 and for 1\.3"):
        compat.generation_of(version)


def test_a_forward_that_changed_is_stopped_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed:
        def forward(self, attn_metadata: Any, input_ids: Any) -> None: ...

    fake.install(monkeypatch, "1.3.0rc24", LlamaForCausalLM=Changed)
    with pytest.raises(UserError, match=r"no longer takes return_context_logits, spec_metadata"):
        compat.upstream()


@pytest.mark.parametrize("name", ["pp_size", "cp_size", "enable_attention_dp"])
def test_other_parallelism_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"split by {name};"):
        compat.check_mapping(fake.Mapping(**{name: 2}))


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = write_target(tmp_path / "t")
    of = JudgedTarget.of_config
    assert of(SimpleNamespace(**config)).threshold == 0.5
    with pytest.raises(UserError, match="no key judge_decoding"):
        of(SimpleNamespace(vocab_size=V))
    with pytest.raises(UserError, match=r"made for vocab_size 8, its config.json now has 9"):
        of(SimpleNamespace(**config | {"vocab_size": 9}))
    (tmp_path / "t").rename(tmp_path / "u")
    with pytest.raises(UserError, match=r"was the folder moved\?"):
        of(SimpleNamespace(**config))
    with pytest.raises(UserError, match=r"u was made as .*t; make it again"):
        JudgedTarget.load(tmp_path / "u")


def test_another_judge_in_the_folder_is_refused(tmp_path: Path) -> None:
    config = write_target(tmp_path / "t")
    target = JudgedTarget.of_config(SimpleNamespace(**config))
    judge = target.load_judge()
    Judge(judge.weight * 2, judge.bias, judge.metadata).save(tmp_path / "t" / JUDGE)
    with pytest.raises(UserError, match="is not the judge that it was made with"):
        target.load_judge()
