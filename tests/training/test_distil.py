"""The scripts that write the draft's text and train it, on the tiny target."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.decoding.contracts import Acceptance, ProposeRequest
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import load_drafter, load_target
from judge_decoding.training.draft.agreement import ReadingDrafter, answers_to
from judge_decoding.training.draft.data import figures, load_answers, rounds_of, split_held_out
from judge_decoding.training.draft.target_text import (
    BatchWriter,
    prompt_parts,
    read_text,
    templated_prompts,
)
from tests.commands_world import run_command

LIMITS = {"dtype": "float32", "max_sequences": 4, "max_context": 128}


def test_the_batch_writer_writes_what_the_engine_writes(tiny_target: Path) -> None:
    """Left padding, one attention call and prompts of different lengths give the same tokens."""
    prompts = [[5, 9, 200], [7] * 20 + [3], [90], list(range(30, 41))]
    written = BatchWriter(tiny_target, torch.float32).write(prompts, 24)
    decoder = SpeculativeDecoder(Engines(None, load_target(Checkpoint(tiny_target), **LIMITS)))
    own = decoder.generate([Request(p, 24, Acceptance("none")) for p in prompts])
    assert written == [r.token_ids for r in own]


def test_the_states_are_those_that_predicted_the_tokens(tiny_target: Path) -> None:
    """One pass over prompt and answer gives the same states again, and they give the tokens."""
    prompts = [[5, 9, 200], [7] * 20 + [3]]
    writer = BatchWriter(tiny_target, torch.float32)
    target = load_target(Checkpoint(tiny_target), **LIMITS)
    for prompt, (ids, states) in zip(prompts, writer.write_with_states(prompts, 12), strict=True):
        assert states.shape == (len(ids), writer.config.hidden_size)
        assert writer.model.logits(states).argmax(-1).tolist() == ids
        read = target.teacher_forced(prompt[:-1], [prompt[-1], *ids])
        assert torch.allclose(read.post_norm[: len(ids)], states, atol=1e-4)


def test_templates_make_thousands_of_different_prompts() -> None:
    prompts = templated_prompts(seed=0)
    assert list(prompts) == list(templated_prompts(seed=0))
    assert len(prompts) > 5000
    assert not any("{" in p for p in prompts)
    assert prompts["What is the capital of Norway?"] is None
    kept_out = [p for p, held in prompts.items() if held == "source"]
    assert len(kept_out) > 50
    begins = ("A friend says", "Make a checklist", "Tell me a joke", "What is the first thing")
    assert all(p.startswith(begins) for p in kept_out)


def test_held_out_openers_and_templates_are_no_others() -> None:
    parts = prompt_parts()
    assert not set(parts["openers"]) & set(parts["held_out_openers"])
    assert not set(parts["topic_templates"]) & set(parts["held_out_topic_templates"])


def test_text_and_states_are_written_and_a_cut_run_goes_on(
    tiny_target: Path, tmp_path: Path
) -> None:
    out = tmp_path / "text.jsonl.gz"
    options = ["--target", str(tiny_target), "--own", "0", "--tokens", "6"]
    done = run_command("distil-text", str(out), *options, "--count", "100")
    assert done.code == 0, done.stderr
    first = read_text(out)
    states = tmp_path / "text.jsonl.gz.states"
    size = sum(len(row["response_ids"]) for row in first) * 64 * 2
    assert len(first) == len({row["prompt"] for row in first}) == 100
    assert states.stat().st_size == size
    with states.open("ab") as file:  # states of answers that were not written any more
        file.write(b"x" * 1000)
    done = run_command("distil-text", str(out), *options, "--count", "150")
    assert done.code == 0, done.stderr
    rows = read_text(out)
    assert rows[:100] == first
    assert len({row["prompt"] for row in rows}) == 150
    assert states.stat().st_size == sum(len(r["response_ids"]) for r in rows) * 64 * 2
    tokenizer = Tokenizer(tiny_target)
    answers = load_answers([out], tokenizer, 64)
    head = BatchWriter(tiny_target).model
    same = []
    for answer in answers:
        assert answer.states is not None
        choices = head.logits(answer.states.to(head.dtype, copy=True)).argmax(-1)
        same += (choices == torch.tensor(answer.response)).tolist()
    assert sum(same) / len(same) > 0.95  # near-ties in bf16 resolve differently in another batch
    states.write_bytes(states.read_bytes()[:-2])
    with pytest.raises(UserError, match="shorter"):
        load_answers([out], tokenizer, 64)


def test_what_a_text_marks_is_held_out(tmp_path: Path, tiny_target: Path) -> None:
    """If two files have the same prompt, the first file's row counts."""
    text, old = tmp_path / "text.jsonl", tmp_path / "old.jsonl"
    marks = {3: "source", 5: "prompt", 7: "prompt"}
    rows = [{"prompt": f"{i}", "response_ids": [i + 1]} for i in range(100)]
    marked = [row | ({"held_out": marks[i]} if i in marks else {}) for i, row in enumerate(rows)]
    text.write_text("".join(json.dumps(row) + "\n" for row in marked))
    old.write_text(json.dumps({"prompt": "5", "response_ids": [1]}) + "\n")
    tokenizer = Tokenizer(tiny_target)
    trained, held = split_held_out(load_answers([text], tokenizer, 64), seed=0)
    assert {
        kind: [a.response for a in part] for kind, part in held.items() if kind != "prompt"
    } == {"source": [[4]]}
    assert sorted(a.response[0] for a in held["prompt"]) == [6, 8]
    assert sorted(a.response[0] for a in trained) == [i + 1 for i in range(100) if i not in marks]
    _, held = split_held_out(load_answers([old, text], tokenizer, 64), seed=0)
    assert [a.response for a in held["prompt"]] == [[8]]


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
    rounds = list(rounds_of(hits, k))
    assert rounds == expected
    assert sum(rounds) + len(rounds) == len(hits)


def test_an_interrupted_text_file_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl.gz"
    rows = [{"prompt": str(i), "response_ids": [i] * 50} for i in range(300)]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert read_text(path) == rows
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = read_text(path)
    assert 0 < len(found) < 300
    assert found == rows[: len(found)]


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.gz"])
def test_only_the_last_line_of_a_text_may_be_cut_off(tmp_path: Path, name: str) -> None:
    """Regression: after a line that is no JSON, the rest of the file was left out silently."""
    path = tmp_path / name
    pack = gzip.compress if name.endswith(".gz") else bytes
    good = b'{"prompt": "a"}\n'
    path.write_bytes(pack(good + b'{"prompt": "b'))
    assert read_text(path) == [{"prompt": "a"}]
    for line in (b"{\n", b"\n", b'{"text": "b"}\n', b'["prompt"]\n', b'{"prompt": 1}\n', b"\xff\n"):
        path.write_bytes(pack(good + line + good))
        with pytest.raises(UserError, match=f"{name}:2: no object with .prompt"):
            read_text(path)


def test_a_text_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl.gz"
    with pytest.raises(UserError, match=r"text\.jsonl\.gz: it cannot be read .*No such file"):
        read_text(path)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"text\.jsonl\.gz: it cannot be read .*Not a gzipped file"):
        read_text(path)
    whole = bytearray(gzip.compress(b'{"prompt": "a"}\n' * 100))
    whole[-8] ^= 0xFF  # a byte of the checksum
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"text\.jsonl\.gz: it cannot be read"):
        read_text(path)


def test_a_draft_is_distilled_saved_and_loaded(tiny_target: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    text = tmp_path / "text.jsonl"
    prompts = [[int(i)] for i in torch.randint(33, 120, (90,), generator=generator)]
    answers = BatchWriter(tiny_target, torch.float32).write(prompts, 12)
    rows = [{"prompt": f"{i}", "response_ids": ids} for i, ids in enumerate(answers)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "draft"
    options = ["--layers", "0", "--vocabulary", "64", "--minutes", "0.05"]
    done = run_command(
        "distil-draft", str(text), "--out", str(out), "--target", str(tiny_target), *options
    )
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    held = report["held_out"]["all"]
    assert report["steps"] > 0
    assert 0 <= held["agreement"] <= 1 <= held["strict_length_k4"]
    drafter = load_drafter(Checkpoint(out), target=Checkpoint(tiny_target), **LIMITS)
    assert drafter.vocab_ids is not None
    assert len(drafter.vocab_ids) == 64
    proposal = drafter.propose([ProposeRequest(0, 0, [50, 60], 4)])[0]
    assert set(proposal.tokens) <= set(drafter.vocab_ids.tolist())
    # Continued training: the first measurement must equal the last one of the first run.
    again = tmp_path / "again"
    options = ["--init", str(out), "--vocabulary", "64", "--minutes", "0.02"]
    done = run_command(
        "distil-draft", str(text), "--out", str(again), "--target", str(tiny_target), *options
    )
    assert done.code == 0, done.stderr
    [line] = [x for x in done.stdout.splitlines() if x.startswith("before ")]
    before = json.loads(line.removeprefix("before "))["all"]
    assert before["agreement"] == pytest.approx(held["agreement"], abs=0.02)  # bf16 on disk
    assert torch.equal(
        load_drafter(Checkpoint(again), target=Checkpoint(tiny_target), **LIMITS).vocab_ids,
        drafter.vocab_ids,
    )


def test_too_little_text_is_one_clear_line(tiny_target: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"prompt": "a", "response_ids": [1]}\n')
    done = run_command("distil-draft", str(text), "--out", "x", "--target", str(tiny_target))
    assert done.code == 2
    assert "1 answers are too few" in done.stderr


def test_a_draft_is_measured_without_a_loop_as_the_loop_would(
    tiny_target: Path, tiny_draft: Path
) -> None:
    tokenizer = Tokenizer(tiny_target)
    [answer] = answers_to(["Hi"], tiny_target, tokenizer, 24)
    drafter = load_drafter(Checkpoint(tiny_draft), target=Checkpoint(tiny_target), **LIMITS)
    reader = ReadingDrafter(drafter.model, max_sequences=1, max_context=128)
    hits = reader.foresees(answer.prompt, answer.response)
    assert len(hits) == len(answer.response)
    for i in range(len(hits)):
        text = answer.prompt + answer.response[:i]
        [proposal] = drafter.propose([ProposeRequest(i, 0, text, 1)])
        drafter.release(i)
        assert hits[i] == (proposal.tokens == [answer.response[i]])
    assert len(set(hits)) == 2
    measured = figures([hits], (1,))
    assert measured["agreement"] == sum(hits) / len(hits)
