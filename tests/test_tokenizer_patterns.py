"""Regular expressions of a tokenizer.json that backtrack for minutes are refused at load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_pattern(target: Path, folder: Path, pattern: str, part: str = "pre_tokenizer") -> Path:
    """A copy of the tokenizer with a pattern that splits (or normalizes) texts."""
    folder.mkdir()
    document: dict[str, Any] = json.loads((target / "tokenizer.json").read_text())
    if part == "pre_tokenizer":
        new = {"type": "Split", "behavior": "Isolated", "invert": False}
    else:
        new = {"type": "Replace", "content": ""}
    new["pattern"] = {"Regex": pattern}
    before = document[part]
    kind = {"pre_tokenizer": "pretokenizers", "normalizer": "normalizers"}[part]
    document[part] = {"type": "Sequence", kind: [new, *([before] if before else [])]}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(q+q+)+$", r"never ends .*retry-limit"),
        (r"(\w+\s?)*$", r"never ends .*retry-limit"),
        ("(?:z?){2000}z{2000}b", r"takes \d+\.\d s for (512|1024) times 'z'"),
        ("(" * 5000 + "a" + ")" * 5000, r"is not readable .*parse depth"),
    ],
    ids=["nested", "words", "optional", "deep"],
)
def test_a_ruinous_pattern_is_refused(
    tiny_target: Path, tmp_path: Path, part: str, pattern: str, message: str
) -> None:
    """Regression, issue 16 item 9: the panic of such a pattern is no Exception, and passed through
    everything that answers a request."""
    folder = with_pattern(tiny_target, tmp_path / "bad", pattern, part)
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer(folder)
    assert str(caught.value).startswith("tokenizer: ") and "\n" not in str(caught.value)


def test_the_pattern_of_llama_3_is_loaded(tiny_target: Path, tmp_path: Path) -> None:
    folder = with_pattern(tiny_target, tmp_path / "good", LLAMA_3)
    assert Tokenizer(folder).encode("Hello, you") == Tokenizer(tiny_target).encode("Hello, you")


def test_a_pattern_that_gives_up_on_a_prompt_is_a_users_error(
    tiny_target: Path, tmp_path: Path
) -> None:
    """A pattern that only the right text makes slow is not found at load."""
    folder = with_pattern(tiny_target, tmp_path / "sly", "(?:qw(?:e+)+)+(?:r+r+)+$")
    tokenizer = Tokenizer(folder)
    with pytest.raises(UserError, match="gives up on the text"):
        tokenizer.encode("qwe" + "r" * 60 + "b")
    assert tokenizer.encode("a")


def test_settings_that_are_no_texts_are_named(tiny_target: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_target, tmp_path / "odd")
    path = folder / "tokenizer_config.json"
    settings = {"chat_template": "{{ bos_token }}"}
    messages = [{"role": "user", "content": "a"}]
    for value, message in (({"content": [1]}, "bos_token"), ({}, "bos_token"), (3, "bos_token 3")):
        path.write_text(json.dumps(settings | {"bos_token": value}))
        with pytest.raises(UserError, match=f"{message}.*not a text"):
            Tokenizer(folder).chat(messages)
    path.write_text('{"a":' * 5000)
    with pytest.raises(UserError, match=r"tokenizer: .*nested deeper"):
        Tokenizer(folder).chat(messages)
    path.write_text("{}")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat template that is not readable"):
        Tokenizer(folder).chat(messages)
    (folder / "chat_template.jinja").write_text("x" * (1 << 20) + "y")
    with pytest.raises(UserError, match="at most 1,048,576 are read"):
        Tokenizer(folder).chat(messages)
    (folder / "chat_template.jinja").write_text("{{ 'x' * 10**9 }}")
    with pytest.raises(UserError, match=r"the chat template of .*odd: `\*` makes a value"):
        Tokenizer(folder).chat(messages)
