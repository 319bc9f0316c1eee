"""The controlled task, its labels, the pair under strict, and a gate that can fail."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from judge_decoding.config import load_deployment
from judge_decoding.decoding.sequence import AcceptanceRecord
from judge_decoding.evaluation.evaluate import Answers, Evaluation, evaluate
from judge_decoding.evaluation.gate import NEVER, choose_threshold, groups_needed
from judge_decoding.evaluation.systems import systems_of
from judge_decoding.evaluation.task import read_task
from judge_decoding.pipeline import Pipeline, load_pipeline
from judge_decoding.text import Tokenizer
from judge_decoding.training.controlled.labels import (
    DraftAnswer,
    labels_of,
    leads_astray,
    true_words,
)
from judge_decoding.training.controlled.pair import END, Encoder, make_tokenizer
from judge_decoding.training.controlled.task import (
    LARGEST,
    TASK_SEED,
    Problem,
    StepReader,
    first_false,
    problems,
    task_items,
    weights,
    write,
)
from judge_decoding.training.controlled.wordings import WORDINGS, text_of, vocabulary, words_of

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs" / "controlled.yaml"
MODELS = ROOT / "models"
PROBLEM = Problem("Mia", "shells", 7, (5, -3), ("buys", "sells"), 0)
TRUE = (
    "Mia starts with 7 shells . On Monday she gains 5 more , which makes 12 in all . "
    "Come Tuesday , the total falls by 3 to 9 . So the answer is 9 ."
)


# The task.


def test_a_question_and_its_true_answer() -> None:
    assert PROBLEM.question == (
        "Mia has 7 shells. On Monday she buys 5. On Tuesday she sells 3. "
        "How many shells does Mia have now?"
    )
    assert first_false(PROBLEM, TRUE.split()) is None
    reader = StepReader(PROBLEM)
    assert all(reader.push(word) and not reader.complete for word in TRUE.split()[:-1])
    assert reader.push(".") and reader.complete and not reader.push(".")


@pytest.mark.parametrize(
    ("true", "false"),
    [
        ("makes 12", "makes 13"),  # a sum
        ("gains 5", "gains 6"),  # what came
        ("with 7", "with 8"),  # the start
        ("she gains", "she loses"),  # the direction
        ("total falls", "total rises"),
        ("On Monday", "On Tuesday"),  # the order
        ("7 shells", "7 coins"),
        ("is 9", "is 12"),  # the end
    ],
)
def test_a_false_word_is_found_where_it_stands(true: str, false: str) -> None:
    assert TRUE.count(true) == 1
    at = len(TRUE[: TRUE.index(true)].split())
    wrong = TRUE.replace(true, false).split()
    place = next(i for i, (a, b) in enumerate(zip(TRUE.split(), wrong, strict=True)) if a != b)
    assert first_false(PROBLEM, wrong) == place in (at, at + 1)


def test_a_step_may_be_told_in_any_wording() -> None:
    other = TRUE.replace("On Monday she gains 5 more", "Then on Monday 5 new shells turn up")
    assert other != TRUE and first_false(PROBLEM, other.split()) is None


def test_what_is_written_is_read_as_true_and_a_slip_is_not() -> None:
    rng = random.Random(7)
    known = set(vocabulary())
    slipped = 0
    for problem in itertools.islice(problems(7, held_out=False), 60):
        assert all(0 <= total <= LARGEST for total in problem.totals)
        for writer in ("target", "draft"):
            words = write(problem, writer, rng)
            assert first_false(problem, words) is None and set(words) <= known
            assert words_of(text_of(words)) == words
        words = write(problem, "target", rng, slips=True)
        assert words[-2] == str(problem.answer) and set(words) <= known
        slipped += first_false(problem, words) is not None
    assert 10 < slipped < 45


def test_the_two_writers_prefer_different_wordings() -> None:
    favourite = {
        writer: max(range(8), key=lambda i: _weights(writer, "when", "Monday")[i])
        for writer in ("target", "draft")
    }
    assert favourite["target"] != favourite["draft"]


def _weights(writer: str, slot: str, day: str) -> tuple[float, ...]:
    return weights(writer, slot, day, len(WORDINGS[slot]))


def test_the_shipped_task_is_the_generators_and_is_held_out() -> None:
    items = read_task("controlled")
    assert items == task_items()
    assert len({item.prompt for item in items}) == len(items) == 900
    trained = itertools.islice(problems(0, held_out=False), 3000)
    assert not {problem.question for problem in trained} & {item.prompt for item in items}


def test_some_number_sequences_are_in_both_halves() -> None:
    """A known limit (docs/controlled.md): problems of both halves differ by name or thing, but may
    share their numbers."""
    asked = dict(zip([i.prompt for i in task_items()], task_problems(), strict=True))
    halves: dict[tuple[int, tuple[int, ...]], list[str | None]] = {}
    for item in read_task("controlled"):
        problem = asked[item.prompt]
        halves.setdefault((problem.start, problem.changes), []).append(item.split)
    shared = [splits for splits in halves.values() if len(set(splits)) == 2]
    assert (len(shared), sum(splits.count("report") for splits in shared)) == (31, 32)


def test_labels_say_where_the_draft_went_wrong() -> None:
    tokenizer, ids = Tokenizer(MODELS / "controlled-target"), Encoder()(TRUE.split())
    assert tokenizer.decode(ids) == text_of(TRUE.split())
    assert true_words(tokenizer, PROBLEM, [*ids, END]) == len(ids) + 1
    assert true_words(tokenizer, PROBLEM, [*ids[:5], END]) == 5  # it ends too early
    (wrong,) = Encoder()(["13"])
    good, bad = labels_of(tokenizer, [DraftAnswer(PROBLEM, [*ids, END], [(15, wrong)])])
    assert [(s.start, s.end, s.label) for s in good.spans] == [(0, len(ids) + 1, "good")]
    assert [(s.start, s.end, s.label) for s in bad.spans] == [(15, 16, "bad")]
    assert bad.response.endswith("which makes 13") and len(bad.response_ids) == 16


def test_a_word_leads_astray_where_the_target_goes_on_falsely_by_itself() -> None:
    tokenizer, encode = Tokenizer(MODELS / "controlled-target"), Encoder()
    ids = [*encode(TRUE.split()), END]
    own = ids.copy()
    # The target's own choices: another wording twice, both true, then a wrong total.
    own[6], own[13], own[15] = encode(["Then", "so", "13"])
    assert [i for i, bad in enumerate(leads_astray(tokenizer, PROBLEM, ids, own)) if bad] == [13]
    # In an answer that ends too early the target's next word would have been false.
    found = leads_astray(tokenizer, PROBLEM, ids[:20], own[:20])
    assert [i for i, bad in enumerate(found) if bad] == [13, 15]


# The pair.


def test_both_folders_hold_one_tokenizer_and_are_small(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    for name in ("controlled-target", "controlled-draft"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (MODELS / name / file).read_bytes() == (tmp_path / file).read_bytes()
        assert (MODELS / name / "README.md").is_file()
    sizes = {n: (MODELS / n / "model.safetensors").stat().st_size for n in
             ("controlled-target", "controlled-draft")}  # fmt: skip
    # bfloat16: two bytes per parameter.
    assert (
        sizes["controlled-target"] <= 2 * 8_000_000 and sizes["controlled-draft"] <= 2 * 1_000_000
    )


def test_transformers_reads_the_same_model_and_tokenizer() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.torch_engine.test_llama import logits_of

    folder = MODELS / "controlled-target"
    theirs = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": PROBLEM.question}]
    ids = Tokenizer(folder).chat(chat)
    assert theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == ids
    assert theirs.decode(ids, skip_special_tokens=True) == Tokenizer(folder).decode(ids)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    assert float((logits_of(folder, torch.tensor(ids), 64) - expected).abs().max()) <= 1e-3


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """As deployed, but in float32, so that the results are the same on every machine."""
    return load_pipeline(load_deployment(CONFIG))


@pytest.fixture(scope="module")
def found(pipeline: Pipeline) -> Evaluation:
    """The first COUNT problems of the report half, answered by every system compared here."""
    items = [item for item in read_task("controlled") if item.split == "report"][:COUNT]
    return evaluate(pipeline, items, systems_of(pipeline, ["none", "strict", "judge", "draft"]))


COUNT = 64
BUDGET = 0.01


def of(found: Evaluation, name: str) -> Answers:
    return next(a for a in found.answers if a.system.rule == name)


def accuracy(answers: Answers) -> float:
    return sum(map(bool, answers.right)) / len(answers.right)


def length(answers: Answers) -> float:
    record = AcceptanceRecord()
    for result in answers.results:
        record.merge(result.record)
    return record.mean_acceptance_length


def test_strict_is_the_targets_own_output(found: Evaluation) -> None:
    own, strict = of(found, "none"), of(found, "strict")
    assert [r.token_ids for r in strict.results] == [r.token_ids for r in own.results]
    assert length(strict) > 1.5


def test_the_target_knows_and_the_draft_does_not(found: Evaluation) -> None:
    assert accuracy(of(found, "none")) >= 0.97
    assert accuracy(of(found, "draft")) <= accuracy(of(found, "none")) - 0.15


def test_the_judge_keeps_its_budget_and_goes_twice_as_far(found: Evaluation) -> None:
    judge, strict = of(found, "judge"), of(found, "strict")
    paired = found.paired(judge)
    assert paired is not None and paired.difference >= -BUDGET
    assert length(judge) >= 2 * length(strict)


def test_every_number_of_the_targets_answers(found: Evaluation) -> None:
    """Not only the last number counts: nearly all answers are true from first word to last."""
    asked = dict(zip([i.prompt for i in task_items()], task_problems(), strict=True))
    true = [
        first_false(asked[item.prompt], words_of(result.text)) is None
        for item, result in zip(found.items, of(found, "none").results, strict=True)
    ]
    assert sum(true) >= 0.95 * COUNT


def task_problems() -> list[Problem]:
    """The problems behind the task's items."""
    items = {item.prompt for item in task_items()}
    seen: dict[str, Problem] = {}
    for problem in problems(TASK_SEED, held_out=True):
        if problem.question in items:
            seen.setdefault(problem.question, problem)
        if len(seen) == len(items):
            return list(seen.values())
    raise AssertionError


def test_an_inverted_judge_fails_the_gate(pipeline: Pipeline, found: Evaluation) -> None:
    """The budget is one that so few problems can decide, since the shipped judge passes. (With one
    point no judge could pass, so a failure would mean nothing.)"""
    budget = 0.05
    assert groups_needed(budget) < COUNT < groups_needed(BUDGET)
    shipped = found.paired(of(found, "judge"))
    assert shipped is not None and choose_threshold({0.5: shipped}, budget).threshold == 0.5
    judge = pipeline.engines.target.judge
    assert judge is not None
    inverted = replace(judge, weight=-judge.weight, bias=-judge.bias)
    pipeline.engines.target.judge = inverted
    try:
        systems = systems_of(pipeline, ["none", "judge"], thresholds=(0.5,))
        bad = evaluate(pipeline, found.items, systems)
    finally:
        pipeline.engines.target.judge = judge
    paired = bad.paired(of(bad, "judge"))
    assert paired is not None and paired.difference < -0.1
    assert choose_threshold({0.5: paired}, budget).threshold == NEVER
