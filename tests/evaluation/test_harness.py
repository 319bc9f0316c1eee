"""lm-evaluation-harness's own command on a tiny deployment and local task files; and the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_deployment

from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import Result
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.evaluation.harness import LoopModel

pytestmark = pytest.mark.slow

WAIT_S = 900.0
QUESTIONS = ("Hello", "Name a bird", "Three and four")
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {data_files: {test: ITEMS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
task: local_choose
dataset_path: json
dataset_kwargs: {data_files: {test: ITEMS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{choice}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_draft: Path) -> Path:
    folder = tmp_path_factory.mktemp("lm_eval")
    return write_deployment(
        folder,
        tiny_target,
        tiny_draft,
        limits={"max_sequences": 3, "max_context": 128, "max_tokens": 64},
    )


@pytest.fixture(scope="module")
def model(config: Path) -> LoopModel:
    return LoopModel(str(config), rule="judge", threshold=0.2, batch_size=1, device=None)


class Instance:
    """What the harness passes to a model."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def own(model: LoopModel, text: str, rule: Acceptance, most: int, stop: str) -> Result:
    ids = model.pipeline.tokenizer.encode(text)
    return model.pipeline.decoder.generate([Request(ids, most, rule, stop=(stop,))])[0]


def test_answers_are_the_loops_under_the_rule(model: LoopModel) -> None:
    wanted = {"until": ["e", ""], "max_gen_toks": 20, "do_sample": False, "temperature": 0.7}
    texts = model.generate_until([Instance(q, wanted) for q in QUESTIONS])
    judge = Acceptance("judge", threshold=0.2)
    results = [own(model, q, judge, 20, "e") for q in QUESTIONS]
    assert texts == [result.text for result in results]
    assert any("judged" in result.provenance for result in results)
    assert not any("e" in text for text in texts)


def test_a_long_context_keeps_its_end(model: LoopModel) -> None:
    wanted = {"until": "e", "max_gen_toks": 28}
    (text,) = model.generate_until([Instance("x" * 200 + "y" * 100, wanted)])
    judge = Acceptance("judge", threshold=0.2)
    assert text == own(model, "y" * 100, judge, 28, "e").text


def test_choices_are_scored_by_the_target(model: LoopModel, tiny_target: Path) -> None:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(tiny_target).float().eval()
    context, choice = model.tok_encode("Hello"), model.tok_encode(" yes")
    with torch.inference_mode():
        logits = reference(torch.tensor([context + choice])).logits[0, len(context) - 1 : -1]
    expected = float(logits.log_softmax(-1)[range(len(choice)), choice].sum())
    greedy = own(model, "Hello", Acceptance("none"), 3, "\0").token_ids
    found = model._loglikelihood_tokens([(None, context, choice), (None, context, greedy)])
    assert found[0] == (pytest.approx(expected, abs=1e-3), False)
    assert found[1][1] is True
    with pytest.raises(UserError, match="does not fit the context"):
        model._loglikelihood_tokens([(None, context, [1] * 128)])


def test_a_whole_text_is_scored_in_windows(model: LoopModel) -> None:
    ids = model.tok_encode("a" * 130 + "b")
    (total,) = model.loglikelihood_rolling([Instance("a" * 130 + "b")])
    start, size = model.eot_token_id, 127
    parts = [(None, [start], ids[:size]), (None, [ids[size - 1]], ids[size:])]
    assert total == pytest.approx(sum(score for score, _ in model._loglikelihood_tokens(parts)))


def test_the_chat_template_is_the_targets(model: LoopModel) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    assert model.apply_chat_template(turns) == "[user] Hi\n[assistant] "
    ids = model.pipeline.tokenizer.chat(turns)
    assert model.tok_encode(model.apply_chat_template(turns)) == ids


def test_an_unknown_rule_is_refused(config: Path) -> None:
    with pytest.raises(UserError, match="rule: unknown 'guess'"):
        LoopModel(str(config), rule="guess")


def score(model: LoopModel, context: str, continuation: str) -> float:
    pair = (None, model.tok_encode(context), model.tok_encode(continuation))
    return model._loglikelihood_tokens([pair])[0][0]


def harness(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "judge_decoding.evaluation.harness", "run", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


def test_the_harness_runs_local_tasks(config: Path, model: LoopModel, tmp_path: Path) -> None:
    """The answers are the loop's own, so all but the last are right."""
    texts = [own(model, q, Acceptance("judge", threshold=0.2), 12, "e").text for q in QUESTIONS]
    best = [0 if score(model, q, " yes") > score(model, q, " no") else 1 for q in QUESTIONS]
    items = [
        {"question": q, "answer": text, "choice": choice}
        for q, text, choice in zip(QUESTIONS, texts, best, strict=True)
    ]
    items[-1] |= {"answer": f"{texts[-1]} no", "choice": 1 - best[-1]}
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in items))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, text in (("generate", GENERATE), ("choose", CHOOSE)):
        (tasks / f"{name}.yaml").write_text(text.replace("ITEMS", str(file)))
    done = harness(
        "--model", "judge-decoding",
        "--model_args", f"config={config},rule=judge,threshold=0.2",
        "--tasks", "local_generate,local_choose",
        "--include_path", str(tasks),
        "--output_path", str(tmp_path / "out"),
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    assert results["local_generate"]["exact_match,none"] == pytest.approx(2 / 3)
    assert results["local_choose"]["acc,none"] == pytest.approx(2 / 3)
