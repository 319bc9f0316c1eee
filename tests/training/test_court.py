"""The judge's training data: facts, spans at exactly the wrong tokens, a split without leaks."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from judge_decoding.errors import UserError
from judge_decoding.evaluation.parsers import is_right
from judge_decoding.evaluation.task import read_task
from judge_decoding.text import Tokenizer
from judge_decoding.training.court.facts import DOMAINS, questions
from judge_decoding.training.court.items import item_of
from judge_decoding.training.court.records import fact_records
from judge_decoding.training.court.spans import mistake_spans
from judge_decoding.training.court.split import HELD_OUT_DOMAIN, split_in, split_of
from judge_decoding.training.labels import (
    LabelRecord,
    Span,
    file_name,
    labels_hash,
    read_labels,
    write_labels,
)

for package in ("countryinfo", "periodictable", "inflect", "num2words"):
    pytest.importorskip(package, reason="facts come from the build extra")

SCRIPT = Path(__file__).resolve().parents[2] / "build" / "court_labels.py"


@pytest.fixture(scope="module")
def asked():
    return questions(0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of bytes and a few words, enough to see where spans begin and end."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in ("ĠLima", "ĠLisbon", "Li"):
        built = word[0]
        for letter in word[1:]:
            merges.append((built, letter))
            built += letter
            vocab.setdefault(built, len(vocab))
    fast = Fast(models.BPE(vocab=vocab, merges=merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def records(asked, tokenizer):
    some = random.Random(1).sample(asked, 200)
    return list(fact_records(some, tokenizer, seed=0, answers=2, after_error="ignore"))


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Norway", "Oslo"),
        ("Kenya", "Nairobi"),
        ("Australia", "Canberra"),
        ("Canada", "Ottawa"),
        ("Vietnam", "Hanoi"),
    ],
)
def test_capitals(asked, prompt, answer):
    found = [q for q in asked if q.domain == "capitals" and q.prompt.endswith(f" {prompt}?")]
    assert [q.answer for q in found] == [answer]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is the chemical symbol for sodium?", "Na"),
        ("Which element has the symbol Fe?", "iron"),
        ("What is the atomic number of gold?", "79"),
        ('What is the plural of "mouse"?', "mice"),
        ('What is the plural of "city"?', "cities"),
        ('What is the plural of "crisis"?', "crises"),
        ("On which continent is Ghana?", "Africa"),
        ("What is the nationality of someone from Denmark?", "Danish"),
        ("Cairo is the capital of which country?", "Egypt"),
        ("Which month comes after December?", "January"),
        ("Which day comes before Monday?", "Sunday"),
        ("How many days are there in April?", "30"),
    ],
)
def test_other_facts(asked, prompt, answer):
    assert [q.answer for q in asked if q.prompt == prompt] == [answer]


def test_sums_are_right(asked):
    checked = 0
    for q in asked:
        if q.domain == "arithmetic":
            words = q.prompt.removeprefix("What is ").removeprefix("Please work out ").rstrip("?.")
            for word, sign in (("plus", "+"), ("minus", "-"), ("times", "*")):
                words = words.replace(word, sign)
            assert eval(words) == int(q.answer)
            checked += 1
    assert checked > 150


def test_enough_of_everything(asked):
    domains = {q.domain for q in asked}
    assert len(asked) >= 800
    assert len(domains) >= 6
    assert len(DOMAINS) >= 6
    heldout = [q for q in asked if split_of(q.group, 0) == "heldout"]
    assert len(heldout) >= 300
    assert {q.domain for q in heldout} == domains
    assert len({q.prompt for q in asked}) == len(asked)


def test_some_facts_are_asked_the_other_way_round_in_the_other_half(asked):
    """A known limit (docs/labels.md): 5 + 2 and 2 + 5 are two groups, and so are the month after
    July and the month before August. One group for both would change the shipped task and
    labels."""

    def fact(q):
        if sum_of := re.fullmatch(r"sum:(\d+)([+*])(\d+)", q.group):
            x, sign, y = sum_of.groups()
            return sign, *sorted((int(x), int(y)))
        if neighbours := re.fullmatch(r"Which \w+ comes (after|before) (\w+)\?", q.prompt):
            where, name = neighbours.groups()
            return (name, q.answer) if where == "after" else (q.answer, name)
        return q.domain, q.group

    trained = {fact(q) for q in asked if split_in(q.domain, q.group, 0) == "train"}
    by_prompt = {q.prompt: q for q in asked}
    known = [item for item in read_task("court") if fact(by_prompt[item.prompt]) in trained]
    halves = Counter((item.split, item.domain) for item in known)
    assert halves == {
        ("calibrate", "arithmetic"): 10,
        ("calibrate", "calendar"): 3,
        ("report", "arithmetic"): 4,
        ("report", "calendar"): 5,
    }


def test_wrong_answers_are_wrong_and_sentences_have_one_slot(asked):
    for q in asked:
        assert q.wrong
        assert q.answer not in q.wrong
        assert len(q.sentences) >= 2
        assert all(s.count("{a}") == 1 and s.count("{") == 1 for s in q.sentences), q


def test_spans_cover_exactly_the_wrong_tokens(tokenizer):
    right = tokenizer.encode("The capital of Peru is Lima. Bye.", special=False)
    wrong_text = "The capital of Peru is Lisbon. Bye."
    wrong = tokenizer.encode(wrong_text, special=False)
    until = len("The capital of Peru is Lisbon")
    spans = mistake_spans(wrong, right, until, tokenizer, "negative")
    texts = {s.origin: tokenizer.decode(wrong[s.start : s.end]) for s in spans}
    assert texts == {
        "before_error": "The capital of Peru is",
        "error": " Lisbon",
        "after_error": ". Bye.",
    }
    assert [s.label for s in spans] == ["good", "bad", "bad"]


def test_the_part_shared_with_the_right_answer_is_no_mistake(tokenizer):
    right, wrong = (tokenizer.encode(f"It is {n}.", special=False) for n in ("146", "145"))
    spans = mistake_spans(wrong, right, len("It is 145"), tokenizer, "ignore")
    assert tokenizer.decode(wrong[spans[1].start : spans[1].end]) == "5"
    short = tokenizer.encode("It is 14.", special=False)
    assert mistake_spans(short, right, len("It is 14"), tokenizer, "ignore") == []


def test_answers_spell_out_their_labels(records, asked, tokenizer):
    by_prompt = {q.prompt: q for q in asked}
    kinds = {"right": 0, "wrong": 0}
    for record in records:
        question = by_prompt[record.prompt]
        kind = record.id.rsplit("-", 1)[1]
        kinds[kind] += 1
        assert tokenizer.decode(record.response_ids) == record.response
        bad = [s for s in record.spans if s.label == "bad"]
        if kind == "right":
            assert not bad
            assert question.answer.lower() in record.response.lower()
        else:
            assert len(bad) == 1
            piece = tokenizer.decode(record.response_ids[bad[0].start : bad[0].end])
            assert any(w.lower().endswith(piece.strip().lower()) for w in question.wrong)
            assert {label for label, _ in record.token_labels("negative")} <= {"good", "bad"}
    assert kinds["right"] == 400
    assert kinds["wrong"] > 380


def test_after_error_is_a_switch():
    record = LabelRecord(
        id="a",
        group="g",
        domain="d",
        prompt="p",
        response="r",
        response_ids=[1, 2, 3],
        spans=[
            Span(start=0, end=1, label="good", origin="before_error"),
            Span(start=1, end=2, label="bad", origin="error"),
            Span(start=2, end=3, label="ignore", origin="after_error"),
        ],
        split="train",
    )
    last = {c: record.token_labels(c)[2][0] for c in ("negative", "ignore", "error_only")}
    assert last == {"negative": "bad", "ignore": "ignore", "error_only": "good"}


def test_split_is_by_fact_and_deterministic(records, asked, tokenizer):
    splits = {}
    for record in records:
        assert splits.setdefault(record.group, record.split) == record.split
    assert set(splits.values()) == {"train", "heldout"}
    again = list(
        fact_records(
            random.Random(1).sample(questions(0), 200),
            tokenizer,
            seed=0,
            answers=2,
            after_error="ignore",
        )
    )
    assert again == records


def test_files_are_checked(records, tmp_path):
    path = tmp_path / "labels.jsonl"
    write_labels(path, records)
    assert read_labels([path]) == records
    assert labels_hash(reversed(records)) == labels_hash(records)
    packed = tmp_path / "labels.jsonl.gz"
    write_labels(packed, records)  # regression: it was plain text, which could not be read again
    assert gzip.decompress(packed.read_bytes()) == path.read_bytes()
    assert read_labels([packed]) == records and file_name(packed) == file_name(path) == "labels"
    assert file_name(Path("x/llama-3.1.v2.jsonl.gz")) == "llama-3.1.v2"  # versions stay apart
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"labels.jsonl.gz: it cannot be read \(Compressed file"):
        read_labels([packed])
    first = records[0]
    odd = first.model_copy(update={"response": "a\u2028b\x85c"})  # line ends to str.splitlines
    write_labels(path, [odd])
    assert read_labels([path]) == [odd]
    other = "heldout" if first.split == "train" else "train"
    leak = first.model_copy(update={"id": "other", "split": other})
    write_labels(path, [first, leak])
    with pytest.raises(UserError, match="in both splits"):
        read_labels([path])
    write_labels(path, [first, first])
    with pytest.raises(UserError, match="twice"):
        read_labels([path])
    raw = json.loads(first.model_dump_json())
    raw["spans"] = [{"start": 3, "end": 3, "label": "good", "origin": "x"}]
    path.write_text(json.dumps(raw) + "\n")
    with pytest.raises(UserError, match="span"):
        read_labels([path])


def by_prompt(asked, prompt):
    return next(q for q in asked if q.prompt == prompt)


@pytest.mark.parametrize(
    ("prompt", "text", "right"),
    [
        ("What is the chemical symbol for arsenic?", "The symbol for arsenic is As.", True),
        ("What is the chemical symbol for arsenic?", "As you ask: it is Ar.", False),
        ("What is the chemical symbol for iron?", "The symbol for iron is Fe, not Ir.", True),
        ("What is the atomic number of gold?", "Gold has 79 protons and 118 neutrons.", True),
        ("What is the atomic number of gold?", "The atomic number of gold is 197.", False),
        ('What is the plural of "mouse"?', "One mouse, two mice.", True),
        ("Cairo is the capital of which country?", "Cairo is the capital of egypt.", True),
        ("Cairo is the capital of which country?", "It is Sudan. Or Egypt.", False),
        ("On which continent is Ghana?", "Ghana is in West Africa.", True),
    ],
)
def test_answers_are_checked_against_the_fact(asked, prompt, text, right):
    question = by_prompt(asked, prompt)
    rivals = [q.answer for q in asked if q.domain == question.domain]
    assert is_right(item_of(question, rivals), text) is right


def test_accents_do_not_matter(asked):
    question = next(q for q in asked if q.answer == "Brasília")
    assert is_right(item_of(question, []), "The capital of Brazil is Brasilia.")


def test_there_are_enough_questions_of_enough_kinds(asked):
    assert len(asked) == len({q.prompt for q in asked}) == 2645
    assert len({q.domain for q in asked}) == 11
    wordings: dict[tuple[str, str, str], int] = {}
    for q in asked:
        fact = (q.domain, q.group, q.answer)
        wordings[fact] = wordings.get(fact, 0) + 1
    assert {n for (domain, *_), n in wordings.items() if domain != "calendar"} == {2}
    assert sum(len(q.wrong) >= 3 for q in asked) == 2615
    assert all(len(q.sentences) >= 2 for q in asked)


def test_one_domain_is_held_out_and_shares_no_fact_with_another(records, asked):
    domain = HELD_OUT_DOMAIN
    assert {r.split for r in records if r.domain == domain} == {"heldout"}
    inside = {q.group for q in asked if q.domain == domain}
    assert len(inside) == 95
    assert not inside & {q.group for q in asked if q.domain != domain}
    # By their facts alone some would be trained on, as they were before this rule.
    assert {split_of(group, 0) for group in inside} == {"train", "heldout"}
    assert split_in("symbols", "element:boron", 0) == "train"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_writes_what_the_library_makes(asked, tiny_target, tmp_path):
    out = tmp_path / "court.jsonl"
    options = ("--limit", "40", "--answers", "3", "--after-error", "negative")
    done = run("--target", str(tiny_target), "--out", str(out), *options)
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer(tiny_target)
    made = fact_records(asked[:40], tokenizer, seed=0, answers=3, after_error="negative")
    assert read_labels([out]) == list(made)
    assert "'ignore'" not in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "-1"], "--limit: -1 is below 0"),
        (["--answers", "0"], "--answers: 0 is below 1"),
        (
            ["--after-error", "bad"],
            "--after-error: 'bad' is not one of negative, ignore, error_only",
        ),
        (["--target", "nowhere"], "tokenizer: no file nowhere/tokenizer.json"),
    ],
)
def test_a_users_mistake_ends_the_script_with_2(options, message, tmp_path):
    done = run("--out", str(tmp_path / "court.jsonl"), *options)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "court.jsonl").exists()


@pytest.mark.parametrize("package", ["countryinfo", "periodictable", "inflect", "num2words"])
def test_a_missing_package_of_facts_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = f"no package {package}; pip install -e '.[build]'"
    with pytest.raises(UserError, match=re.escape(message)):
        questions()
