"""Mining labels from a draft's mismatches: exact swaps on the tiny pair, resumed runs, parsers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("num2words", reason="facts come from the build extra")

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.parsers import final_answer
from judge_decoding.evaluation.task import write_task
from judge_decoding.files import whole
from judge_decoding.ranks.shared_memory import Segments
from judge_decoding.torch_engine.engine import load_target
from judge_decoding.training.court.facts import questions
from judge_decoding.training.court.items import item_of, rivals_by_domain
from judge_decoding.training.labels import LabelRecord, read_labels
from judge_decoding.training.mining import run as run_module
from judge_decoding.training.mining import work
from judge_decoding.training.mining.engines import BatchedLlama, open_engines
from judge_decoding.training.mining.jobs import ChosenPrompts, MiningJob, fact_jobs, task_jobs
from judge_decoding.training.mining.label_file import DONE, LabelFile
from judge_decoding.training.mining.search import NEXT_TOKENS, Cost, Mined, Miner, Swap, run_all
from judge_decoding.training.mining.tau import labelled_tokens, score
from judge_decoding.training.mining.work import MiningSettings, records_of
from judge_decoding.training.target_reader import ReadRequest, load_reader
from tests.commands_world import Done, run_command
from tests.rank_world import LOCAL_ONLY

SCRIPT = Path(__file__).parents[2] / "build" / "mine_labels.py"
LIMITS = {"dtype": "float32", "max_sequences": 3, "max_context": 128}
PROMPTS = [[5, 9, 200], [7] * 20 + [3], [90], list(range(30, 41)), [60, 61]]
TOKENS = 16


@dataclass(frozen=True)
class Parsed(MiningJob):
    """A job whose final answer is parsed by any function of the text."""

    parse: Callable[[str], str | None] = lambda text: None
    settles: bool = False

    def answer(self, text: str) -> str | None:
        return self.parse(text)

    def settled(self, text: str) -> bool:
        return self.settles and self.parse(text) is not None


def job(number: int = 0, **changes) -> Parsed:
    item = Item(id=str(number), group="g", domain="d", prompt=str(number), parser="none")
    return Parsed(item, "train", **changes)


def miner(**changes) -> Miner:
    values = {
        "end_ids": frozenset({0}),
        "decode": lambda ids: " ".join(map(str, ids)),
        "max_tokens": TOKENS,
        "draft_len": 4,
        "tau": 0.0,
        "floor": -1e9,
    }
    return Miner(**(values | changes))


def engines(draft: Path, target: Path, sequences: int = 3):
    deployment = Deployment(
        name="tiny",
        dtype="float32",
        target={"model": str(target)},
        draft={"model": str(draft)},
    )
    return open_engines(deployment, sequences, 128)


def mine(draft: Path, target: Path, method: str, parse=None, settles=False, **changes):
    """Mines all prompts, more than are in flight -> (prompt, mined), in order of the prompts."""
    opened = engines(draft, target)
    found = getattr(miner(**changes), method)
    jobs = [
        (one, lambda number, p=prompt, one=one: found(number, p, one))
        for prompt, one in [
            (p, job(n, parse=parse or (lambda text: None), settles=settles))
            for n, p in enumerate(PROMPTS)
        ]
    ]
    done = run_all(jobs, opened.engines.drafter, opened.engines.target, opened.reader)
    results = {int(one.item.prompt): mined for one, mined in done}
    return [(PROMPTS[n], results[n]) for n in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def own(tiny_target: Path) -> list[list[int]]:
    """The target's own answers, without end tokens."""
    decoder = SpeculativeDecoder(Engines(None, load_target(Checkpoint(tiny_target), **LIMITS)))
    found = [decoder.generate([Request(p, TOKENS, Acceptance("none"))])[0] for p in PROMPTS]
    return [[i for i in r.token_ids if i != 0] for r in found]


def strict_greedy(tiny_target: Path, text: list[int], room: int) -> list[int]:
    if room < 1:
        return []
    decoder = SpeculativeDecoder(Engines(None, load_target(Checkpoint(tiny_target), **LIMITS)))
    [result] = decoder.generate([Request(text, room, Acceptance("none"))])
    return [i for i in result.token_ids if i != 0]


@pytest.mark.parametrize("floor", [-1e9, -math.inf])
def test_the_search_is_that_of_fresh_passes(tiny_target, tiny_draft, own, floor):
    """Replayed without caches between passes, with a floor that all swaps pass and without one."""
    mined = mine(tiny_draft, tiny_target, "search", parse=first_five, floor=floor)
    assert sum(len(m.swaps) for _, m in mined) > 5
    assert {s.good for _, m in mined for s in m.swaps} == {True, False}
    for (prompt, found), answer in zip(mined, own, strict=True):
        reference = first_five(" ".join(map(str, answer)))
        text = list(answer)
        for swap in found.swaps:
            assert swap.ids[:-1] == text[: swap.at]
            assert swap.ids[-1] != text[swap.at]
            rest = strict_greedy(tiny_target, prompt + swap.ids, TOKENS - len(swap.ids))
            swapped = swap.ids + rest
            assert swap.good == (first_five(" ".join(map(str, swapped))) == reference)
            if swap.good:
                text = swapped
        assert found.response == text


def first_five(text: str) -> str | None:
    """The parity of the first five tokens settles the answer, once there are five."""
    ids = [int(i) for i in text.split()]
    return str(sum(ids[:5]) % 2) if len(ids) >= 5 else None


def test_an_answer_that_is_settled_is_neither_continued_nor_searched(tiny_target, tiny_draft, own):
    whole = mine(tiny_draft, tiny_target, "search", parse=first_five)
    mined = mine(tiny_draft, tiny_target, "search", parse=first_five, settles=True)
    for (_, found), (_, long), answer in zip(mined, whole, own, strict=True):
        assert len(found.response) == min(5, len(answer))
        assert found.swaps == [s for s in long.swaps if s.at < 5]


def test_every_prompt_in_flight_is_in_every_pass_of_the_target(tiny_target, tiny_draft):
    """The draft is served until it has no requests left, before the target's pass."""
    opened = engines(tiny_draft, tiny_target, len(PROMPTS)).engines
    seen: list[str] = []
    verify, propose = opened.target.verify, opened.drafter.propose

    def spy(kind, run):
        def call(requests):
            seen.append(kind * len(requests))
            return run(requests)

        return call

    opened.target.verify, opened.drafter.propose = spy("v", verify), spy("p", propose)
    one, cost = job(parse=first_five), Cost()
    jobs = [(one, lambda n, p=p: miner().search(n, p, one)) for p in PROMPTS]
    assert len(list(run_all(jobs, opened.drafter, opened.target, cost=cost))) == len(PROMPTS)
    sizes = [len(s) for s in seen if s[0] == "v"]
    assert sizes == sorted(sizes, reverse=True)  # only finished prompts leave
    assert cost.target_passes == len(sizes)
    assert cost.draft_calls == len(seen) - len(sizes)
    assert cost.target_tokens > sum(map(len, PROMPTS))


def test_attention_over_all_sequences_is_attention_over_each(tiny_target, tiny_draft):
    """One pass holds single rows, several rows and a whole prompt, with slots out of order."""
    plain = load_target(Checkpoint(tiny_target), dtype="float32", max_sequences=4, max_context=64)
    batched = engines(tiny_draft, tiny_target, 4).engines.target
    assert type(batched.model) is BatchedLlama
    passes = [
        [(7, 0, [5, 6, 7]), (3, 0, [9])],
        [(3, 1, [1, 2]), (5, 0, list(range(20, 60))), (7, 3, [8])],
        [(5, 40, [4]), (7, 2, [1, 2]), (9, 0, [3]), (3, 3, [2])],
    ]
    for parts in passes:
        rows = [len(p[2]) for p in parts]
        torch.testing.assert_close(
            batched._read(parts, rows), plain._read(parts, rows), atol=1e-4, rtol=1e-4
        )


def test_without_an_answer_there_is_no_reference(tiny_target, tiny_draft, own):
    mined = mine(tiny_draft, tiny_target, "search", parse=lambda text: None)
    assert [m.response for _, m in mined] == own
    assert not any(m.swaps for _, m in mined)


def test_tokens_below_the_floor_are_no_labels(tiny_target, tiny_draft):
    mined = mine(tiny_draft, tiny_target, "search", parse=first_five, floor=0.0)
    assert not any(m.swaps for _, m in mined)


def test_the_likelihood_score_is_that_of_a_fresh_pass(tiny_target, tiny_draft, own):
    """No swap is kept (tau is out of reach): each score is the difference of two whole readings."""
    mined = mine(tiny_draft, tiny_target, "judge_likelihood", tau=1e9)
    assert [m.response for _, m in mined] == own
    reader = load_reader(Checkpoint(tiny_target), **LIMITS)

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
            last = swap.at + 1 + NEXT_TOKENS
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


def test_a_labelled_token_has_the_score_that_likelihood_would_give_it(tiny_target, tiny_draft):
    """`--tau-from` scores tokens of a search: on the target's own text, as `likelihood` does."""
    mined = mine(tiny_draft, tiny_target, "judge_likelihood")
    # The score of `likelihood` ends with the answer; so far from its end, both read 20 tokens.
    swaps = [(prompt, s) for prompt, m in mined for s in m.swaps]
    far = mine(tiny_draft, tiny_target, "judge_likelihood", max_tokens=TOKENS + NEXT_TOKENS + 1)
    expected = {(tuple(prompt), tuple(s.ids)): s.score for prompt, m in far for s in m.swaps}
    opened = engines(tiny_draft, tiny_target)
    start = [
        (job(n), lambda sequence, p=prompt, s=swap: miner().score(sequence, p, s.ids))
        for n, (prompt, swap) in enumerate(swaps)
    ]
    done = run_all(start, opened.engines.drafter, opened.engines.target, opened.reader)
    found = {one.item.id: m.swaps[0] for one, m in done}
    assert len(found) > 5
    for n, (prompt, swap) in enumerate(swaps):
        same = found[f"{n}"]
        assert same.ids == swap.ids
        assert same.score == pytest.approx(expected[tuple(prompt), tuple(swap.ids)], abs=1e-3)


SETTINGS = MiningSettings(
    deployment=Path("c.yaml"),
    method="search",
    tau=0.0,
    floor=-7.0,
    max_tokens=8,
    max_context=64,
    draft_len=4,
    most=8,
    in_flight=4,
    seed=0,
    threads=1,
)


def test_records_say_what_was_found():
    swaps = [
        Swap(1, True, [4, 9]),
        Swap(3, False, [4, 9, 6, 8]),
        Swap(2, False, [4, 9, 7]),
        Swap(0, True, [3]),
    ]
    mined = Mined([4, 9, 6, 5], swaps)
    made = records_of(job(), mined, SETTINGS, str)
    assert [r.response_ids for r in made] == [[3], [4, 9, 7], [4, 9, 6, 8], [4, 9, 6, 5]]
    assert [[(s.start, s.label, s.origin) for s in r.spans] for r in made] == [
        [(0, "good", "mined_search")],
        [(2, "bad", "mined_search")],
        [(3, "bad", "mined_search")],
        [(1, "good", "mined_search")],
    ]
    assert {(r.group, r.split, r.chat) for r in made} == {("g", "train", True)}
    few = replace(SETTINGS, most=1)
    assert len(records_of(job(), mined, few, str)) == 2


@pytest.mark.parametrize(("line", "chat"), [("", True), ("chat_template: none", False)])
def test_records_say_whether_their_prompt_is_raw_text(
    tiny_target, tiny_draft, tmp_path, line, chat
):
    """Training reads the records without the deployment, so they must say it."""
    path = tmp_path / "c.yaml"
    path.write_text(
        f"name: tiny\ndtype: float32\ntarget: {{model: {tiny_target}}}\n"
        f"draft: {{model: {tiny_draft}}}\n{line}\n"
    )
    settings = replace(SETTINGS, deployment=path, method="likelihood")
    made = [r for records, _ in work.mine([job()], settings) for r in records]
    assert {record.chat for record in made} == {chat}


@pytest.fixture
def tiny(tiny_target: Path, tiny_draft: Path, tmp_path: Path) -> Path:
    """A folder with c.yaml and a task of eight sums, which the random target never solves."""
    (tmp_path / "c.yaml").write_text(
        f"name: tiny\nengine: torch\ndtype: float32\ntarget: {{model: {tiny_target}}}\n"
        f"draft: {{model: {tiny_draft}}}\nmax_draft_len: 4\n"
    )
    sums = [
        Item(
            id=str(n),
            group=f"g{n}",
            domain="sums",
            prompt=f"{n} + 1 = ?",
            answer=str(n + 1),
            parser="exact",
            chat=n > 0,
        )
        for n in range(8)
    ]
    write_task(tmp_path / "sums.jsonl", sums)
    return tmp_path


def run(folder: Path, *options: str) -> Done:
    """mine_labels.py on the tiny pair, in this process."""
    common = ["--out", str(folder / "o.jsonl"), "--deployment", str(folder / "c.yaml")]
    return run_command("mine-labels", *common, "--max-tokens", "12", *options)


SUMS = ("--split", "all", "--in-flight", "4", "--floor=-inf", "--task")


def test_a_task_is_searched_and_the_cost_is_told(tiny):
    done = run(tiny, *SUMS, str(tiny / "sums.jsonl"), "--json")
    assert done.code == 0, done.stderr
    records = read_labels([tiny / "o.jsonl"])
    assert {r.prompt for r in records} == {f"{n} + 1 = ?" for n in range(8)}
    assert {r.chat for r in records if r.prompt.startswith("0")} == {False}
    assert {r.split for r in records} == {"train", "heldout"}
    cost = json.loads(done.stdout.splitlines()[-1])
    assert cost["prompts"] == 8
    assert cost["labels"] == cost["good"] + cost["bad"] > 8
    assert cost["bad"] == sum(s.label == "bad" for r in records for s in r.spans)
    assert cost["target_passes"] > 0 and cost["seconds_per_label"] > 0


def test_tau_comes_from_the_bad_labels_of_a_search_and_stays(tiny, monkeypatch):
    monkeypatch.setattr("judge_decoding.training.mining.tau.FEWEST", 5)
    searched = tiny / "searched.jsonl"
    run(tiny, *SUMS, str(tiny / "sums.jsonl"), "--out", str(searched))
    (tiny / "open.jsonl").write_text("".join(f'{{"prompt": "Say {n}"}}\n' for n in range(6)))
    common = ["--method", "likelihood", "--task", str(tiny / "open.jsonl"), "--split", "all"]
    common += ["--in-flight", "4", "--tau-from", str(searched)]
    done = run(tiny, *common, "--bad-recall", "0.5", "--estimate", "2", "--json")
    assert done.code == 0, done.stderr
    note = json.loads((tiny / "o.jsonl.run.json").read_text())
    settings = replace(SETTINGS, deployment=tiny / "c.yaml", max_context=512, max_tokens=12)
    tokens = labelled_tokens(searched, 0)
    scores = score(tokens, settings)
    bad = sorted(s for s, token in zip(scores, tokens, strict=True) if not token.good)
    tau = float(note["tau"])
    below = sum(s <= tau for s in bad) / len(bad)
    assert len(bad) >= 5 and below == pytest.approx(0.5, abs=1 / len(bad))
    assert f"tau {tau:g}: above it are" in done.stdout
    # The estimate has mined two prompts, written nothing, and scaled them to all.
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["prompts"] == 6 and told["labels"] > 0 and told["seconds"] > 0
    assert (tiny / "o.jsonl").read_text() == ""
    # A run that continues keeps its tau without scoring again; another recall is another run.
    monkeypatch.setattr("judge_decoding.training.mining.run.find_tau", None)
    done = run(tiny, *common, "--bad-recall", "0.5")
    assert done.code == 0, done.stderr
    assert {r.prompt for r in read_labels([tiny / "o.jsonl"])} == {f"Say {n}" for n in range(6)}
    monkeypatch.undo()
    monkeypatch.setattr("judge_decoding.training.mining.tau.FEWEST", 5)
    done = run(tiny, *common, "--bad-recall", "0.4")
    assert done.code == 2 and "was mined with" in done.stderr


def test_what_does_not_fit_and_labels_that_give_no_tau_are_said(tiny):
    task = str(tiny / "sums.jsonl")
    done = run(tiny, *SUMS, task, "--max-context", "32", "--max-tokens", "30")
    assert done.code == 2 and "give --max-context" in done.stderr
    write_task(tiny / "empty.jsonl", [])
    common = ("--task", task, "--split", "all", "--tau-from", str(tiny / "empty.jsonl"))
    done = run(tiny, *common, "--method", "likelihood")
    assert done.code == 2 and "0 bad labels of --method search" in done.stderr
    done = run(tiny, *common)
    assert done.code == 2 and "--tau-from needs --method likelihood" in done.stderr


def test_shards_are_the_whole(tiny):
    task = str(tiny / "sums.jsonl")
    assert run(tiny, *SUMS, task).code == 0
    whole = (tiny / "o.jsonl").read_text().splitlines()
    parts = []
    for n in range(3):
        assert run(tiny, *SUMS, task, "--fresh", "--shard", f"{n}/3").code == 0
        parts += (tiny / "o.jsonl").read_text().splitlines()
    assert sorted(parts) == sorted(whole)


def test_labels_of_another_run_are_not_gone_on_with(tiny):
    task = str(tiny / "sums.jsonl")
    assert run(tiny, *SUMS, task, "--limit", "2").code == 0
    before = (tiny / "o.jsonl").read_text()
    other = run(tiny, *SUMS, task, "--draft-len", "2")
    assert "was mined with draft_len 4, now it is 2" in other.stderr
    assert (tiny / "o.jsonl").read_text() == before
    assert run(tiny, *SUMS, task, "--draft-len", "2", "--fresh", "--limit", "1").code == 0
    assert {r.prompt for r in read_labels([tiny / "o.jsonl"])} == {"0 + 1 = ?"}
    (tiny / "o.jsonl.run.json").unlink()
    assert "unknown run" in run(tiny, *SUMS, task).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--method", "guess"), "--method: 'guess' is not one of search, likelihood"),
        (("--split", "some"), "--split: 'some' is not one of train, heldout, all"),
        (("--shard", "3/3"), "--shard '3/3'"),
        (("--mpi",), "two ranks or more of mpiexec"),
        (("--out", "o.jsonl.gz"), "o.jsonl.gz would be compressed"),
        (("--task", "nowhere.jsonl.gz"), "nowhere.jsonl.gz: it cannot be read"),
    ],
)
def test_a_users_mistake_is_one_clear_line(tiny, options, message):
    done = run(tiny, *options)
    assert done.code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_tensorrt_llm_cannot_give_is_said_before_it_is_loaded(tiny, monkeypatch):
    """The deployment is given by the name of a shipped one, in another folder."""
    monkeypatch.chdir(tiny)
    for options, message in (
        (("--method", "likelihood"), "no likelihoods of given tokens"),
        ((), "give --floor=-inf"),
        (("--floor=-inf", "--mpi"), "two ranks or more"),
    ):
        done = run(tiny, "--deployment", "llama-1b-8b", *options)
        assert message in done.stderr


def test_code_is_run_only_where_that_is_allowed(tiny):
    item = Item(id="a", group="a", domain="code", prompt="f", parser="python", tests="assert f()")
    write_task(tiny / "code.jsonl", [item])
    done = run(tiny, "--task", str(tiny / "code.jsonl"), "--split", "all")
    assert "allow it by --run-code" in done.stderr
    one = MiningJob(item, "train", run_code=True)
    assert one.answer("```python\ndef f():\n    return 1\n```") == "passes"
    assert one.answer("```python\ndef f():\n    return 0\n```") == "fails"
    assert one.answer("") is None


def test_a_run_writes_labels_and_goes_on_where_it_was_cut_off(tiny: Path) -> None:
    task, out = tiny / "task.jsonl", tiny / "o.jsonl"
    rows = [{"prompt": f"Say {n}."} for n in range(6)] + [{"prompt": "no", "held_out": "prompt"}]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--task", str(task), "--split", "all", "--method", "likelihood", "--in-flight", "4")
    options += ("--json",)
    done = run(tiny, *options)
    assert done.code == 0, done.stderr
    records = read_labels([out])
    assert {r.prompt for r in records} == {f"Say {n}." for n in range(6)}
    assert {r.domain for r in records} == {"chat"}
    assert {s.origin for r in records for s in r.spans} == {"mined_likelihood"}
    whole = out.read_text()
    out.write_text(whole[: int(len(whole) * 0.6)])  # within a prompt's records
    done = run(tiny, *options)
    assert done.code == 0, done.stderr
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())
    assert json.loads(done.stdout.splitlines()[-1])["prompts"] < 6
    refused = run(tiny, "--task", str(task), "--split", "all")
    assert "prompts without a parser" in refused.stderr


def test_what_is_mined_and_what_is_held_out_is_said(tiny: Path) -> None:
    """Regression: of 60 prompts it said "23 prompts", and not what happened to the others."""
    task = tiny / "task.jsonl"
    task.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(60)))
    options = ("--task", str(task), "--method", "likelihood", "--in-flight", "4")
    jobs = task_jobs(str(task), 0, False)
    trained = sum(job.split == "train" for job in jobs)
    first = run(tiny, *options, "--limit", "2").stdout.splitlines()[0]
    assert first == (
        f"60 prompts: 2 to mine, {trained - 2} left out (--limit, --shard), {60 - trained} held "
        "out (--split train)"
    )
    second = run(tiny, *options, "--limit", "3").stdout.splitlines()[:2]
    assert second[1] == f"2 of them are in {tiny / 'o.jsonl'} already"
    whole = ChosenPrompts(jobs, in_task=60, in_split=60)
    assert whole.summary("all") == "60 prompts: 60 to mine"
    heldout = ChosenPrompts(jobs[:37], in_task=60, in_split=37)
    assert heldout.summary("heldout") == "60 prompts: 37 to mine, 23 to train on (--split heldout)"


def test_a_prompt_without_a_chat_turn_is_mined_as_raw_text(tiny: Path) -> None:
    task = tiny / "task.jsonl"
    rows = [{"prompt": "one two", "chat": False}, {"prompt": "three"}]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--task", str(task), "--split", "all", "--method", "likelihood")
    assert run(tiny, *options).code == 0
    found = {(record.prompt, record.chat) for record in read_labels([tiny / "o.jsonl"])}
    assert found == {("one two", False), ("three", True)}
    task.write_text('{"prompt": "one", "chat": "no"}\n')
    refused = run(tiny, *options)
    assert refused.code == 2
    assert "prompt 'one' has chat 'no', not true or false" in refused.stderr


def test_ctrl_c_says_how_to_go_on(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done by then is on disk, and the same command mines the rest."""
    mined = run_module.mine

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for number, found in enumerate(mined(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield found

    task = str(tiny / "sums.jsonl")
    monkeypatch.setattr(run_module, "mine", interrupted)
    done = run(tiny, *SUMS, task)
    assert done.code == 130
    assert done.stderr == f"stopped; {tiny / 'o.jsonl'} holds what is done: run again to go on\n"
    assert len({record.prompt for record in read_labels([tiny / "o.jsonl"])}) == 3
    monkeypatch.undo()
    done = run(tiny, *SUMS, task, "--in-flight", "3")  # opens new engines: the others are in use
    assert done.stdout.splitlines()[1] == f"3 of them are in {tiny / 'o.jsonl'} already"
    assert len({record.prompt for record in read_labels([tiny / "o.jsonl"])}) == 8


def test_what_is_rewritten_is_whole_at_every_moment(tmp_path, monkeypatch):
    """A continued run dies while it rewrites the kept records, and they are still there."""
    record = LabelRecord(
        id="a-mined",
        group="g",
        domain="d",
        prompt="p",
        response="r",
        response_ids=[1],
        spans=[],
        split="train",
    )
    path = tmp_path / "o.jsonl"
    file = LabelFile(path, {"x": 1})
    file.add([record])
    file.close()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        LabelFile(path, {"x": 1})
    monkeypatch.undo()
    assert LabelFile(path, {"x": 1}).known == {"p"}
    with pytest.raises(UserError, match="mined with x 1, now it is 2"):
        LabelFile(path, {"x": 2})


def test_an_answer_is_settled_when_its_word_has_ended():
    rivals = rivals_by_domain()
    asked = {q.prompt: q for q in questions()}

    def settled(prompt: str, text: str) -> bool:
        question = asked[prompt]
        return MiningJob(item_of(question, rivals[question.domain]), "train").settled(text)

    gold = "What is the atomic number of gold?"
    assert [settled(gold, t) for t in ("It is ", "It is 7", "It is 79", "It is 79.")] == [
        False,
        False,
        False,
        True,
    ]
    norway = "Name the capital of Norway."
    assert not settled(norway, "The capital of Norway is Oslo")
    assert settled(norway, "The capital of Norway is Oslo,")
    assert settled(norway, "The capital of Norway is Stockholm. ")
    number = Item(id="a", group="a", domain="d", prompt="p", answer="1", parser="number")
    assert not MiningJob(number, "train").settled("It is 1. ")


def test_the_choices_that_occur_are_enough():
    """`MiningJob.answer` tries only those; it must agree with trying all choices."""
    rivals = rivals_by_domain()
    for question in questions()[:40]:
        item = item_of(question, rivals[question.domain])
        for text in (
            question.answer,
            f"It is {question.wrong[0]} or {question.answer}.",
            "I do not know.",
            f"No {question.answer.lower()}, {question.wrong[-1].upper()}.",
        ):
            assert MiningJob(item, "train").answer(text) == final_answer(item, text)


def test_which_items_are_held_out():
    jobs = fact_jobs(0)
    plurals = [j for j in jobs if j.item.domain == "plurals"]
    assert len(plurals) == 190
    assert {j.split for j in plurals} == {"heldout"}
    assert {j.split for j in jobs if j.item.domain == "capitals"} == {"train", "heldout"}
    shipped = task_jobs("court", 0, False)
    assert {j.split for j in shipped} == {"heldout"}


def test_what_a_fact_answer_says():
    rivals = rivals_by_domain()
    asked = {q.prompt: q for q in questions()}
    question = asked["Name the capital of Norway."]
    norway = item_of(question, rivals["capitals"])
    assert final_answer(norway, "It is Stockholm, not Oslo.") == "Stockholm"
    assert final_answer(norway, "The capital is nice.") is None
    gold = item_of(asked["What is the atomic number of gold?"], [])
    assert final_answer(gold, "It is 80 or 79.") == "80"


class Ranks:
    """mine_labels.py under mpiexec, in its own session; it is always cleaned up."""

    def __init__(self, folder: Path, ranks: int, *options: str) -> None:
        self.mark = f"MINE_LABELS_TEST={uuid.uuid4().hex}".encode()
        name, value = self.mark.decode().split("=")
        mpiexec = Path(sys.executable).parent / "mpiexec"
        script = [sys.executable, "-m", "mpi4py.futures", str(SCRIPT), "--mpi"]
        common = ["--out", str(folder / "o.jsonl"), "--deployment", str(folder / "c.yaml")]
        self.log = folder / f"{value}.log"
        self.segments = Segments(lambda: self.pids().values())
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(mpiexec), "-n", str(ranks), *script, *common, "--max-tokens", "12", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | LOCAL_ONLY | {name: value},
            )

    def pids(self) -> dict[int, int]:
        """Process ids of the ranks that still run."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = next((v[9:] for v in variables if v.startswith(b"PMI_RANK=")), None)
            if state != "Z" and self.mark in variables and rank is not None:
                found[int(rank)] = int(folder.name)
        return found

    def wait(self, limit_s: float) -> int:
        """The exit code. Looks for MPICH's shared memory meanwhile, which stays after a death."""
        deadline = time.monotonic() + limit_s
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, self.log.read_text()
            self.segments.look()
            time.sleep(0.02)
        return code

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(30)
        self.segments.remove()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.slow
def test_three_ranks_mine_what_one_process_does_and_a_killed_one_loses_nothing(tiny: Path) -> None:
    task, out = tiny / "task.jsonl", tiny / "o.jsonl"
    task.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(80)))
    options = ("--task", str(task), "--split", "all", "--method", "likelihood", "--in-flight", "2")
    assert run(tiny, *options).code == 0
    expected = sorted(lines(out))
    out.unlink()
    # 1. A worker is killed once something is written, long before the end.
    with Ranks(tiny, 3, *options, "--share", "1") as world:
        deadline = time.monotonic() + 240
        while len(lines(out)) < 5:
            assert world.process.poll() is None, world.log.read_text()
            assert time.monotonic() < deadline, world.log.read_text()
            world.segments.look()
            time.sleep(0.005)
        os.kill(world.pids()[2], signal.SIGKILL)
        assert world.wait(60) != 0
        before = lines(out)
        deadline = time.monotonic() + 30
        while world.pids():
            assert time.monotonic() < deadline, "ranks are left"
            time.sleep(0.05)
    assert 5 <= len(before) < len(expected)
    assert set(before) <= set(expected)  # whole lines, and the right ones
    # 2. Three ranks continue: nothing that was written is mined again, and in the end all is there.
    kept = {r.prompt for r in read_labels([out]) if r.id.endswith(DONE)}
    with Ranks(tiny, 3, *options, "--share", "7", "--json") as world:
        assert world.wait(240) == 0, world.log.read_text()
        cost = json.loads(world.log.read_text().splitlines()[-1])
    assert cost["prompts"] == 80 - len(kept) > 0
    assert sorted(lines(out)) == expected


def test_a_mistake_under_mpiexec_ends_all_ranks_with_one_line(tiny: Path) -> None:
    with Ranks(tiny, 2, "--task", "nowhere.jsonl") as world:
        assert world.wait(120) == 2
        text = world.log.read_text()
    assert "nowhere.jsonl" in text
    assert "Traceback" not in text
