"""Deployments: what is read, and what is refused with one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import load_deployment
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from tests.conftest import write_llama, write_tokenizer

BASE = """
name: test
target: {model: models/target}
draft: {model: ../draft}
dtype: float32
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "deployment.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_DECODING_CACHE", "/some/cache")
    text = BASE + "judge: {path: 'cache:judges/one.safetensors'}\n"
    deployment = load_deployment(write(tmp_path, text))
    assert deployment.target.model == tmp_path / "models/target"
    assert deployment.draft is not None
    assert deployment.draft.model == tmp_path.parent / "draft"
    assert deployment.judge is not None
    assert deployment.judge.path == Path("/some/cache/judges/one.safetensors")


def test_a_lossy_rule_is_opted_into(tmp_path: Path) -> None:
    assert load_deployment(write(tmp_path, BASE)).acceptance.rule == "strict"


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_dtype_auto_is_what_the_cpu_is_fast_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: str
) -> None:
    monkeypatch.setattr("judge_decoding.cpu.has_bfloat16", lambda: fast)
    text = BASE.replace("dtype: float32", "dtype: auto")
    deployment = load_deployment(write(tmp_path, text))
    assert text != BASE and deployment.dtype == dtype
    assert deployment.override(dtype="auto").dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("max_draft_length: 4", r"max_draft_length: unknown key \(got 4\)"),
        ("max_draft_len: -1", r"max_draft_len: .*greater than or equal to 0 \(got -1\)"),
        ("max_draft_len: many", "max_draft_len: .*'many'"),
        ("dtype: float16", "dtype: .*'float16'"),
        ("acceptance: {rule: lenient}", "acceptance.rule: .*'lenient'"),
        ("acceptance: {rule: judge}", "acceptance.rule judge needs a judge"),
        ("acceptance: {typical_delta: .nan}", "acceptance.typical_delta"),
        ("judge: {path: x, threshold: 1.5}", "judge.threshold"),
        ("limits: {max_sequences: 0}", "limits.max_sequences"),
        ("draft_len_schedule: {0: 4}", "draft_len_schedule 0: 4"),
        (
            "draft_len_schedule: {1: 9, 4: 2}",  # regression: cut to max_draft_len silently
            r"draft_len_schedule 1: 9 must map .* to a draft length in 0\.\.8 \(max_draft_len\)",
        ),
        (
            "target: {model: ~no_such_user/x}",
            "target.model: no home folder for ~no_such_user; give",
        ),
        ("name: 2026-13-45", "not readable YAML"),
        ("draft: null", "acceptance.rule strict needs a draft"),
        ("ranks: {colocate_draft: true, draft: {tp: 2}}", "ranks: colocate_draft puts the draft"),
        (
            "draft: null\nacceptance: {rule: none}\nranks: {colocate_draft: true}",
            "ranks.colocate_draft needs a draft",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: str, message: str) -> None:
    key = change.split(":")[0]
    kept = "\n".join(line for line in BASE.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(UserError, match=message) as error:
        load_deployment(write(tmp_path, f"{kept}\n{change}\n"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "key", "line"),
    [
        ("acceptance: {rule: none}\n\nacceptance: {rule: typical}\n", "acceptance", 8),
        ("limits:\n  max_tokens: 8\n  max_context: 64\n  max_tokens: 9\n", "max_tokens", 9),
        ("draft_len_schedule: {1: 4, 2: 2, 1: 3}\n", "1", 6),
    ],
)
def test_a_key_that_is_given_twice_is_named(tmp_path: Path, more: str, key: str, line: int) -> None:
    """Regression: the last one won silently."""
    with pytest.raises(UserError, match=f"yaml line {line}: {key} is given twice; keep one"):
        load_deployment(write(tmp_path, BASE + more))


def test_aliases_and_merges_are_no_repetition(tmp_path: Path) -> None:
    merged = BASE.replace("target: {", "target: &t {").replace("draft: {", "draft: {<<: *t, ")
    deployment = load_deployment(write(tmp_path, merged))
    assert deployment.draft is not None and deployment.draft.model == tmp_path.parent / "draft"
    twice = "limits: {<<: {max_tokens: 7}, <<: {max_sequences: 3}}\n"
    limits = load_deployment(write(tmp_path, BASE + twice)).limits
    assert (limits.max_tokens, limits.max_sequences) == (7, 3)
    endless = BASE.replace("name: test", "name: &n [*n]")
    with pytest.raises(UserError, match="name: Input should be a valid string"):
        load_deployment(write(tmp_path, endless))


def test_a_cache_folder_without_a_home_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_DECODING_CACHE", "~no_such_user/cache")
    with pytest.raises(UserError, match="~no_such_user/cache has no home folder; set JUDGE_DECOD"):
        load_deployment(write(tmp_path, BASE + "judge: {path: 'cache:one.safetensors'}\n"))


def test_the_draft_length_of_a_number_of_active_sequences(tmp_path: Path) -> None:
    deployment = load_deployment(write(tmp_path, BASE))
    assert [deployment.draft_len(n) for n in (1, 100)] == [8, 8]
    deployment = load_deployment(write(tmp_path, BASE + "draft_len_schedule: {8: 0, 2: 5, 4: 8}\n"))
    lengths = {1: 5, 2: 5, 3: 8, 4: 8, 5: 0, 8: 0, 9: 0}
    assert {n: deployment.draft_len(n) for n in lengths} == lengths
    with pytest.raises(UserError, match=r"draft_len_schedule 4: 8 .* 0\.\.7 \(max_draft_len\)"):
        deployment.override(max_draft_len=7)


@pytest.mark.parametrize("text", ["- a list", "{unclosed", "'"])
def test_files_that_are_no_deployment(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="config:"):
        load_deployment(write(tmp_path, text))
    with pytest.raises(UserError, match="no file"):
        load_deployment(tmp_path / "none.yaml")


def test_override_checks_again_and_keeps_the_rest(tmp_path: Path) -> None:
    deployment = load_deployment(write(tmp_path, BASE))
    changed = deployment.override(max_draft_len=3, dtype=None)
    assert (changed.max_draft_len, changed.dtype) == (3, "float32")
    assert changed.target == deployment.target
    with pytest.raises(UserError, match="max_draft_len"):
        deployment.override(max_draft_len=-3)


def test_the_default_acceptance_takes_a_requests_changes(tmp_path: Path) -> None:
    text = BASE + "judge: {path: x, threshold: 0.8}\nacceptance: {rule: judge, top_k: 5}\n"
    deployment = load_deployment(write(tmp_path, text))
    plain = deployment.default_acceptance()
    assert (plain.rule, plain.threshold, plain.top_k) == ("judge", 0.8, 5)
    changed = deployment.default_acceptance(rule="topk", threshold=None)
    assert (changed.rule, changed.threshold) == ("topk", 0.8)


def test_fly_is_refused_where_its_window_is_as_long_as_a_draft(tmp_path: Path) -> None:
    """Such a rule accepts nothing that `strict` does not; a table had a row of it."""
    text = "max_draft_len: {}\nacceptance: {{rule: {}, fly_window: 3}}\n"
    message = r"fly_window = 3 .* max_draft_len = 3 in all; give a smaller window"
    with pytest.raises(UserError, match=message):
        load_deployment(write(tmp_path, BASE + text.format(3, "fly")))
    assert load_deployment(write(tmp_path, BASE + text.format(4, "fly"))).acceptance.rule == "fly"
    deployment = load_deployment(write(tmp_path, BASE + text.format(3, "strict")))
    with pytest.raises(UserError, match=message):
        deployment.default_acceptance(rule="fly")


def test_a_draft_with_another_vocabulary_is_refused(tmp_path: Path, tiny_target: Path) -> None:
    other = write_llama(tmp_path / "draft", vocab_size=300)
    text = f"name: t\ntarget: {{model: {tiny_target}}}\ndraft: {{model: {other}}}\n"
    deployment = load_deployment(write(tmp_path, text))
    with pytest.raises(UserError, match="vocabulary of 300 tokens, the target's is 256"):
        load_pipeline(deployment)
    write_tokenizer(other)  # vllm#5203: the message blamed the tokenizer
    with pytest.raises(UserError, match="their tokenizers agree, but embeddings padded"):
        load_pipeline(deployment)
    same_size = write_llama(tmp_path / "other")
    write_tokenizer(same_size)
    raw = json.loads((same_size / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (same_size / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="another tokenizer"):
        load_pipeline(load_deployment(write(tmp_path, text.replace(str(other), str(same_size)))))


def test_a_judge_of_another_target_is_refused(tmp_path: Path, tiny_target: Path) -> None:
    import torch

    path = tmp_path / "judge.safetensors"
    metadata = JudgeMetadata(
        feature="pre_norm",
        hidden_size=64,
        target_fingerprint="0123456789abcdef",
        tokenizer_hash="x",
        threshold=0.5,
        training_data_hash="x",
    )
    Judge(torch.zeros(64), 0.0, metadata).save(path)
    text = f"""
name: t
target: {{model: {tiny_target}}}
draft: {{model: {tiny_target}}}
judge: {{path: {path}}}
acceptance: {{rule: judge}}
"""
    with pytest.raises(UserError, match="trained on target 0123456789abcdef, but this one is"):
        load_pipeline(load_deployment(write(tmp_path, text)))


def test_further_end_tokens_are_the_targets_too(tmp_path: Path, tiny_target: Path) -> None:
    """Regression (vllm#2123): a model whose files lack its turn's end token never stopped."""
    text = (
        f"name: t\ntarget: {{model: {tiny_target}}}\nacceptance: {{rule: none}}\ndtype: float32\n"
    )
    plain = load_pipeline(load_deployment(write(tmp_path, text))).decoder.target.end_ids
    more = load_pipeline(load_deployment(write(tmp_path, text + "end_ids: [9, 9]\n")))
    assert more.decoder.target.end_ids == (*plain, 9)
    with pytest.raises(UserError, match=r"end_ids: 256 is outside the vocabulary \[0, 256\) of"):
        load_pipeline(load_deployment(write(tmp_path, text + "end_ids: [256]\n")))
    with pytest.raises(UserError, match=r"end_ids\.0: .*greater than or equal to 0 \(got -1\)"):
        load_deployment(write(tmp_path, text + "end_ids: [-1]\n"))


def test_an_end_token_outside_the_vocabulary_is_none(tmp_path: Path) -> None:
    """-1 would be an index from the end, and `min_tokens` would exclude another token."""
    folder = write_llama(tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"eos_token_id": [-1, 5, 256]}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert Checkpoint(folder).config.end_ids == (5,)
