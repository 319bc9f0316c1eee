"""A deployment of GGUF files answers as that of their folders; files that do not fit are named."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judge_decoding.checkpoint import Checkpoint, RopeScaling
from judge_decoding.checkpoint.demo_target import SHA256, checksum, prepare
from judge_decoding.checkpoint.gguf_file import GgufFile
from judge_decoding.config import load_deployment
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from judge_decoding.planner.shapes import shape_of
from judge_decoding.torch_engine.llama import rope_frequencies
from judge_decoding.training.judge.features import Precision, open_reader
from tests.checkpoint.gguf_world import write_gguf
from tests.conftest import LLAMA31_ROPE, perturb, write_deployment, write_llama
from tests.conftest import write_tokenizer as write_bytes_tokenizer

LIMITS = {"max_sequences": 3, "max_context": 128, "max_tokens": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a draft without rope scaling, whose parameters a file could not hold."""
    folder = tmp_path_factory.mktemp("gguf")
    target = write_llama(folder / "target", max_position_embeddings=200)
    write_bytes_tokenizer(target)
    draft = perturb(target, folder / "draft", noise=0.05)
    write_bytes_tokenizer(draft)
    return target, draft


@pytest.fixture(scope="module")
def files(folders: tuple[Path, Path]) -> tuple[Path, Path]:
    target, draft = folders
    return (
        write_gguf(target.with_suffix(".gguf"), target),
        write_gguf(draft.with_suffix(".gguf"), draft),
    )


def answers(path: Path) -> tuple[list[list[int]], list[int]]:
    pipeline = load_pipeline(load_deployment(path))
    prompts = [pipeline.tokenizer.turn(text) for text in ("Why?", "a b c", "Count to 12")]
    rules = (Acceptance("none"), Acceptance("strict"), Acceptance("judge", threshold=0.4))
    results = pipeline.decoder.generate([Request(p, 24, rule) for p in prompts for rule in rules])
    pipeline.decoder.check_integrity(deep=True)
    return [r.token_ids for r in results], [r.record.num_judged_tokens for r in results]


@pytest.mark.parametrize("mixed", [False, True])
def test_files_answer_with_the_tokens_of_their_folders(
    mixed: bool, folders: tuple[Path, Path], files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Also with the folders' judge, and with a file beside a folder."""
    for name in ("folders", "files"):
        (tmp_path / name).mkdir()
    expected = answers(write_deployment(tmp_path / "folders", *folders, limits=LIMITS))
    target, draft = files[0], folders[1] if mixed else files[1]
    found = answers(write_deployment(tmp_path / "files", target, draft, limits=LIMITS))
    assert found == expected
    assert sum(found[1]) > 0


def test_the_context_and_the_shape_come_from_the_file(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    path = write_deployment(tmp_path, *files, limits={"max_sequences": 1})
    deployment = load_deployment(path)
    assert deployment.limits.max_context == 200
    assert shape_of(deployment.target).hidden == 64


def test_another_vocabulary_than_the_folders_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    tokens = [chr(0x4E00 + index) for index in range(256)]
    other = write_gguf(tmp_path / "other.gguf", folders[0], tokenizer__ggml__tokens=tokens)
    path = write_deployment(tmp_path, other, folders[1])
    with pytest.raises(UserError, match=r"draft: .* has another tokenizer than the target"):
        load_pipeline(load_deployment(path))


def test_llama_31s_scaling_is_found_in_the_frequencies(tmp_path: Path) -> None:
    rope = LLAMA31_ROPE | {"original_max_position_embeddings": 8192}
    folder = write_llama(tmp_path / "model", rope_parameters=rope)
    config = Checkpoint(folder).config
    plain = write_llama(
        tmp_path / "plain", rope_parameters={"rope_type": "default", "rope_theta": 500000.0}
    )
    unscaled = rope_frequencies(Checkpoint(plain).config)
    factors = (unscaled / rope_frequencies(config)).numpy()
    assert 1 < factors[4] < 8  # one is between the two bounds
    path = write_gguf(tmp_path / "a.gguf", folder, extra={"rope_freqs.weight": factors})
    found = Checkpoint(path)
    assert found.config.rope_scaling == config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    assert torch.equal(rope_frequencies(found.config), rope_frequencies(config))
    assert "rope_freqs.weight" not in found.tensors.names()
    other = write_gguf(tmp_path / "b.gguf", folder, extra={"rope_freqs.weight": factors**2})
    with pytest.raises(UserError, match=r"b.gguf has rope_freqs.weight that are not Llama-3.1's$"):
        assert Checkpoint(other).config


def test_llama_3s_end_tokens_all_end_an_answer(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tokens = [f"t{index}" for index in range(256)]
    tokens[17], tokens[30] = "<|eot_id|>", "<|end_of_text|>"
    path = write_gguf(
        tmp_path / "a.gguf",
        folders[0],
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__eos_token_id=17,
        tokenizer__ggml__eom_token_id=9,
    )
    assert Checkpoint(path).config.end_ids == (17, 9, 30)
    tokens[200], tokens[40] = "<|endoftext|>", "<|im_end|>"
    qwen2 = write_gguf(
        tmp_path / "b.gguf",
        write_llama(tmp_path / "qwen2", model_type="qwen2"),
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__eos_token_id=40,
    )
    assert Checkpoint(qwen2).config.end_ids == (40, 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "mamba"}, "the architecture 'mamba', this engine runs 'llama'"),
        ({"llama__block_count": None}, "lacks the metadata llama.block_count"),
        ({"llama__embedding_length": "wide"}, "hidden_size 'wide', not a size"),
        ({"llama__attention__head_count": 0}, "num_heads 0, not a size"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count 8; this engine needs"),
        ({"llama__rope__scaling__type": "yarn"}, "rope scaling 'yarn'; supported: Llama-3.1's"),
        ({"llama__expert_count": 8}, "is a mixture of experts"),
        ({"split__count": 3}, "is one of 3 parts; join them with llama-gguf-split --merge"),
        ({"general__alignment": 12}, "general.alignment 12"),
        (
            {"extra": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}},
            "has no tensor model.layers.0.self_attn.k_proj.bias",
        ),
        (
            {"extra": {"blk.1.attn_q.bias": np.zeros(64, np.float32)}},
            "has 'model.layers.1.self_attn.q_proj.bias', a bias that its config does not mention",
        ),
        (
            {"extra": {"blk.0.attn_q_norm.weight": np.zeros(16, np.float32)}},
            "the tensor blk.0.attn_q_norm.weight",
        ),
        ({"extra": {"rope_freqs.weight": np.ones(3, np.float32)}}, r"shape \[3\] as F32"),
        ({"llama__block_count": 3}, "no tensor model.layers.2.input_layernorm.weight"),
        ({"llama__feed_forward_length": 97}, r"gate_proj.weight of shape \[96, 64\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_engine_cannot_run_is_named(
    changes: dict[str, Any], message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(write_gguf(tmp_path / "a.gguf", folders[0], **changes))
    with pytest.raises(UserError, match=f"^model: .*a.gguf .*{message}"):
        checkpoint.tensors.check_shapes(checkpoint.config)


def test_an_unknown_quantization_is_named(tmp_path: Path) -> None:
    for kind in ("Q2_K", "IQ4_NL"):
        form = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[form]
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", arch="llama")
        writer.add_tensor(
            "output.weight", np.zeros((2, 256 // block * size), np.uint8), raw_dtype=form
        )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(UserError) as error:
            GgufFile(tmp_path / "a.gguf")
        assert str(error.value) == (
            f"model: {tmp_path / 'a.gguf'} has output.weight as {kind}; supported: F32, F16, Q4_0, "
            "Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16"
        )


def test_a_file_cut_anywhere_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = files[0].read_bytes()
    path = tmp_path / "cut.gguf"

    @settings(max_examples=300)
    @given(st.integers(0, len(whole) - 1))
    def check(size: int) -> None:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.gguf is (cut short|not a GGUF|damaged)"):
            GgufFile(path)

    check()


def test_a_damaged_header_is_named_or_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Whatever eight bytes of the header become: no other error, no endless reading."""
    whole = bytearray(files[0].read_bytes())
    header = min(stored.offset for stored in GgufFile(files[0]).tensors.values())
    path = tmp_path / "damaged.gguf"

    @settings(max_examples=400)
    @given(st.integers(0, header - 8), st.sampled_from([0, 1, 2**31, 2**62, 2**64 - 1]))
    def check(at: int, value: int) -> None:
        path.write_bytes(whole[:at] + struct.pack("<Q", value) + whole[at + 8 :])
        with suppress(UserError):
            checkpoint = Checkpoint(path)
            checkpoint.tensors.check_shapes(checkpoint.config)
            checkpoint.tokenizer_hash  # noqa: B018

    check()


def test_values_that_are_not_finite_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", folders[0], "Q8_0")
    stored = GgufFile(path).tensors["blk.1.ffn_down.weight"]
    data = bytearray(path.read_bytes())
    data[stored.offset : stored.offset + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        Checkpoint(path).tensors.get("model.layers.1.mlp.down_proj.weight")
    assert str(error.value) == (
        f"model: {path} has values in model.layers.1.mlp.down_proj.weight that are not finite"
    )


def test_a_reader_of_folders_says_so(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"--reader transformers: .*\.gguf is a GGUF file"):
        open_reader("transformers", Checkpoint(files[0]), Precision("float32"))


def test_the_demo_target_is_copied_once_and_again_if_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cache" / "demo.gguf"
    prepare(path)
    written = path.stat().st_mtime_ns
    prepare(path)
    assert (checksum(path), path.stat().st_mtime_ns) == (SHA256, written)
    with path.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"damage")
    prepare(path)
    assert checksum(path) == SHA256
    ready, damaged = f"demo target: {path} is ready", f"{path} is damaged; copying it anew"
    assert capsys.readouterr().out.splitlines() == [
        *(ready, ready, f"demo target: {damaged}", ready)
    ]
    assert [file.name for file in path.parent.iterdir()] == ["demo.gguf"]
