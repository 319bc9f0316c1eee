"""`judge-decoding eval` end to end on a tiny pair, with answers made from the target's own text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import write_deployment
from typer.testing import CliRunner, Result

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.commands.main import app
from judge_decoding.config import load_deployment
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.evaluation.evaluate import Evaluation, evaluate, report
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.overrides import overrides
from judge_decoding.evaluation.systems import parse_settings, systems_of
from judge_decoding.evaluation.task import write_task
from judge_decoding.evaluation.text_measures import repetition
from judge_decoding.pipeline import Pipeline, load_pipeline
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import load_target

ROW = {
    "rule",
    "name",
    "threshold",
    "setting",
    "accuracy",
    "accuracy_ci",
    "delta_vs_target",
    "delta_ci",
    "lost",
    "won",
    "right",
    "domains",
    "mean_acceptance_length",
    "draft_acceptance_rate",
    "tokens_per_s",
    "tokens",
    "tokens_per_answer",
    "unfinished_share",
    "target_passes",
    "passes_per_right",
    "seconds_per_right",
    "seconds",
    "judged_tokens",
    "judged_share",
    "loglikelihood",
    "repetition",
    "overrides",
    "speculative_decoding",
}
TOKENS = 24


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_draft: Path) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    return write_deployment(
        folder,
        tiny_target,
        tiny_draft,
        acceptance={"rule": "judge", "fly_window": 2},
        draft_len_schedule={1: 4, 2: 1},
    )


@pytest.fixture(scope="module")
def pipeline(config: Path) -> Pipeline:
    return load_pipeline(load_deployment(config).override(draft_len_schedule={}))


def own_text(pipeline: Pipeline, prompt: str) -> str:
    ids = pipeline.tokenizer.chat([{"role": "user", "content": prompt}])
    return pipeline.decoder.generate([Request(ids, TOKENS, Acceptance("none"))])[0].text


@pytest.fixture(scope="module")
def items(pipeline: Pipeline) -> list[Item]:
    """Ten that the target alone answers correctly, two not, two that nothing checks."""
    found = []
    for n in range(12):
        prompt = f"Question {n}"
        text = own_text(pipeline, prompt)
        found.append(
            Item(
                id=f"q{n}",
                group=f"g{n // 2}",
                domain="known" if n < 10 else "unknown",
                prompt=prompt,
                answer=text if n < 10 else f"{text} and more",
                parser="exact",
                split="report" if n % 4 < 2 else "calibrate",
            )
        )
    for n in range(2):
        found.append(
            Item(id=f"o{n}", group=f"o{n}", domain="open", prompt=f"Open {n}", parser="none")
        )
    return found


@pytest.fixture(scope="module")
def task(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "tiny.jsonl"
    write_task(path, items)
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return parsed


@pytest.fixture(scope="module")
def found(pipeline: Pipeline, items: list[Item]) -> Evaluation:
    systems = systems_of(pipeline, ["strict", "judge", "draft"], thresholds=[0.0, 1.0])
    return evaluate(pipeline, items, systems, max_tokens=TOKENS)


def test_the_target_strict_and_a_judge_at_one_are_the_same(found: Evaluation) -> None:
    none, strict, _lenient, never, _draft = found.answers
    assert [a.system.name for a in found.answers] == [
        "none",
        "strict",
        "judge 0",
        "judge 1",
        "draft",
    ]
    assert none.right == [True] * 10 + [False] * 2 + [None] * 2
    texts = [[result.text for result in a.results] for a in found.answers]
    assert texts[0] == texts[1] == texts[3] != texts[2]
    assert strict.right == never.right == none.right
    # Every rule drafts the deployment's length, even if its schedule says less for three at a time.
    assert len(strict.results[0].record.acceptance_histogram) == 5


def test_the_draft_alone_is_the_draft_as_a_target(
    found: Evaluation, tiny_draft: Path, pipeline: Pipeline
) -> None:
    alone = SpeculativeDecoder(
        Engines(
            None,
            load_target(Checkpoint(tiny_draft), dtype="float32", max_sequences=3, max_context=256),
        ),
        tokenizer=pipeline.tokenizer,
    )
    requests = [Request(r.prompt_ids, TOKENS, Acceptance("none")) for r in found.requests]
    expected = [result.token_ids for result in alone.generate(requests)]
    assert [result.token_ids for result in found.answers[-1].results] == expected


def test_the_report_counts_what_happened(pipeline: Pipeline, found: Evaluation) -> None:
    document = report(pipeline, found, task="tiny")
    none, strict, lenient, _never, draft = document["results"]
    assert all(set(row) == ROW for row in document["results"])
    assert (none["accuracy"], strict["accuracy"]) == (10 / 12, 10 / 12)
    assert strict["delta_vs_target"] == 0 and strict["delta_ci"] == [0, 0]
    assert none["domains"]["known"]["accuracy"] == 1 and none["domains"]["unknown"]["items"] == 2
    low, high = none["accuracy_ci"]
    assert low < 10 / 12 < high
    assert none["mean_acceptance_length"] == 1.0 and draft["mean_acceptance_length"] is None
    assert lenient["mean_acceptance_length"] > strict["mean_acceptance_length"] > 1
    assert (lenient["threshold"], lenient["setting"], strict["threshold"]) == (0.0, 0.0, None)
    assert lenient["judged_tokens"] == sum(
        result.provenance.count("judged") for result in found.answers[2].results
    )
    assert strict["judged_tokens"] == 0 and lenient["lost"] > 0
    # The target alone needs a pass per token; strict's rounds are those that the loop counted.
    assert none["target_passes"] == none["tokens"] and draft["target_passes"] is None
    rounds = strict["speculative_decoding"]["num_spec_steps"]
    assert rounds <= strict["target_passes"] < none["target_passes"]
    assert none["passes_per_right"] == none["target_passes"] / 10
    assert none["seconds_per_right"] == none["seconds"] / 10
    assert none["tokens_per_answer"] == none["tokens"] / 14
    cut = sum(one.finish_reason == "length" for one in found.answers[0].results)
    assert none["unfinished_share"] == cut / 14
    # The target's own text is the likeliest that greedy decoding finds; drafts read worse.
    assert none["loglikelihood"] > draft["loglikelihood"]
    assert document["items"]["group"][:3] == ["g0", "g0", "g1"]
    assert document["provenance"]["groups"] == 8 and document["provenance"]["batch"] == 3


def test_overrides_are_counted_by_what_became_of_the_answer(
    pipeline: Pipeline, found: Evaluation
) -> None:
    strict, lenient = report(pipeline, found, task="tiny")["results"][1:3]
    judged = [result.provenance.count("judged") for result in found.answers[2].results[:12]]
    right = [bool(value) for value in found.answers[2].right[:12]]
    assert lenient["overrides"] == {
        "tokens_in_right": sum(j for j, ok in zip(judged, right, strict=True) if ok),
        "tokens_in_wrong": sum(j for j, ok in zip(judged, right, strict=True) if not ok),
        "changed": sum(j > 0 for j in judged),
        "changed_right": sum(ok and j > 0 for j, ok in zip(judged, right, strict=True)),
        # Parser `exact` reads the whole text, so no token comes after or before the answer.
        "single": 0,
        "single_still_right": 0,
        "single_after_answer": 0,
    }
    assert strict["overrides"]["changed"] == 0


SAYS = "It is Paris, of course"
"""To the tiny tokenizer a byte is a token."""


@pytest.mark.parametrize(
    ("judged", "alone", "counted"),
    [
        ("Par", True, {"single": 1, "single_still_right": 1}),  # at the start of the answer
        ("is,", True, {"single": 1, "single_still_right": 1}),  # within it: "Paris" or "Parma"
        (",", True, {"single_after_answer": 1}),
        ("course", True, {"single_after_answer": 1}),
        ("course", False, {}),  # the target alone was wrong
    ],
)
def test_a_token_after_the_answer_says_nothing_of_overrides(
    tiny_target: Path, judged: str, alone: bool, counted: dict[str, int]
) -> None:
    """Regression: "still right" counted tokens that came after the answer and could not change it:
    80 of 126 on `court`."""
    tokenizer = Tokenizer(tiny_target)
    ids = tokenizer.encode(SAYS, special=False)
    assert len(ids) == len(SAYS)
    origins = ["target"] * len(ids)
    origins[SAYS.index(judged)] = "judged"
    result = SimpleNamespace(token_ids=ids, provenance=origins)
    capital = {"id": "c", "group": "g", "domain": "d", "prompt": "Capital of France?"}
    first = Item(**capital, answer="Paris", choices=["Rome"], parser="first_of")
    found = overrides(tokenizer, [first], [result], [True], [alone])
    names = ("single", "single_still_right", "single_after_answer")
    assert {name: found[name] for name in names if found[name]} == counted
    wrong = overrides(tokenizer, [first], [result], [False], [alone])
    assert wrong["single_still_right"] == 0 and wrong["single"] == found["single"]
    # If a later answer counts, it is unknown which token made the difference.
    exact = Item(**capital, answer=SAYS, parser="exact")
    assert not any(overrides(tokenizer, [exact], [result], [True], [alone])[name] for name in names)


def test_the_log_likelihood_is_the_targets_own(
    pipeline: Pipeline, found: Evaluation, tiny_target: Path
) -> None:
    """Compared with transformers, on the open items."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_target).float().eval()
    total, tokens = 0.0, 0
    for n in (12, 13):
        prompt = found.requests[n].prompt_ids
        ids = found.answers[2].results[n].token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        total += float(logits.log_softmax(-1)[range(len(ids)), ids].sum())
        tokens += len(ids)
    row = report(pipeline, found, task="tiny")["results"][2]
    assert row["loglikelihood"] == pytest.approx(total / tokens, abs=1e-3)


def test_repetition() -> None:
    assert repetition([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.0  # within a text, not between texts
    assert repetition([[7] * 6]) == pytest.approx(2 / 3)
    assert repetition([[1, 2, 3]]) is None


def test_the_command(config: Path, task: Path, tmp_path: Path) -> None:
    out, picture, answers = (tmp_path / name for name in ("out.json", "p.png", "answers.jsonl"))
    result = run(
        "--config", config, "--task", task, "--rules", "strict,judge,topk,typical,kl,fly,draft",
        "--thresholds", "0.2,0.9", "--settings", "topk:2,typical:0.3", "--max-tokens", "12",
        "--batch", "2", "--max-draft-len", "3", "--limit", "13", "--plot", picture, "--out", out,
        "--answers", answers, "--json",
    )  # fmt: skip
    report = document(result)
    names = [row["name"] for row in report["results"]]
    assert names == [
        "none",
        "strict",
        "judge 0.2",
        "judge 0.9",
        "topk 2",
        "typical 0.3",
        "kl 0.3",
        "fly 0.3",
        "draft",
    ]
    assert json.loads(out.read_text()) == report
    assert picture.read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == 13 * len(names) and set(lines[0]) >= {"name", "id", "text", "right"}
    source = report["provenance"]
    assert (source["batch"], source["max_draft_len"], source["max_tokens"]) == (2, 3, 12)
    table = result.stdout
    assert "…" not in table and "vs target" in table and "right, by domain" in table
    assert all(name in table for name in names)


def test_a_split_a_domain_and_an_open_task(config: Path, task: Path, items: list[Item]) -> None:
    common = ("--config", config, "--task", task, "--rules", "none", "--max-tokens", "4", "--json")
    report = document(run(*common, "--split", "calibrate"))
    assert report["items"]["id"] == [one.id for one in items if one.split == "calibrate"]
    report = document(run(*common, "--domain", "open", "--domain", "unknown"))
    assert report["items"]["id"] == ["q10", "q11", "o0", "o1"]
    only_open = document(run(*common, "--domain", "open"))
    (row,) = only_open["results"]
    assert row["accuracy"] is None and row["delta_ci"] is None and row["overrides"] is None
    assert row["loglikelihood"] < 0 and set(row) == ROW


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "nothing"), "task: no task or file 'nothing'"),
        (("--rules", "guess"), "rules: unknown 'guess'"),
        (("--rules", "rejection"), "rules: unknown 'rejection'"),
        (("--thresholds", "high"), "thresholds: 'high' is not a number"),
        (("--thresholds", "1.5"), "judge takes a value in [0, 1]"),
        (("--settings", "strict:1"), "write RULE:VALUE"),
        (("--settings", "topk:1.5"), "topk takes a whole number"),
        (("--settings", "typical:x"), "'x' is not a number"),
        (("--split", "train"), "split: 'train' is not mine, calibrate or report"),
        (("--domain", "moon"), "domain: unknown 'moon'"),
        (("--config", "/nowhere.yaml"), "config: no file /nowhere.yaml"),
        (("--plot", "/dev/null/p.png"), "plot: cannot write /dev/null/p.png"),
        (("--plot", "p.jpeg"), "plot: p.jpeg must end in .png"),
        (("--out", "/dev/null/o.json"), "out: cannot write /dev/null/o.json"),
        (("--limit", "-1"), "--limit"),
    ],
)
def test_a_mistake_is_one_line(
    config: Path, task: Path, arguments: tuple[str, str], message: str
) -> None:
    options = {"--config": str(config), "--task": str(task), "--max-tokens": "2", "--limit": "1"}
    options |= {"--rules": "none"} | {arguments[0]: arguments[1]}
    result = run(*(part for pair in options.items() for part in pair))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_cannot_be_answered_is_named(config: Path, tmp_path: Path) -> None:
    long = Item(id="long", group="g", domain="d", prompt="x" * 300, parser="none")
    write_task(tmp_path / "long.jsonl", [long])
    code = Item(id="code", group="g", domain="d", prompt="x", parser="python", tests="pass")
    write_task(tmp_path / "code.jsonl", [code])
    for name, message in (("long", "item 'long': prompt: "), ("code", "--run-code")):
        result = run("--config", config, "--task", tmp_path / f"{name}.jsonl")
        assert result.exit_code == 2 and message in result.stderr


def test_a_plot_without_matplotlib_is_one_line(
    config: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    common = ("--config", config, "--task", task, "--rules", "none", "--max-tokens", "2")
    result = run(*common, "--limit", "1", "--plot", "p.png")
    assert result.exit_code == 2 and "it needs matplotlib" in result.stderr


def test_settings_are_the_rules_own_parameters(pipeline: Pipeline) -> None:
    wanted = parse_settings("typical:0.3, topk:2,kl:0.1,fly:0.5,judge:0.8")
    systems = systems_of(pipeline, [], settings=wanted)
    assert [system.name for system in systems] == [
        "none",
        "typical 0.3",
        "topk 2",
        "kl 0.1",
        "fly 0.5",
        "judge 0.8",
    ]
    values = [system.acceptance for system in systems[1:]]
    assert (values[0].typical_epsilon, values[0].typical_delta) == (0.3, 1.0)
    assert (values[1].top_k, values[2].kl_tau, values[3].fly_entropy) == (2, 0.1, 0.5)
    assert values[4].threshold == 0.8
    # Without a value a rule runs as deployed, and its name has the deployed value.
    assert [s.name for s in systems_of(pipeline, ["judge", "topk"])][1:] == ["judge 0.5", "topk 3"]


def test_a_rule_without_a_draft_or_judge_is_refused(tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.yaml"
    deployment = {"name": "alone", "dtype": "float32", "acceptance": {"rule": "none"}}
    deployment["target"] = {"model": str(tiny_target)}
    deployment["limits"] = {"max_context": 128, "max_tokens": 64}
    path.write_text(yaml.safe_dump(deployment))
    pipeline = load_pipeline(load_deployment(path))
    with pytest.raises(UserError, match="draft needs a draft"):
        systems_of(pipeline, ["draft"])
    item = Item(id="i", group="g", domain="d", prompt="x", parser="none")
    with pytest.raises(UserError, match="no draft model"):
        evaluate(pipeline, [item], systems_of(pipeline, ["strict"]))
