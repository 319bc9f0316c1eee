"""A model's chat template: jinja2 in its sandbox, with bounds on time and on the size of texts.

A template belongs to the model folder. jinja2's sandbox keeps it from reaching Python, but not from
looping for ever or building gigabytes, which would stop every request of a server. Bounded here:
each rendering's CPU time (every loop and macro looks at the clock), its output, and every text or
list that an operator, a call or a filter with a number makes. What remains is in security.md.

The text is what transformers' `apply_chat_template` writes (utils/chat_template_utils.py): the same
options, tags, filters, globals and variables. transformers itself would cost seconds and 200 MB in
every preprocessing process, and it has none of the bounds.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

from judge_client.echo import shown

if TYPE_CHECKING:
    from jinja2 import nodes

CPU_SECONDS = 2.0
"""For one rendering; a conversation of 1,000 turns takes 0.01."""
MOST = 16 << 20
"""Characters or items of a value, and characters of the output."""
SOURCE_BYTES = 1 << 20
"""The most that a template's source may have; Llama-3.1's has 4 kB."""
_MOST_INDENT = 100
"""The most that `tojson` may indent one level by."""
_NUMBER = 1 << 20
"""The largest number that a call or a filter may get: widths, counts."""
_TICK, _CONCAT = "__tick", "__concat"
_end = threading.local()
"""When this thread's rendering has to end: `wall`, `cpu` in seconds."""
_BOUNDED_FILTERS = ("batch", "center", "format", "indent", "join", "replace", "slice", "wordwrap")


class TemplateTooMuch(Exception):
    """The template exceeds a bound. The message is one line."""


class Template:
    """A compiled template; ValueError with one line if the source cannot be compiled."""

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateError

        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            raise ValueError(str(error) or type(error).__name__) from None

    def render(self, messages: Sequence[Mapping[str, Any]], **values: Any) -> str:
        """The text of a conversation. Raises whatever the template does, and TemplateTooMuch.

        values  more variables: special tokens, `add_generation_prompt`, `tools`
        """
        # transformers always passes these three; a template may ask whether they are defined.
        values = {"tools": None, "documents": None, "add_generation_prompt": False} | values
        _end.wall, _end.cpu = time.monotonic() + CPU_SECONDS, time.thread_time() + CPU_SECONDS
        pieces, size = [], 0
        for piece in self._template.generate(messages=list(messages), **values):
            pieces.append(piece)
            size += len(piece)
            if size > MOST:
                raise TemplateTooMuch(f"it writes more than {MOST:,} characters")
        return "".join(pieces)


def _environment() -> Any:
    from jinja2 import nodes, pass_context, pass_eval_context
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text for training; here it only writes it.

        As in transformers its body is a macro's: what it sets is not visible after it.
        """

        tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 declares a set

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_write")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _write(self, caller: Any) -> Any:
            return caller()

    class PublicNamespace(Namespace):
        """A namespace without underscored names, as in transformers."""

        def __init__(*arguments: Any, **named: Any) -> None:  # `self` may be a name
            self, *rest = arguments
            for name in (values := dict(*rest, **named)):
                _check_public(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_public(name)
            super().__setitem__(name, value)

    # Filters, because the template cannot replace them, and because a call costs five times more.
    def filtered(name: str, value: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(value, name, [], [], None, None)

    def look(node: Any) -> nodes.Node:
        node.body.insert(0, nodes.ExprStmt(filtered(_TICK, nodes.Const(None))))
        found: nodes.Node = node
        return found

    class Bounds(NodeTransformer):
        """Puts a look at the clock into every body that may run again, and bounds `~`."""

        def visit_For(self, node: nodes.For) -> nodes.Node:
            self.generic_visit(node)
            return look(node)

        def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
            self.generic_visit(node)
            return look(node)

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
            self.generic_visit(node)
            return filtered(_CONCAT, nodes.List(node.nodes))

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "+", "%"})

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            Bounds().visit(tree)
            tree.set_environment(self)
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
            name = getattr(function, "__name__", "")
            # The sandbox wraps str.format.
            owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
            if name == "join":
                arguments = tuple(map(_listed, arguments))
            texts = (owner,) if isinstance(owner, str) else ()
            _check_call(name, (*texts, *arguments), named)
            return super().call(context, function, *arguments, **named)

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = PublicNamespace
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # With the context it is no constant, which would be computed once, when compiled.
    environment.filters |= {_TICK: pass_context(_tick), _CONCAT: pass_eval_context(_concat)}
    for name in _BOUNDED_FILTERS:
        environment.filters[name] = _bounded(name, environment.filters[name])
    return environment


class _Dict:
    """What a template has as `dict`: it makes one, and gives no access to the type."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


def _bounded(name: str, run: Any) -> Any:
    """A filter that looks at its arguments first."""

    @wraps(run)  # keeps jinja2's mark of what it passes first: the environment or the context
    def bounded(*arguments: Any, **named: Any) -> Any:
        if name == "join":
            arguments = tuple(map(_listed, arguments))
        marked = getattr(run, "jinja_pass_arg", None) is not None
        _check_call(name, arguments[1:] if marked else arguments, named)
        return run(*arguments, **named)

    return bounded


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        size = max(_size(left) * _count(right), _size(right) * _count(left))
        bits = _bits(left) + _bits(right)
    elif operator == "+":
        size, bits = _size(left) + _size(right), 0
    elif operator == "**":
        size, bits = 0, _bits(left) * _count(right)
    else:
        size, bits = 0, 0
        if isinstance(left, str):
            _check_format(left)
            size = len(left) + _size(right)
    if size > MOST or bits > _NUMBER:
        raise TemplateTooMuch(f"`{operator}` makes a value of more than {MOST:,} characters")


def _check_call(name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raise TemplateTooMuch for a call that would make a huge value of small ones."""
    everything = (*arguments, *named.values())
    if any(_count(value) > _NUMBER for value in everything):
        raise TemplateTooMuch(f"`{name}` gets a number above {_NUMBER:,}")
    texts = [value for value in everything if isinstance(value, str)]
    size = 0
    if name in ("format", "format_map", "strftime_now"):
        for text in texts[:1]:
            _check_format(text)
        size = sum(map(_size, everything))
    elif name == "replace" and len(texts) >= 3:
        found = texts[0].count(texts[1])
        size = len(texts[0]) + found * len(texts[2])
    elif name == "expandtabs" and texts:
        width = max((_count(value) for value in everything), default=8)
        size = len(texts[0]) + texts[0].count("\t") * width
    elif name == "indent" and texts:
        width = max((_count(value) for value in everything), default=4)
        size = len(texts[0]) + (texts[0].count("\n") + 1) * max(width, *map(len, texts[1:]), 0)
    elif name == "join":
        size = _joined(everything)
    elif name in ("batch", "slice", "center", "ljust", "rjust", "zfill", "wordwrap"):
        size = sum(map(_count, everything)) + sum(map(_size, everything))
    if size > MOST:
        raise TemplateTooMuch(f"`{name}` makes a value of more than {MOST:,} characters")


def _listed(value: Any) -> Any:
    """The items of what can be read only once, or has no length, as a list."""
    return list(value) if isinstance(value, (Iterator, range)) else value


def _joined(arguments: Sequence[Any]) -> int:
    """Characters of a joined list, roughly, with the longest text among the arguments between."""
    lists = [value for value in arguments if isinstance(value, (list, tuple))]
    between = max((len(value) for value in arguments if isinstance(value, str)), default=0)
    return sum(between + _size(item) for one in lists for item in one)


def _check_format(text: str) -> None:
    """Raise TemplateTooMuch for a width of more than four digits, or one that is an argument."""
    if re.search(r"%[^a-zA-Z%]*(\d{5}|\*)|\{[^{}]*:[^{}]*(\d{5}|\{)", text):
        raise TemplateTooMuch("a format has a width of more than 9,999")


def _tick(_: Any, __: None) -> None:
    # The wall clock costs a twentieth of the other, and is never behind it.
    if time.monotonic() > _end.wall and time.thread_time() > _end.cpu:
        raise TemplateTooMuch(f"it runs for more than {CPU_SECONDS:g} s")


def _concat(context: nodes.EvalContext, values: Sequence[Any]) -> str:
    from jinja2.runtime import markup_join

    texts = [str(value) for value in values]
    if sum(map(len, texts)) > MOST:
        raise TemplateTooMuch(f"`~` makes a value of more than {MOST:,} characters")
    return markup_join(values) if context.autoescape else "".join(texts)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML and sorts keys; transformers' does neither."""
    if max(_count(indent), *map(_size, (indent, *(separators or ())))) > _MOST_INDENT:
        raise TemplateTooMuch(f"`tojson` indents by more than {_MOST_INDENT}")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ValueError(f"a namespace has no underscored names such as {shown(name)}")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0


def _count(value: Any) -> int:
    return abs(value) if isinstance(value, int) and not isinstance(value, bool) else 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _raise(message: str) -> None:
    raise ValueError(message)
