"""Mining labels from a draft's mismatches: exact swaps on the tiny pair, resumed runs, parsers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "build"))

pytest.importorskip("num2words", reason="facts come from the build extra")

import court_answers
import mine_labels
import mining
from court_facts import questions
from mining import Job, Miner, run_all
from target_reader import ReadRequest, load_reader
from typer.testing import CliRunner

from judge_decoding.decoding import SpeculativeDecoder
from judge_decoding.engine.base import Acceptance
from judge_decoding.engine.torch_engine import load_drafter, load_target
from judge_decoding.labels import read_labels
from judge_decoding.sequence import Request

LIMITS = {"dtype": "float32", "max_sequences": 3, "max_context": 128}
PROMPTS = [[5, 9, 200], [7] * 20 + [3], [90], list(range(30, 41)), [60, 61]]
TOKENS = 16


def miner(**changes) -> Miner:
    values = {
        "end_ids": frozenset({0}),
        "stops": lambda token: False,
        "decode": lambda ids: " ".join(map(str, ids)),
        "max_tokens": TOKENS,
        "draft_len": 4,
        "tau": 0.0,
        "floor": -1e9,
    }
    return Miner(**(values | changes))


def mine(draft: Path, target: Path, method: str, parse=None, **changes):
    """All prompts, more than are in flight -> (prompt, mined), the prompts in order."""
    reader = load_reader(target, **LIMITS)
    drafter = load_drafter(draft, target=target, **LIMITS)
    found = getattr(miner(**changes), method)
    jobs = [
        (job, lambda number, p=prompt, job=job: found(number, p, job))
        for prompt, job in zip(
            PROMPTS, [Job(str(n), f"g{n}", "d", parse) for n in range(len(PROMPTS))], strict=True
        )
    ]
    results = {int(job.prompt): mined for job, mined in run_all(jobs, drafter, reader)}
    return [(PROMPTS[n], results[n]) for n in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def own(tiny_target: Path) -> list[list[int]]:
    """The target's own answers, without their end token."""
    decoder = SpeculativeDecoder(None, load_target(tiny_target, **LIMITS))
    found = [decoder.generate([Request(p, TOKENS, Acceptance("none"))])[0] for p in PROMPTS]
    return [[i for i in r.token_ids if i != 0] for r in found]


def strict_greedy(tiny_target: Path, text: list[int], room: int) -> list[int]:
    if room < 1:
        return []
    decoder = SpeculativeDecoder(None, load_target(tiny_target, **LIMITS))
    [result] = decoder.generate([Request(text, room, Acceptance("none"))])
    return [i for i in result.token_ids if i != 0]


def test_where_every_swap_changes_the_answer_nothing_is_swapped(tiny_target, tiny_draft, own):
    """The parser reads the whole text; then only a continuation that comes back would be good."""
    mined = mine(tiny_draft, tiny_target, "search", parse=first_five)
    assert sum(len(m.swaps) for _, m in mined) > 5
    for (prompt, found), answer in zip(mined, own, strict=True):
        reference = first_five(" ".join(map(str, answer)))
        text = list(answer)
        for swap in found.swaps:  # replay the search with nothing kept between passes
            assert swap.ids[:-1] == text[: swap.at]
            assert swap.ids[-1] != text[swap.at]
            rest = strict_greedy(tiny_target, prompt + swap.ids, TOKENS - len(swap.ids))
            swapped = swap.ids + rest
            assert swap.good == (first_five(" ".join(map(str, swapped))) == reference)
            if swap.good:
                text = swapped
        assert found.response == text


def first_five(text: str) -> str | None:
    """The answer is settled by the parity of the first five tokens, once there are so many."""
    ids = [int(i) for i in text.split()]
    return str(sum(ids[:5]) % 2) if len(ids) >= 5 else None


def test_an_answer_that_is_given_is_not_searched_further(tiny_target, tiny_draft):
    for _, found in mine(tiny_draft, tiny_target, "search", parse=first_five):
        assert all(swap.at < 5 for swap in found.swaps)


def test_without_an_answer_there_is_no_reference(tiny_target, tiny_draft, own):
    mined = mine(tiny_draft, tiny_target, "search", parse=lambda text: None)
    assert [m.response for _, m in mined] == own
    assert not any(m.swaps for _, m in mined)


def test_tokens_below_the_floor_are_no_labels(tiny_target, tiny_draft):
    mined = mine(tiny_draft, tiny_target, "search", parse=first_five, floor=0.0)
    assert not any(m.swaps for _, m in mined)


def test_the_likelihood_score_is_that_of_a_fresh_pass(tiny_target, tiny_draft, own):
    """Nothing kept (tau out of reach): each score is a difference of two whole readings."""
    mined = mine(tiny_draft, tiny_target, "judge_likelihood", tau=1e9)
    assert [m.response for _, m in mined] == own
    reader = load_reader(tiny_target, **LIMITS)

    def read(text, begin):
        [found] = reader.likelihood([ReadRequest(0, 0, text)])
        reader.release(0)
        return found[begin - 1 :]

    checked = 0
    for prompt, found in mined:
        begin, answer = len(prompt), found.response
        for swap in found.swaps:
            text = [*answer[: swap.at], swap.ids[-1], *answer[swap.at + 1 :]]
            gain = read(prompt + text, begin) - read(prompt + answer, begin)
            last = swap.at + 1 + mining.NEXT_TOKENS
            assert swap.score == pytest.approx(float(gain[swap.at : last].sum()), abs=1e-3)
            assert not swap.good
            checked += 1
    assert checked > 5


def test_likelihood_labels_by_tau_and_keeps_no_swap(tiny_target, tiny_draft, own):
    mined = mine(tiny_draft, tiny_target, "judge_likelihood", tau=-5.0)
    assert [m.response for _, m in mined] == own
    labels = [(s.score, s.good) for _, m in mined for s in m.swaps]
    assert all(good == (score > -5.0) for score, good in labels)
    assert {good for _, good in labels} == {True, False}


def test_records_say_what_was_found():
    job = Job("p", "g", "d")
    swaps = [
        mining.Swap(1, True, [4, 9]),
        mining.Swap(3, False, [4, 9, 6, 8]),
        mining.Swap(2, False, [4, 9, 7]),
        mining.Swap(0, True, [3]),
    ]
    mined = mining.Mined([4, 9, 6, 5], swaps)
    made = mine_labels.records_of(job, mined, "mined_search", str, 0, 8)
    assert [r.response_ids for r in made] == [[3], [4, 9, 7], [4, 9, 6, 8], [4, 9, 6, 5]]
    assert [[(s.start, s.label) for s in r.spans] for r in made] == [
        [(0, "good")],
        [(2, "bad")],
        [(3, "bad")],
        [(1, "good")],
    ]
    assert {(r.group, r.split) for r in made} == {("g", made[0].split)}
    assert len(mine_labels.records_of(job, mined, "mined_search", str, 0, 1)) == 2


def test_a_run_writes_labels_and_goes_on_where_it_was_cut_off(
    tiny_target: Path, tiny_draft: Path, tmp_path: Path
) -> None:
    config, task, out = (tmp_path / n for n in ("c.yaml", "task.jsonl", "labels.jsonl"))
    config.write_text(
        f"name: tiny\nengine: torch\ndtype: float32\ntarget: {{model: {tiny_target}}}\n"
        f"draft: {{model: {tiny_draft}}}\nmax_draft_len: 4\n"
    )
    rows = [{"prompt": f"Say {n}."} for n in range(6)] + [{"prompt": "no", "held_out": "prompt"}]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    app = mine_labels.typer.Typer()
    app.command()(mine_labels.main)
    options = ["--deployment", str(config), "--task", str(task), "--method", "likelihood"]
    command = ["--out", str(out), *options, "--max-tokens", "12", "--in-flight", "4"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    records = read_labels([out])
    assert {r.prompt for r in records} == {f"Say {n}." for n in range(6)}
    assert {r.domain for r in records} == {"chat"}
    assert {s.origin for r in records for s in r.spans} == {"mined_likelihood"}
    whole = out.read_text()
    out.write_text(whole[: int(len(whole) * 0.6)])  # within some prompt's records
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())


def test_a_search_without_a_parser_is_one_clear_line(tiny_target, tiny_draft, tmp_path):
    config, task = tmp_path / "c.yaml", tmp_path / "task.jsonl"
    config.write_text(
        f"name: tiny\nengine: torch\ndtype: float32\ntarget: {{model: {tiny_target}}}\n"
        f"draft: {{model: {tiny_draft}}}\n"
    )
    task.write_text('{"prompt": "a"}\n')
    app = mine_labels.typer.Typer()
    app.command()(mine_labels.main)
    done = CliRunner().invoke(
        app, ["--out", str(tmp_path / "o"), "--deployment", str(config), "--task", str(task)]
    )
    assert done.exit_code != 0
    assert "needs --parser" in str(done.exception) + done.output


@pytest.mark.parametrize(
    ("parser", "text", "answer"),
    [
        ("number", "First 3, then 1,200.50 in all", "1200.5"),
        ("number", "So -7.", "-7"),
        ("number", "none", None),
        ("choice", "A is wrong, so it is C.", "C"),
        ("choice", "Call it a day.", None),
        ("exact", "  The  Café ", "the cafe"),
        ("exact", " ", None),
    ],
)
def test_parsers(parser, text, answer):
    assert court_answers.PARSERS[parser](text) == answer


def test_what_a_fact_answer_says():
    rivals = court_answers.rivals_by_domain()
    asked = {q.prompt: q for q in questions()}
    question = asked["Name the capital of Norway."]
    text = "It is Stockholm, not Oslo."
    assert court_answers.said(question, text, rivals["capitals"]) == "Stockholm"
    assert court_answers.said(question, "The capital is nice.", rivals["capitals"]) is None
    number = asked["What is the atomic number of gold?"]
    assert court_answers.said(number, "It is 80 or 79.", []) == "80"
