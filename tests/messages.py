"""The messages of a package's errors and warnings, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path

BLANK = "…"
"""Stands for a value that a message is filled with."""

Texts = list[str]


def messages(package: Path) -> set[str]:
    """All messages of the modules of a package.

    A message may be put together from conditional expressions, names that were given a text, and
    private helpers of its module, as what they return or what they are called with: each outcome
    is a message of its own. A single word put in is a value, and so is all else.
    """
    sources = (path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py")))
    return {text for source in sources for text in _Module(ast.parse(source)).messages()}


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self.functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        self.helpers = {f.name: f for f in self.functions if re.match("_[^_]", f.name)}
        self.constants: dict[str, Texts] = {}
        self.constants = self._named(tree, {})

    def messages(self) -> Iterator[str]:
        for function in self.functions:
            shown = [n for n in map(_message, _own_nodes(function)) if n is not None]
            for given in self._given_to(function) if shown else ():
                values = self._named(function, given)
                yield from chain.from_iterable(self._texts(node, values) for node in shown)

    def _texts(self, node: ast.expr, values: dict[str, Texts]) -> Texts:
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return _joined([self._texts(part, values) for part in parts])
            case ast.FormattedValue(value=value, conversion=-1):
                return _if_phrases(self._texts(value, values))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _joined([self._texts(left, values), self._texts(right, values)])
            case ast.IfExp(body=body, orelse=orelse):
                return self._texts(body, values) + self._texts(orelse, values)
            case ast.Name(id=name):
                return values.get(name, [BLANK])
            case ast.NamedExpr(value=value):
                return self._texts(value, values)
            case ast.Call() if (function := self._helper(node)) and _gives_text(function):
                return self._returned(function)
        return [BLANK]

    def _named(self, scope: ast.AST, given: dict[str, Texts]) -> dict[str, Texts]:
        """The texts that names of a scope have, in the order in which they were given them."""
        values = self.constants | given
        named: dict[str, Texts] = {}
        for node in _own_nodes(scope):
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.NamedExpr(target=ast.Name(id=name), value=value)
                ):
                    named[name] = named.get(name, []) + self._texts(value, values | named)
        return values | named

    def _given_to(self, function: ast.FunctionDef) -> Iterator[dict[str, Texts]]:
        """What the arguments of a private helper are, call by call."""
        names = [argument.arg for argument in function.args.args if argument.arg != "self"]
        calls = 0
        for caller in self.functions:
            for node in _own_nodes(caller):
                if isinstance(node, ast.Call) and self._helper(node) is function:
                    values = self._named(caller, {})
                    arguments = dict(zip(names, node.args, strict=False))
                    arguments |= {k.arg: k.value for k in node.keywords if k.arg}
                    yield {name: self._texts(arg, values) for name, arg in arguments.items()}
                    calls += 1
        if not calls:
            yield {}

    def _returned(self, function: ast.FunctionDef) -> Texts:
        values = self._named(function, {})
        returns = (n.value for n in _own_nodes(function) if isinstance(n, ast.Return) and n.value)
        texts = [self._texts(n, values) for n in returns if not _is_none(n)]
        return list(chain.from_iterable(texts))

    def _helper(self, call: ast.Call) -> ast.FunctionDef | None:
        match call.func:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self.helpers.get(name)
        return None


def _message(node: ast.AST) -> ast.expr | None:
    """The message, where a node raises an error, warns, or adds a note."""
    match node:
        case ast.Raise(exc=ast.Call(args=[message, *_])):
            return message
        case ast.Call(func=ast.Attribute(attr="warn" | "add_note"), args=[message, *_]):
            return message
    return None


def _gives_text(function: ast.FunctionDef) -> bool:
    return function.returns is not None and "str" in ast.unparse(function.returns)


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a scope in their order, without those of the functions in it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node
            yield from _own_nodes(node)


def _joined(parts: Sequence[Texts]) -> Texts:
    return ["".join(pieces) for pieces in product(*parts)]


def _if_phrases(texts: Texts) -> Texts:
    return texts if all(" " in text or not text for text in texts) else [BLANK]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
