"""Our text of a conversation is transformers' `apply_chat_template`'s, character for character."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from judge_decoding.errors import UserError
from judge_decoding.text import Tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "  Hi <b>\n"},
    {"role": "assistant", "content": "Hello & 'you' é"},
    {"role": "user", "content": "A metal?\n\n"},
]
LOOP = "{% for m in messages %}"
END = "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}"
FAMILIES = {
    "chatml": LOOP
    + "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
    + END
    + PROMPT
    + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set system = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": "{{- bos_token }}\n{%- if not tools is defined %}\n{%- set tools = none %}\n"
    "{%- endif %}\n{%- if tools is not none %}tools{% endif %}\n" + LOOP + "\n"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim }}"
    "{{- '<|eot_id|>' }}\n{% endfor %}\n" + PROMPT + "{{- 'assistant\\n\\n' }}\n{%- endif %}\n",
    "generation": LOOP + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}" + END,
    "generation-scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}"
    "{{ x }}",
    "break": LOOP + "{{ m.role }}{% if loop.index == 2 %}{% break %}{% endif %}" + END,
    "continue": LOOP + "{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}" + END,
    "gemma": "{{ bos_token }}"
    + LOOP
    + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}" + END,
    "zephyr": LOOP + "\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}"
    "\n{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + m['content'] }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n" + END,
    "phi": LOOP
    + "{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}"
    + END
    + "{{ eos_token }}",
    "namespace": "{% set ns = namespace(n=0, last='') %}"
    + LOOP
    + "{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}"
    + END
    + "{{ ns.n }}{{ ns.last }}",
    "namespace-self": "{% set ns = namespace(self=1, **{'a': 2}) %}{{ ns.self }}{{ ns.a }}",
    "namespace-mapping": "{% set ns = namespace({'a': 2}) %}{{ ns.a }}",
    "dict": "{{ dict(a=1, b='x') | tojson }}{{ dict([('a', 1)]) | items | list }}",
    "fromkeys": "{{ dict.fromkeys(['a', 'b'], 1) | tojson }}",
    "tojson": "{{ messages | tojson }}",
    "tojson-indent": "{{ messages | tojson(indent=2) }}{{ messages | tojson(indent='--') }}",
    "tojson-ascii": "{{ messages | tojson(ensure_ascii=True) }}",
    "tojson-separators": "{{ messages | tojson(separators=(',', ':'), sort_keys=True) }}",
    "tojson-type": "{{ ({'a': '<&>'} | tojson) ~ '<' }}{{ ('<' | tojson | e) }}",
    "tokens": "{% for t in [bos_token, eos_token, pad_token, unk_token] %}[{{ t }}]{% endfor %}"
    "{{ sep_token is defined }}{{ cls_token is defined }}{{ mask_token }}",
    "variables": "{{ tools is defined }}{{ tools is none }}{{ documents is defined }}"
    "{{ documents }}{{ add_generation_prompt }}{{ enable_thinking is defined }}",
    "whitespace": "  \n  {% if true %}\n  a\n  {%- endif %}\n\n{# note #}\nb {{- ' c' -}} \n  d\n",
    "macro": "{% macro turn(m, end='.') -%}<{{ m.role }}>{{ m.content }}{{ end }}{%- endmacro %}"
    + LOOP
    + "{{ turn(m) }}{{ turn(m, end='!') }}"
    + END,
    "call": "{% macro box() %}[{{ caller('x') }}]{% endmacro %}{% call(a) box() %}{{ a }}"
    "{% endcall %}",
    "filter-block": "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "set-block": "{% set x | trim %}  {{ messages[0].role }} {% endset %}[{{ x }}]",
    "loop": LOOP + "{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.cycle('a', 'b') }}{{ (loop.previtem or m).role }}{{ (loop.nextitem or m).role }}"
    "{{ loop.changed(m.role) }}" + END,
    "loop-filter": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}0" + END,
    "recursive": "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }})"
    "{% else %}{{ x }}{% endif %}{% endfor %}",
    "selectattr": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | map(attribute='role') | unique | join('|') }}",
    "groupby": "{% for role, turns in messages | groupby('role') %}{{ role }}{{ turns | length }}"
    + END,
    "slices": "{{ messages[::-1][0].content }}{{ messages[-1].role[:2] }}{{ messages[1].role }}",
    "methods": "{{ messages[0].content.strip().split(' ')[-1].replace('<', '_').title() }}"
    "{{ messages[0].get('x', 'none') }}{{ messages[0].keys() | list }}"
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
    "tests": LOOP + "{{ m.content is string }}{{ m.content is mapping }}{{ m.x is undefined }}"
    "{{ m.tool_calls is defined and m.tool_calls }}{{ loop.index is odd }}" + END,
    "escape": "{{ messages[0].content | e }}{{ ('<' | e) ~ '<' }}{{ '<b>' | safe | striptags }}",
    "autoescape": "{% autoescape true %}{{ messages[0].content }}"
    "{{ messages[0].content ~ ('>' | safe) }}{% endautoescape %}",
    "numbers": "{{ 7 // 2 }}{{ 7 / 2 }}{{ 2 ** 5 }}{{ 7 % 3 }}{{ 1.5 | round | int }}"
    "{{ '%03d' % 7 }}",
    "conditionals": "{{ 'a' if messages | length > 2 else 'b' }}{{ none or 'x' }}"
    "{{ '' | default('y') }}"
    "{{ z | default('y') }}{{ '' | default('y', true) }}",
    "raw": "{% raw %}{{ not }}{% endraw %}{{ '{{' }}",
    "texts": "{{ 'a b c' | wordcount }}{{ 'abc' | center(9) }}{{ 'x\ny' | indent(2, true) }}"
    "{{ 'abcdef' | truncate(4, true) }}{{ 'aXb' | capitalize }}{{ 'aa' | replace('a', 'b', 1) }}",
    "windows": "{% for m in messages %}\r\n{{ m.role }}\r\n{% endfor %}\r\n",
    "do-with": "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "cycler": "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner('; ') %}"
    "{{ j() }}x{{ j() }}y",
    "concat-undefined": "{{ 'a' ~ nothing ~ 1 ~ none ~ true }}",
    "date": "{{ strftime_now('%d %b %Y') }}",
}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
}


@pytest.fixture(scope="module")
def theirs(llama_like: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama_like)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_writes_what_transformers_writes(
    name: str, llama_like: Path, tmp_path: Path, theirs: Any
) -> None:
    """Regression, public fault 1."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_like / file, tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(FAMILIES[name].encode())
    ours, rendered = Tokenizer(tmp_path), 0
    for turns in ([SYSTEM, *TURNS], TURNS, TURNS[:1]):
        for prompt in (False, True):
            texts: list[str | type] = []
            for write in (
                lambda t=turns, p=prompt: ours.chat_text(t, add_generation_prompt=p),
                lambda t=turns, p=prompt: theirs.apply_chat_template(
                    t, chat_template=FAMILIES[name], tokenize=False, add_generation_prompt=p
                ),
            ):
                try:
                    texts.append(write())
                except Exception:
                    texts.append(Exception)
            assert texts[0] == texts[1]
            rendered += isinstance(texts[0], str)
    assert rendered >= 2
    assert len(FAMILIES) >= 40


ALL = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ sep_token is defined }}"
WRONG = "{{ raise_exception('another template') }}"
FOLDERS: dict[str, dict[str, Any]] = {
    "map": {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": {
            "bos_token": "<s>",
            "pad_token": {"content": "</s>", "lstrip": False, "normalized": False},
            "unk_token": "<unk>",
        },
        "chat_template.jinja": ALL,
    },
    "map-and-config": {
        "tokenizer_config.json": {**CONFIG, "pad_token": "a"},
        "special_tokens_map.json": {"pad_token": "</s>", "eos_token": "b"},
        "chat_template.jinja": ALL,
    },
    "described": {
        "tokenizer_config.json": {
            **CONFIG,
            "pad_token": None,
            "added_tokens_decoder": {"256": {"content": "<s>", "special": True}},
        },
        "special_tokens_map.json": {"pad_token": "</s>"},
        "chat_template.jinja": ALL,
    },
    "own-names": {
        "tokenizer_config.json": {
            **CONFIG,
            "image_token": "<s>",
            "extra_special_tokens": {"audio_token": "</s>"},
        },
        "chat_template.jinja": "{{ image_token }}{{ audio_token }}",
    },
    "list": {
        "tokenizer_config.json": {
            **CONFIG,
            "chat_template": [
                {"name": "tool_use", "template": WRONG},
                {"name": "default", "template": "list" + ALL},
            ],
        }
    },
    "config": {"tokenizer_config.json": {**CONFIG, "chat_template": "config é" + ALL}},
    "file-first": {
        "tokenizer_config.json": {**CONFIG, "chat_template": WRONG},
        "chat_template.jinja": "file é" + ALL,
    },
    "folder": {
        "tokenizer_config.json": {**CONFIG, "chat_template": WRONG},
        "chat_template.jinja": "file" + ALL,
        "additional_chat_templates/rag.jinja": WRONG,
    },
    "folder-alone": {
        "tokenizer_config.json": CONFIG,
        "additional_chat_templates/default.jinja": "alone",
        "additional_chat_templates/rag.jinja": WRONG,
    },
}


def write(folder: Path, tokenizer: Path, files: dict[str, Any]) -> Tokenizer:
    shutil.copy(tokenizer / "tokenizer.json", folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    return Tokenizer(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_tokens_and_templates_are_found_where_transformers_finds_them(
    name: str, llama_like: Path, tmp_path: Path
) -> None:
    """Regression, public fault 1."""
    from transformers import AutoTokenizer

    ours = write(tmp_path, llama_like, FOLDERS[name])
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.chat_text(TURNS) == theirs.apply_chat_template(
        TURNS, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% foo %}", "is not readable (Encountered unknown tag 'foo'."),
        ("{{ nothing + 'x' }}", "refused the messages: 'nothing' is undefined"),
        ([{"name": "rag", "template": "x"}], "none of its templates is named default, but rag"),
        (3, "is not readable (it is 3)"),
    ],
)
def test_a_template_that_writes_nothing_is_refused_at_start(
    template: Any, why: str, llama_like: Path, tmp_path: Path
) -> None:
    """Regression, public fault 1: the server started, and then refused every chat."""
    config = {**CONFIG, "chat_template": template}
    tokenizer = write(tmp_path, llama_like, {"tokenizer_config.json": config})
    with pytest.raises(UserError) as error:
        tokenizer.try_template()
    assert why in str(error.value)


def test_a_template_may_insist_on_a_system_turn(llama_like: Path, tmp_path: Path) -> None:
    template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}ok"
    )
    files = {"tokenizer_config.json": CONFIG, "chat_template.jinja": template}
    write(tmp_path, llama_like, files).try_template()
