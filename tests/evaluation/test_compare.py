"""The target's preference between two texts: both orders, damaged texts, the command's report."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from conftest import write_deployment
from typer.testing import CliRunner

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.commands.main import app
from judge_decoding.evaluation.compare import QUESTION, Comparer, Preferences, halved, looped
from judge_decoding.evaluation.compare import shuffled as shuffle
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.task import write_task
from judge_decoding.text import Tokenizer
from judge_decoding.training.target_reader import ReadingTarget, ReadRequest, load_reader

CONTEXT = 512
PAIRS = [("Say yes", "yes, of course", "no"), ("Say no", "no", "I would rather not say it")]


@pytest.fixture(scope="module")
def reader(tiny_target: Path) -> ReadingTarget:
    checkpoint = Checkpoint(tiny_target)
    return load_reader(checkpoint, dtype="float32", max_sequences=2, max_context=CONTEXT)


@pytest.fixture(scope="module")
def tokenizer(tiny_target: Path) -> Tokenizer:
    return Tokenizer(tiny_target, "model")


def test_a_preference_is_the_mean_over_both_orders(
    reader: ReadingTarget, tokenizer: Tokenizer
) -> None:
    def chance_of_a(prompt: str, a: str, b: str) -> float:
        ids = tokenizer.turn(QUESTION.format(prompt=prompt, a=a, b=b))
        found = []
        for letter in "AB":
            text = [*ids, tokenizer.encode(letter)[-1]]
            [read] = reader.likelihood([ReadRequest(0, 0, text)])
            reader.release(0)
            found.append(read[-1])
        return float(torch.stack(found).softmax(-1)[0])

    found = Comparer(reader, tokenizer).prefer(PAIRS)
    for (prompt, one, two), mean, orders in zip(PAIRS, found.mean, found.orders, strict=True):
        expected = chance_of_a(prompt, one, two), 1 - chance_of_a(prompt, two, one)
        assert orders == pytest.approx(expected, abs=1e-4)
        assert mean == pytest.approx(sum(expected) / 2, abs=1e-4)
    turned = Comparer(reader, tokenizer).prefer([(p, two, one) for p, one, two in PAIRS])
    for mean, other in zip(found.mean, turned.mean, strict=True):
        assert mean is not None and other is not None
        assert mean + other == pytest.approx(1)


def test_a_pair_that_is_too_long_is_counted_and_not_judged(
    reader: ReadingTarget, tokenizer: Tokenizer
) -> None:
    found = Comparer(reader, tokenizer).prefer([("Say", "x y z " * CONTEXT, "no"), PAIRS[0]])
    assert found.mean[0] is None and found.orders[0] is None and found.mean[1] is not None
    report = found.report()
    assert (report["pairs"], report["too_long"]) == (1, 1)


def test_a_report_counts_wins_ties_and_agreement() -> None:
    orders = [(0.9, 0.7), (0.9, 0.3), (0.2, 0.1), (0.5, 0.5)]
    report = Preferences([sum(o) / 2 for o in orders], list(orders)).report()
    assert report["preferred"] == pytest.approx(2.5 / 4) and report["pairs"] == 4
    assert report["consistent"] == 3 / 4
    low, high = report["preferred_ci"]
    assert low < 2.5 / 4 < high
    empty = Preferences([], []).report()
    assert empty["preferred"] is None and empty["consistent"] is None


def test_damage() -> None:
    text, rng = "a b c d e f g h i j", random.Random(0)
    assert halved(text, rng) == "a b c d e"
    assert looped(text, rng) == "a a a a a a a a a a"
    assert sorted(shuffle(text, rng)) == sorted(text) and shuffle(text, rng) != text


def test_the_command_shows_the_plain_check_first(
    tiny_target: Path, tiny_draft: Path, tmp_path: Path
) -> None:
    config = write_deployment(
        tmp_path, tiny_target, tiny_draft, limits={"max_sequences": 2, "max_context": CONTEXT}
    )
    write_task(
        tmp_path / "t.jsonl",
        [
            Item(id=f"{n}", group=f"{n}", domain="d", prompt=f"Say {n}", parser="none")
            for n in range(3)
        ],
    )
    common = ["eval", "--config", str(config), "--rules", "none,strict,draft", "--compare"]
    common += ["--max-tokens", "24", "--json", "--task"]
    done = CliRunner().invoke(app, [*common, str(tmp_path / "t.jsonl")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])["comparison"]
    assert set(found["check"]) == {"shuffled", "looped", "halved", "exchanged"}
    assert found["rules"]["strict"]["same"] == 3 and found["rules"]["strict"]["pairs"] == 0
    draft = found["rules"]["draft"]
    assert draft["same"] + draft["pairs"] + draft["too_long"] == 3 and draft["pairs"] > 0
    assert done.stdout.index("plain check") < done.stdout.index("no measure of quality")
    write_task(
        tmp_path / "known.jsonl",
        [Item(id="1", group="1", domain="d", prompt="1?", answer="1", parser="number")],
    )
    done = CliRunner().invoke(app, [*common, str(tmp_path / "known.jsonl")])
    assert "no items without a known answer" in done.stderr
