"""Template -> template: a charge in front of all that Jinja compiles to bare Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

from enginewright.runtime.sandbox.budget import STEP

# Filters of the sandbox that charge; names with a space cannot be written in a template.
SIZE_OF = "size of"
LENGTH_OF = "length of"
STEPS = "steps of"

_Body = nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block


def meter(template: nodes.Template) -> nodes.Template:
    """Rewrite the template so that its loops, comparisons and literals are charged."""
    _Metering().visit(template)
    return template


def check_name(name: object) -> None:
    """Refuse what must not be stored on a namespace."""
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names must not begin with '_'")


def iterates_content(template: nodes.Template) -> bool:
    """Whether the template loops over a message's content, and so takes a list of parts."""
    names = {"content"}
    assignments = list(template.find_all(nodes.Assign))
    fresh = names
    while fresh:
        fresh = {
            assign.target.name
            for assign in assignments
            if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names)
        } - names
        names |= fresh
    return any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For))


class _Metering(NodeTransformer):
    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        rule = _RULES.get(type(node))
        return node if rule is None else rule(node)


def _for(node: nodes.For) -> nodes.Node:
    if node.test is not None:
        node.test = nodes.And(_steps(STEP), node.test)
    return _body(node)


def _body(node: _Body) -> nodes.Node:
    node.body = [nodes.ExprStmt(_steps(STEP + _static_text(node))), *node.body]
    return node


def _compare(node: nodes.Compare) -> nodes.Node:
    node.expr = _sized(node.expr)
    for operand in node.ops:
        operand.expr = _sized(operand.expr)
    return node


def _concat(node: nodes.Concat) -> nodes.Node:
    node.nodes = [_sized(part) for part in node.nodes]
    return node


def _slice(node: nodes.Getitem) -> nodes.Node:
    if isinstance(node.arg, nodes.Slice):
        node.node = nodes.Filter(node.node, LENGTH_OF, [], [], None, None)
    return node


def _tuple(node: nodes.Tuple) -> nodes.Node:
    return _sized(node) if node.ctx == "load" else node


def _namespace_target(node: nodes.NSRef) -> nodes.Node:
    check_name(node.attr)
    return node


def _sized(node: nodes.Expr) -> nodes.Expr:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, SIZE_OF, [], [], None, None)


def _steps(units: int) -> nodes.Filter:
    return nodes.Filter(nodes.Const(units), STEPS, [], [], None, None)


_RULES: dict[type[nodes.Node], Callable[[Any], nodes.Node]] = {
    nodes.For: _for,
    nodes.Macro: _body,
    nodes.CallBlock: _body,
    nodes.Block: _body,
    nodes.Compare: _compare,
    nodes.Concat: _concat,
    nodes.Getitem: _slice,
    nodes.List: _sized,
    nodes.Dict: _sized,
    nodes.Tuple: _tuple,
    nodes.NSRef: _namespace_target,
}


def _static_text(node: nodes.Node) -> int:
    """Characters of plain text in a body, those of bodies inside it left out."""
    total = 0
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.TemplateData):
            total += len(child.data)
        elif not isinstance(child, _Body):
            total += _static_text(child)
    return total


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    """Whether an expression is a message's content, or a name for it."""
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.CondExpr):
        return _is_content(node.expr1, names) or _is_content(node.expr2, names)
    if isinstance(node, nodes.Filter):
        return _is_content(node.node, names)
    return False
