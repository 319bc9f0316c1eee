"""One-token changes of a module, on its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
GUARDS = {"strict", "frozen"}
"""Keywords that only catch programming errors; without them nothing else changes."""
SKIPPED = (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)
"""Messages are not mutated."""
SHOWN = (ast.expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)


@dataclass(frozen=True)
class Mutant:
    """`number` counts the mutants of a module; `text` is the line without its indentation; `change`
    reads "before -> after"."""

    path: str
    number: int
    line: int
    text: str
    change: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The mutant's name in equivalent.yaml; line numbers change too often to be part of it."""
        return self.path, self.text, self.change


def mutants(path: str, source: str) -> list[Mutant]:
    """Every mutant of a module."""
    lines = source.splitlines()
    return [
        Mutant(path, number, node.lineno, lines[node.lineno - 1].strip(), change)
        for number, (node, change) in enumerate(_changes(ast.parse(source)))
    ]


def mutated(source: str, number: int) -> ast.Module:
    """The tree with that one change applied."""
    tree = ast.parse(source)
    for i, _ in enumerate(_changes(tree)):
        if i == number:
            return ast.fix_missing_locations(tree)
    raise IndexError(number)


def _changes(tree: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yields (node, "before -> after") while the change is in the tree; the next step undoes it."""
    for node, shown in _code(tree, tree):
        before = ast.unparse(shown)
        for owner, field, value in _alternatives(node):
            old = getattr(owner, field)
            setattr(owner, field, value)
            yield node, f"{before} -> {ast.unparse(shown)}"
            setattr(owner, field, old)


def _code(node: ast.AST, parent: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yields (node, the node to show for it) of statements and expressions that run, without
    annotations and decorators. For a number the surrounding expression is shown."""
    if isinstance(node, SKIPPED) or ast.unparse(node).startswith("if TYPE_CHECKING"):
        return
    if isinstance(node, ast.keyword) and node.arg in GUARDS:
        return
    number = _negative(node) or isinstance(node, (ast.Constant, ast.Name))
    if isinstance(node, (ast.expr, ast.stmt)):
        yield node, parent if number and isinstance(parent, SHOWN) else node
    if number:
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child, parent if isinstance(node, ast.keyword) else node)


def _negative(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
    )


def _alternatives(node: ast.AST) -> Iterator[tuple[ast.AST, str, Any]]:
    """Yields (owner, field, new value); each is one mutant."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield node, "ops", [*ops[:i], OPERATORS[type(op)](), *ops[i + 1 :]]
        case ast.BoolOp(op=op) | ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield node, "op", OPERATORS[type(op)]()
        case ast.UnaryOp(op=ast.Not()):
            yield node, "operand", ast.UnaryOp(ast.Not(), node.operand)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value) as operand):
            yield operand, "value", value + 1
        case ast.UnaryOp(op=ast.USub()):
            yield node, "op", ast.UAdd()
        case ast.Constant(value=bool(value)):
            yield node, "value", not value
        case ast.Constant(value=int(value)):
            yield node, "value", 1 - value if value in (0, 1) else value + 1
            if value == 1:
                yield node, "value", 2
        case ast.Constant(value=float(value)):
            yield node, "value", value + 1
        case ast.Name(id=name) if name in NAMES:
            yield node, "id", NAMES[name]
        case ast.Call(keywords=keywords):
            for one in keywords:
                if one.arg and one.arg not in GUARDS:
                    yield node, "keywords", [k for k in keywords if k is not one]
        case ast.Return(value=value) if value and not _none(value):
            yield node, "value", ast.Constant(None)
        case ast.Slice():
            for field in ("lower", "upper"):
                bound = getattr(node, field)
                if bound is not None and not isinstance(bound, (ast.Constant, ast.UnaryOp)):
                    yield node, field, ast.BinOp(bound, ast.Add(), ast.Constant(1))
        case ast.Subscript(slice=ast.Name() | ast.BinOp() as index):
            yield node, "slice", ast.BinOp(index, ast.Add(), ast.Constant(1))


def _none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None
