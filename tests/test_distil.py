"""The scripts that write the draft's text and train it, on the tiny target."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from judge_decoding.decoding import SpeculativeDecoder
from judge_decoding.engine.base import Acceptance, ProposeRequest
from judge_decoding.engine.torch_engine import load_drafter, load_target
from judge_decoding.sequence import Request

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "build"))
import distil_draft
import distil_text

LIMITS = {"dtype": "float32", "max_sequences": 4, "max_context": 128}


def test_the_batch_writer_writes_what_the_engine_writes(tiny_target: Path) -> None:
    """Left padding, one attention call for all, prompts of different lengths: the same tokens."""
    prompts = [[5, 9, 200], [7] * 20 + [3], [90], list(range(30, 41))]
    written = distil_text.BatchWriter(tiny_target, torch.float32).write(prompts, 24)
    decoder = SpeculativeDecoder(None, load_target(tiny_target, **LIMITS))
    own = decoder.generate([Request(p, 24, Acceptance("none")) for p in prompts])
    assert written == [r.token_ids for r in own]


def test_templates_make_thousands_of_different_prompts() -> None:
    prompts = distil_text.templated_prompts(seed=0)
    assert prompts == distil_text.templated_prompts(seed=0)
    assert len(prompts) == len(set(prompts)) > 5000
    assert not any("{" in p for p in prompts)
    assert "What is the capital of Norway?" in prompts


@pytest.mark.parametrize(
    ("hits", "k", "expected"),
    [
        ([True, True, True, True, True], 4, [4]),
        ([True, False, True, True], 4, [1, 1]),
        ([False, False], 4, [0, 0]),
        ([True] * 6, 2, [2, 2]),
        ([], 4, []),
    ],
)
def test_rounds_of_teacher_forced_hits(hits: list[bool], k: int, expected: list[int]) -> None:
    rounds = list(distil_draft.rounds_of(hits, k))
    assert rounds == expected
    assert sum(rounds) + len(rounds) == len(hits)


def test_an_interrupted_text_file_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl.gz"
    rows = [{"prompt": str(i), "response_ids": [i] * 50} for i in range(300)]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert distil_text.read_text(path) == rows
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = distil_text.read_text(path)
    assert 0 < len(found) < 300
    assert found == rows[: len(found)]


def test_a_draft_is_distilled_saved_and_loaded(tiny_target: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    text = tmp_path / "text.jsonl"
    prompts = [[int(i)] for i in torch.randint(33, 120, (90,), generator=generator)]
    answers = distil_text.BatchWriter(tiny_target, torch.float32).write(prompts, 12)
    rows = [{"prompt": f"{i}", "response_ids": ids} for i, ids in enumerate(answers)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    app = distil_draft.typer.Typer()
    app.command()(distil_draft.main)
    out = tmp_path / "draft"
    options = ["--layers", "0", "--vocabulary", "64", "--minutes", "0.05"]
    done = CliRunner().invoke(
        app, [str(text), "--out", str(out), "--target", str(tiny_target), *options]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.output.splitlines()[-1])
    assert report["steps"] > 0
    assert 0 <= report["agreement"] <= 1 <= report["strict_length_k4"]
    drafter = load_drafter(out, target=tiny_target, **LIMITS)
    assert drafter.vocab_ids is not None
    assert len(drafter.vocab_ids) == 64
    proposal = drafter.propose([ProposeRequest(0, 0, [50, 60], 4)])[0]
    assert set(proposal.tokens) <= set(drafter.vocab_ids.tolist())


def test_too_little_text_is_one_clear_line(tiny_target: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"prompt": "a", "response_ids": [1]}\n')
    app = distil_draft.typer.Typer()
    app.command()(distil_draft.main)
    done = CliRunner().invoke(app, [str(text), "--out", "x", "--target", str(tiny_target)])
    assert done.exit_code == 2
    assert "1 answers are too few" in done.output
