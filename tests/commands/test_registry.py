"""The commands that are imported only when called: as scripts, and below `judge-decoding`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from judge_decoding.commands import registry
from judge_decoding.commands.main import main
from tests.commands_world import run_command

BUILD = Path(__file__).parents[2] / "build"
QUESTION = {"question": "Ann has 2 nuts and buys 3. How many?", "answer": "2 + 3 = 5 #### 5"}


def judge_decoding(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `judge-decoding ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["judge-decoding", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_every_command_has_its_script_and_every_script_its_command() -> None:
    scripts = {path.stem.replace("_", "-") for path in BUILD.glob("*.py")}
    assert scripts == set(registry.COMMANDS)
    readme = (BUILD / "README.md").read_text()
    for path in BUILD.glob("*.py"):
        text = path.read_text()
        assert f"build/{path.name}" in text.partition('"""\n\n')[0], "its usage"
        assert len(text.splitlines()) < 25
        assert f"`{path.name}`" in readme


@pytest.mark.parametrize("name", registry.COMMANDS)
def test_help_opens_with_a_sentence_and_every_option_has_a_text(name: str) -> None:
    command = registry.load(name)
    first = command.help.splitlines()[0]
    assert first[0].isupper() and first.endswith(".") and " " in first
    assert registry.COMMANDS[name].endswith(".")
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"


def test_the_others_do_not_load_them() -> None:
    code = """
import sys
from judge_decoding.commands import main
loaded = [m for m in sys.modules if m.startswith(("judge_decoding.training", "sklearn"))]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_they_are_subcommands_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "set.jsonl", tmp_path / "task.jsonl"
    source.write_text(json.dumps(QUESTION) + "\n")
    arguments = ("import-questions", str(source), "--out", str(out))
    assert judge_decoding(monkeypatch, *arguments, "--domain", "sums") == 0
    assert capsys.readouterr().out == f"{out}: 1 items, parser number\n"
    assert json.loads(out.read_text())["domain"] == "sums"
    assert judge_decoding(monkeypatch, "import-questions", "--help") == 0
    shown = capsys.readouterr().out
    assert "judge-decoding import-questions" in shown and "--domain" in shown
    assert judge_decoding(monkeypatch, *arguments, "--limit", "-1") == 2
    assert capsys.readouterr().err == (
        "judge-decoding: --limit: -1 is below 0; 0 takes all questions\n"
    )
    assert judge_decoding(monkeypatch, *arguments, "--limits", "1") == 2
    assert "--limits" in capsys.readouterr().err
    assert judge_decoding(monkeypatch, "--help") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in registry.COMMANDS)


def test_typers_own_complaints_are_one_line() -> None:
    done = run_command("import-questions", "--out", "x", "--limit", "many", "set.jsonl")
    assert (done.code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith("Invalid value for '--limit': ")
