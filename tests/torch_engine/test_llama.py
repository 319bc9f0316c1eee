"""Our forward against transformers' Llama and Qwen2, feature by feature."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from judge_decoding.checkpoint import EMBEDDING, HEAD, Checkpoint
from judge_decoding.checkpoint.gguf_file import DEMO_FILE
from judge_decoding.checkpoint.tensors import SafeTensors
from judge_decoding.errors import UserError
from judge_decoding.torch_engine.linear import Linear, can_pack
from judge_decoding.torch_engine.llama import KeyValues, Llama, Segment
from judge_decoding.torch_engine.tensor_parallel import split, sum_in_order
from tests.conftest import LLAMA31_ROPE, write_llama

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"num_key_value_heads": 4},
    "grouped queries": {"num_key_value_heads": 1},
    "llama 3.1 rope scaling": {"rope_parameters": LLAMA31_ROPE},
    "tied embeddings": {"tie_word_embeddings": True},
    "own head size": {"head_dim": 32},
    "odd sizes": {"hidden_size": 60, "intermediate_size": 50, "vocab_size": 131, "head_dim": 10},
    "sharded file": {"shard": "100KB"},
    "attention biases": {"attention_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen2, own head size": {"model_type": "qwen2", "head_dim": 32, "num_key_value_heads": 1},
    "eps and theta": {
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
}


def logits_of(folder: Path, tokens: torch.Tensor, chunk: int) -> torch.Tensor:
    """Our logits in fp32, read in chunks as prefill does."""
    config = Checkpoint(folder).config
    model = Llama(Checkpoint(folder), dtype=torch.float32, context=len(tokens))
    kv = KeyValues(config, 1, len(tokens), torch.float32)
    rows = []
    for start in range(0, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        hidden = model.forward(piece, [Segment(0, start, len(piece))], kv)
        rows.append(model.logits(model.final_norm(hidden)))
    return torch.cat(rows)


@torch.inference_mode()
def assert_agrees(folder: Path, vocab_size: int) -> None:
    tokens = torch.randint(0, vocab_size, (512,), generator=torch.Generator().manual_seed(3))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = reference(tokens.unsqueeze(0)).logits[0]
    assert expected.std() > 0.1
    for chunk in (512, 200, 9):
        assert float((logits_of(folder, tokens, chunk) - expected).abs().max()) <= 1e-3


@pytest.mark.parametrize("feature", FEATURES)
def test_agrees_with_transformers_over_512_positions(tmp_path: Path, feature: str) -> None:
    changes = dict(FEATURES[feature])
    # 0.1, since at 0.3 the logits reach tens, and fp32 rounding alone reaches the bound.
    folder = write_llama(tmp_path / "model", initializer_range=0.1, **changes)
    assert_agrees(folder, changes.get("vocab_size", 256))
    assert ("index.json" in str(sorted(folder.iterdir()))) == (feature == "sharded file")


def save_tied(folder: Path, names: Sequence[str], change: float = 0.0) -> Path:
    """A tied model whose file has its embedding under `names`; `change` is added to the last."""
    write_llama(folder, tie_word_embeddings=True, initializer_range=0.1)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop(EMBEDDING)
    tensors |= {name: embedding.clone() for name in names}
    tensors[names[-1]] += change
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("names", [[HEAD], [EMBEDDING, HEAD], [EMBEDDING]])
@torch.inference_mode()
def test_a_tied_matrix_is_read_under_either_name(tmp_path: Path, names: list[str]) -> None:
    """Regression, transformers#34759: a file with lm_head alone was refused."""
    tokens = torch.arange(1, 40)
    wanted = logits_of(save_tied(tmp_path / "usual", [EMBEDDING]), tokens, 39)
    assert torch.equal(logits_of(save_tied(tmp_path / "model", names), tokens, 39), wanted)


def test_a_tied_head_with_other_values_is_refused(tmp_path: Path) -> None:
    """Regression, vllm#6758: the embedding was used, silently."""
    folder = save_tied(tmp_path / "model", [EMBEDDING, HEAD], 0.5)
    with pytest.raises(UserError, match="tie_word_embeddings true, but lm_head"):
        logits_of(folder, torch.arange(1, 5), 4)


@torch.inference_mode()
def test_a_ragged_batch_equals_each_sequence_alone(tiny_target: Path) -> None:
    config = Checkpoint(tiny_target).config
    model = Llama(Checkpoint(tiny_target), dtype=torch.float32, context=64)
    kv, alone = (KeyValues(config, 3, 64, torch.float32) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 256, (3, 40), generator=generator)
    for slot, length in enumerate((5, 17, 30)):
        for cache in (kv, alone):
            model.forward(text[slot, :length], [Segment(slot, 0, length)], cache)
    segments = [Segment(2, 30, 4), Segment(0, 5, 1), Segment(1, 17, 9)]
    pieces = [text[s.slot, s.start : s.start + s.rows] for s in segments]
    together = model.forward(torch.cat(pieces), segments, kv)
    separate = [model.forward(p, [s], alone) for p, s in zip(pieces, segments, strict=True)]
    assert torch.allclose(together, torch.cat(separate), atol=1e-5, rtol=1e-4)
    assert torch.allclose(kv.data, alone.data, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 9, 33])
@torch.inference_mode()
def test_packed_kernels_equal_the_plain_ones(dtype: torch.dtype, rows: int) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this CPU has no packed {dtype} kernels")
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(rows, n, generator=generator).to(dtype) for n in (48, 80))
    weight = torch.randn(80, 48, generator=generator).to(dtype) / 7
    bias = torch.randn(80, generator=generator).to(dtype)
    packed, plain = (
        Linear(weight, bias, pack=True),
        Linear(weight.float(), bias.float(), pack=False),
    )
    bound = 1e-5 if dtype == torch.float32 else 0.02
    wide = x.float(), other.float()
    for got, want in (
        (packed(x), plain(wide[0])),
        (packed.silu(x), plain.silu(wide[0])),
        (packed.times(x, other), plain.times(*wide)),
        (packed.plus(x, other), plain.plus(*wide)),
    ):
        assert got.dtype == dtype
        assert torch.allclose(got.float(), want, atol=bound, rtol=bound)


def test_the_fingerprint_names_the_weights_not_the_files(tmp_path: Path) -> None:
    one = Checkpoint(write_llama(tmp_path / "one")).fingerprint
    assert Checkpoint(write_llama(tmp_path / "shards", shard="100KB")).fingerprint == one
    assert Checkpoint(write_llama(tmp_path / "other", seed=1)).fingerprint != one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "is a 'gemma2', this engine runs 'llama' and 'qwen2'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has layer_types"),
        ({"layer_types": 7}, "has layer_types 7"),
        ({"attention_bias": "yes"}, "has attention_bias 'yes', not true or false"),
        ({"mlp_bias": 1}, "has mlp_bias 1, not true or false"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        # Regressions: tracebacks, or a wrong value was accepted.
        ({"rope_scaling": "llama3"}, "config.json has rope_scaling 'llama3', not an object"),
        ({"rope_parameters": ["llama3"]}, r"has rope_parameters \['llama3'\], not an object"),
        ({"rope_parameters": LLAMA31_ROPE | {"factor": "8"}}, "has factor '8', not a number"),
        ({"rope_parameters": {"rope_theta": "abc"}}, "has rope_theta 'abc', not a number above 0"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "has rope_theta -1.0, not a number above 0"),
        ({"rms_norm_eps": "1e-5"}, "has rms_norm_eps '1e-5', not a number above 0"),
        ({"rms_norm_eps": float("nan")}, "has rms_norm_eps nan, not a number above 0"),
        ({"rms_norm_eps": None}, "has rms_norm_eps None, not a number above 0"),
        ({"tie_word_embeddings": "false"}, "has tie_word_embeddings 'false', not true or false"),
        ({"shared_with_target": "lm_head.weight"}, "'lm_head.weight', not a list of tensor names"),
        ({"shared_with_target": [7]}, r"has shared_with_target \[7\], not a list of tensor names"),
        ({"hidden_size": "64"}, "has hidden_size '64', not a size"),
        ({"max_position_embeddings": None}, "has max_position_embeddings None, not a size"),
    ],
)
def test_what_the_forward_cannot_run_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = write_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        assert Checkpoint(folder).config


def test_what_may_be_null_in_a_config(tmp_path: Path) -> None:
    """For example as transformers writes it."""
    folder = write_llama(tmp_path / "model")
    before = Checkpoint(folder).config
    config = json.loads((folder / "config.json").read_text())
    empty = ("rope_scaling", "shared_with_target", "tie_word_embeddings", "head_dim")
    (folder / "config.json").write_text(json.dumps(config | dict.fromkeys(empty)))
    assert Checkpoint(folder).config == before


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["</s>", ["</s>"], [1, None], 1.5, True, {"id": 2}])
def test_end_tokens_are_ids(tmp_path: Path, name: str, value: Any) -> None:
    """Regression: "</s>" was read as the end tokens "<", "/", "s" and ">"."""
    folder = write_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "generation_config.json").unlink()
    for good, ids in ((7, (7,)), ([7, 8], (7, 8)), ([], ()), (None, ())):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": good}))
        assert Checkpoint(folder).config.end_ids == ids
    (folder / name).write_text(json.dumps(config | {"eos_token_id": value}))
    with pytest.raises(UserError, match="not an id or a list of ids") as error:
        assert Checkpoint(folder).config
    assert f"{name} has eos_token_id {value!r}" in str(error.value)


def test_caches_beyond_the_memory_are_refused_in_words(tiny_target: Path) -> None:
    """Regression: the allocator's RuntimeError. 563 TB are more than can be addressed."""
    with pytest.raises(UserError) as error:
        KeyValues(Checkpoint(tiny_target).config, 1024, 2**30, torch.float32)
    assert str(error.value) == (
        "limits: the caches of 1024 x 1073741824 positions take 562950.0 GB, more than there is; "
        "lower limits.max_sequences or limits.max_context"
    )


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    hint = " (make it: make venv && make target)"
    for name, what in (("nowhere", "folder "), ("a.gguf", "file "), (DEMO_FILE, "file ")):
        with pytest.raises(UserError) as error:
            assert Checkpoint(tmp_path / name).config
        assert str(error.value) == (
            f"model: no {what}{tmp_path / name}{hint if name == DEMO_FILE else ''}"
        )
    folder = write_llama(tmp_path / "model", shard="100KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        SafeTensors(folder)
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks the shard '{shard.name}'"):
        SafeTensors(folder)


def test_parts_of_ranks_are_added_in_float32_and_rounded_once() -> None:
    """In bf16, 256 + 1 is 256, twice; in float32 the sum is 258, which bf16 can hold."""
    parts = [torch.tensor([256.0, 1.0], dtype=torch.bfloat16)]
    parts += [torch.tensor([1.0, 256.0], dtype=torch.bfloat16)]
    parts += [torch.tensor([1.0, 1.0], dtype=torch.bfloat16)]
    total = sum_in_order(parts)
    assert total.dtype == torch.bfloat16
    assert total.tolist() == [258.0, 258.0]
    assert parts[0].tolist() == [256.0, 1.0]  # no rank's own part is overwritten


def test_parts_of_ranks_are_added_in_their_order() -> None:
    """Every rank must get the same bits: 1e8 + 1 - 1e8 is 0 in float32, 1e8 - 1e8 + 1 is 1."""
    big, one = torch.tensor([1e8]), torch.tensor([1.0])
    assert sum_in_order([big, one, -big]).tolist() == [0.0]
    assert sum_in_order([big, -big, one]).tolist() == [1.0]
    assert sum_in_order([one]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("total", "size", "sizes"),
    [(3, 2, [2, 1]), (100, 3, [34, 33, 33]), (8, 4, [2] * 4), (5, 3, [2, 2, 1]), (1, 1, [1])],
)
def test_a_split_is_even_but_for_one(total: int, size: int, sizes: list[int]) -> None:
    parts = split(total, size)
    assert [part.stop - part.start for part in parts] == sizes
    assert parts[0].start == 0 and parts[-1].stop == total
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))


class Thread:
    """A group whose ranks are threads of this process."""

    def __init__(self, index: int, size: int, posts: list[Any], barrier: threading.Barrier) -> None:
        self.index, self.size, self.posts, self.barrier = index, size, posts, barrier

    def exchange(self, mine: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        assert tuple(mine.shape) == tuple(shapes[self.index])
        self.posts[self.index] = mine
        self.barrier.wait(60)
        parts = list(self.posts)
        self.barrier.wait(60)
        return parts


BIASES: list[dict[str, Any]] = [
    {},
    {"attention_bias": True, "mlp_bias": True},
    {"model_type": "qwen2"},
]


@pytest.mark.parametrize("biases", BIASES, ids=["none", "all", "qwen2"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
def test_two_ranks_compute_what_one_does(
    tmp_path: Path, dtype: torch.dtype, bound: float, biases: dict[str, Any]
) -> None:
    """Three key heads on two ranks, in both dtypes; both ranks have the same bits."""
    folder = write_llama(
        tmp_path / "m",
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=50,
        initializer_range=0.1,
        **biases,
    )
    first, second, alone = run_on_ranks(folder, dtype)
    assert torch.equal(first, second)
    assert float((first - alone).abs().max() / alone.abs().max()) <= bound


def run_on_ranks(
    folder: Path, dtype: torch.dtype, weights: Any = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits of 39 tokens by the first and the second of two ranks, and by one process."""
    tokens = torch.arange(1, 40)

    def run(group: Any) -> torch.Tensor:
        with torch.inference_mode():
            checkpoint = Checkpoint(folder)
            model = Llama(checkpoint, dtype=dtype, context=64, weights=weights, group=group)
            kv = KeyValues(model.local, 1, 64, dtype)
            hidden = model.forward(tokens, [Segment(0, 0, len(tokens))], kv)
            return model.logits(model.final_norm(hidden)).float()

    posts, barrier = [None, None], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, [Thread(i, 2, posts, barrier) for i in range(2)])
    return first, second, run(None)
