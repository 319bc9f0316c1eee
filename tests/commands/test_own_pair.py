"""A user's two Llama folders: no judge, no chat template, a short context, a minimal YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import perturb, write_llama, write_tokenizer
from typer.testing import CliRunner, Result

from judge_decoding.commands.main import app
from judge_decoding.config import load_deployment
from judge_decoding.text import Tokenizer

CONTEXT = 96
MINIMAL = {
    "name": "own",
    "target": {"model": "target"},
    "draft": {"model": "draft"},
    "chat_template": "none",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """target/ and draft/, and own.yaml with only the keys that have no default."""
    folder = tmp_path_factory.mktemp("own")
    target = write_llama(folder / "target", max_position_embeddings=CONTEXT)
    write_tokenizer(target)
    (target / "tokenizer_config.json").unlink()
    perturb(target, folder / "draft", noise=0.05)
    write(folder)
    return folder


def write(folder: Path, name: str = "own", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    values = MINIMAL | changes
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def refusal(*arguments: str | Path) -> str:
    """The single line on stderr."""
    result = run(*arguments)
    assert result.exit_code == 2 and not result.stdout, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_the_first_token_comes_without_a_refusal(pair: Path) -> None:
    prompt = ("--prompt", "Once upon a time", "--json")
    done = run("generate", "--config", pair / "own.yaml", *prompt)
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout.splitlines()[-1])["results"]
    asked = len(Tokenizer(pair / "target").encode("Once upon a time"))
    assert answer["token_ids"] and len(answer["token_ids"]) + asked <= CONTEXT
    assert "judged" not in answer["provenance"]  # the default rule is strict
    raw = run("generate", "--config", write(pair, "own2", chat_template=None), "--no-chat", *prompt)
    (same,) = json.loads(raw.stdout.splitlines()[-1])["results"]
    assert same["token_ids"] == answer["token_ids"]


def test_the_context_is_the_models_own(pair: Path) -> None:
    assert load_deployment(pair / "own.yaml").limits.max_context == CONTEXT
    given = write(pair, "given", limits={"max_context": 64})
    assert load_deployment(given).limits.max_context == 64
    assert load_deployment(given).override(max_draft_len=2).limits.max_context == 64
    above = write(pair, "above", limits={"max_context": CONTEXT + 1})
    message = refusal("generate", "--config", above, "--prompt", "Hi")
    assert f"max_context {CONTEXT + 1} is more than the target's {CONTEXT} positions" in message


def test_a_long_context_is_not_taken_whole(pair: Path) -> None:
    """Memory is allocated for the whole context, and today's models have 128k positions."""
    config = json.loads((pair / "target" / "config.json").read_text())
    for name in ("target", "draft"):
        folder = pair / "long" / name
        folder.mkdir(parents=True)
        longer = config | {"max_position_embeddings": 131072}
        (folder / "config.json").write_text(json.dumps(longer))
    assert load_deployment(write(pair / "long")).limits.max_context == 2048


def test_bench_and_eval_take_raw_prompts(pair: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once upon a time"}\n')
    common = ("--config", pair / "own.yaml", "--rules", "none,strict", "--max-tokens", "8")
    done = run("bench", *common, "--prompts", prompts)
    assert done.exit_code == 0, done.output
    task = tmp_path / "task.jsonl"
    item = {"id": "1", "group": "1", "domain": "d", "prompt": "Once", "parser": "none"}
    task.write_text(json.dumps(item) + "\n")
    done = run("eval", *common, "--task", task)
    assert done.exit_code == 0, done.output


def test_each_command_names_its_own_way_out(pair: Path, tmp_path: Path) -> None:
    """Regression: all of them said "use --no-chat", an option that only `generate` has."""
    config = write(pair, "unsaid", chat_template=None)
    folder = f"tokenizer: {pair / 'target'} has no chat template; "
    everywhere = "say `chat_template: none` in the deployment (a prompt is then raw text)\n"
    generate = refusal("generate", "--config", config, "--prompt", "Hi")
    assert generate == f"judge-decoding: {folder}use --no-chat, or {everywhere}"
    task, item = tmp_path / "task.jsonl", {"id": "1", "group": "1", "domain": "d", "prompt": "Once"}
    task.write_text(json.dumps(item | {"parser": "none"}) + "\n")
    evaluated = refusal("eval", "--config", config, "--task", task, "--rules", "none")
    assert evaluated == (
        f"judge-decoding: task: item '1': {folder}give the task's items \"chat\": false, or "
        f"{everywhere}"
    )
    bench = refusal("bench", "--config", config, "--rules", "none")
    assert bench == f"judge-decoding: {folder}{everywhere}"
    for path in (config, pair / "own.yaml"):
        chat = refusal("chat", "--config", path)
        assert f"chat: {pair / 'target'} has no chat template, and a conversation needs" in chat
