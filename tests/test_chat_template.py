"""Chat templates that loop for ever or build gigabytes end soon; real ones are unchanged."""

from __future__ import annotations

import resource
import time

import pytest

from judge_decoding import chat_template
from judge_decoding.chat_template import Template, TemplateTooMuch

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\tyou"}]
ENDLESS = [
    # 10**5 is the most that the sandbox lets a range have.
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(80) }}",
]
HUGE = [
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ ['x'] * 10**9 }}",
    "{{ 10 ** (10 ** 8) }}",
    "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ ('x' * 10**6).join(range(99999)) }}",
    "{{ range(99999) | join('x' * 10**6) }}",
    "{{ ('x' * 10**6).replace('x', 'x' * 10**6) }}",
    "{{ ('x' * 10**6) | replace('x', 'x' * 10**6) }}",
    "{{ ('\t' * 10**6).expandtabs(10**6) }}",
    "{{ ('\n' * 10**6) | indent(10**6) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ lipsum(n=10**9) }}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_that_never_ends_does(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression, issue 16 item 9."""
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 0.2)
    began = time.thread_time()
    with pytest.raises(TemplateTooMuch, match=r"it runs for more than 0\.2 s"):
        Template(source).render(MESSAGES)
    assert time.thread_time() - began < 2


@pytest.mark.parametrize("source", HUGE)
def test_a_template_that_builds_gigabytes_does_not(source: str) -> None:
    """Regression, issue 16 item 9."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((TemplateTooMuch, OverflowError)) as caught:
        Template(source).render(MESSAGES)
    assert len(str(caught.value)) < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_a_source_that_is_too_deep_is_one_line() -> None:
    with pytest.raises(ValueError, match="recursion"):
        Template("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}")


def test_what_real_templates_do_is_allowed() -> None:
    source = """
{%- macro turn(m) %}<|{{ m['role'] | upper }}|>{{ m.content | trim }}{% endmacro %}
{%- for message in messages %}
    {%- if loop.index0 % 2 == 0 and message['role'] != 'user' %}
        {{- raise_exception('order') }}
    {%- endif %}
    {{- turn(message) ~ eos_token + '\\n' * 2 }}
{%- endfor %}
{{- ['a', 'b'] | join(', ') }} {{ ', '.join(messages | map(attribute='role')) }}
{{- '%5.2f' | format(1.5) }} {{ '{:>4}'.format(7) }} {{ 'a b'.replace(' ', '_') | indent(2) }}
{{- 'x\ty'.expandtabs(2) }}{{ 'x'.ljust(3) }}|{{ 2 ** 10 }}{{ [1] + [2] }}
{{- messages[:1] | tojson }}
{{- strftime_now('%Y') | length }}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
    text = Template(source).render(MESSAGES, add_generation_prompt=True, eos_token="</s>")
    assert text == (
        "<|USER|>Hi</s>\n\n<|ASSISTANT|>Hello\tyou</s>\n\na, b user, assistant 1.50    7 a_b"
        'x yx  |1024[1, 2][{"role": "user", "content": "Hi"}]4<|assistant|>'
    )


def test_a_long_conversation_is_far_from_the_bounds() -> None:
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    began = time.thread_time()
    text = Template(source).render(MESSAGES * 5000)
    assert text.count("\n") == 10_000
    assert time.thread_time() - began < 2


def test_a_template_cannot_replace_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 0.2)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateTooMuch):
        Template("{% macro __tick(x) %}{% endmacro %}" + loop).render(MESSAGES)
    messages = "{% for messages in messages %}{% set m = messages.content %}{{ m }}{% endfor %}"
    assert Template(messages).render(MESSAGES) == "HiHello\tyou"
