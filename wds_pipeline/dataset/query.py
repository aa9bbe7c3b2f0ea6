"""A query in text, such as `jpg.width >= 512 and has("txt")`, as an expression of Arrow's.

The grammar is Python's, of which comparisons, `and`, `or`, `not`, `in` and a few functions are taken;
nothing is evaluated.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset.syntax import parsed
from wds_pipeline.errors import VersionError

KEY = "key"
SIZE = "size"
FROM_REPORT = ("width", "height", "chars", "format", "problem")
COLUMNS = (SIZE, *FROM_REPORT)

_COMPARE: dict[type, Callable[[Any, Any], pc.Expression]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MATCH = {
    "startswith": pc.starts_with,
    "endswith": pc.ends_with,
    "contains": pc.match_substring,
    "matches": pc.match_substring_regex,
    "like": pc.match_like,
}
_EXAMPLE = 'expected such as: jpg.width >= 512 and has("txt") and startswith(key, "cats/")'


_GRAMMAR = "it is written as in Python: and, or, not, ==, in; texts in quotes"


class Query:
    """A text as an expression, and the columns that it needs.

    Raises VersionError for what is not understood, with `named` as what was asked.
    """

    def __init__(self, text: str, named: str) -> None:
        self._text = text
        self._named = named
        self.columns: set[str] = set()
        try:
            tree = parsed(lambda: ast.parse(text.strip(), mode="eval"))
        except SyntaxError as error:
            raise self._error(f"cannot be read ({error.msg}); {_GRAMMAR}") from None
        self.expression = self._truth(tree.body)

    def _error(self, what: str) -> VersionError:
        return VersionError(f"{self._named}: the query {self._text!r} {what}; {_EXAMPLE}")

    def _truth(self, node: ast.expr) -> pc.Expression:
        """What is true or false."""
        if isinstance(node, ast.BoolOp):
            joined = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            found = self._truth(node.values[0])
            for each in node.values[1:]:
                found = joined(found, self._truth(each))
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._truth(node.operand)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, node.args)
        raise self._error(f"has {ast.unparse(node)!r} where something true or false belongs")

    def _compare(self, node: ast.Compare) -> pc.Expression:
        parts = [node.left, *node.comparators]
        found: pc.Expression | None = None
        for left, op, right in zip(parts, node.ops, parts[1:], strict=False):
            if isinstance(op, ast.In | ast.NotIn):
                some = self._literal(right)
                if not isinstance(some, list | tuple | set):
                    raise self._error(
                        f"has {ast.unparse(right)!r} where a list such as [1, 2] belongs"
                    )
                among = self._column(left).isin(list(some))
                each = among if isinstance(op, ast.In) else ~among
            elif type(op) in _COMPARE:
                each = _COMPARE[type(op)](self._value(left), self._value(right))
            else:
                raise self._error(f"has {ast.unparse(node)!r}, which is no comparison of values")
            found = each if found is None else found & each
        assert found is not None
        return found

    def _call(self, name: str, arguments: list[ast.expr]) -> pc.Expression:
        if name == "has" and len(arguments) == 1:
            return self.has(str(self._literal(arguments[0])))
        if name in _MATCH and len(arguments) == 2:
            return _MATCH[name](self._column(arguments[0]), str(self._literal(arguments[1])))
        known = ", ".join(["has(field)", *(f"{each}(column, text)" for each in _MATCH)])
        raise self._error(f"calls {name}; there are {known}{did_you_mean(name, ['has', *_MATCH])}")

    def has(self, field: str) -> pc.Expression:
        """Whether a sample has a field."""
        self.columns.add(f"{field}.{SIZE}")
        return pc.field(f"{field}.{SIZE}").is_valid()

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return self._column(node)
        value = self._literal(node)
        if value is None:  # a comparison with it is never true
            raise self._error('compares with None; has("txt") asks whether there is a field')
        return pc.scalar(value)

    def _column(self, node: ast.expr) -> pc.Expression:
        """`key`, `jpg.width`, `seg.png.size`, or `field["a-b.png"].size` for names of other kinds."""
        name = ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Subscript):
            inner = node.value
            if isinstance(inner.value, ast.Name) and inner.value.id == "field":
                name = f"{self._literal(inner.slice)}.{node.attr}"
        field, _, column = name.rpartition(".")
        if name != KEY and not (field and column in COLUMNS):
            every = [f"{field or 'jpg'}.{each}" for each in COLUMNS]
            near = did_you_mean(name, [KEY, *every])
            known = f"key, and of a field, such as {field or 'jpg'}, {', '.join(every)}"
            raise self._error(
                f"asks for {name!r}; there are {known}{near} (a text stands in quotes)"
            )
        self.columns.add(name)
        return pc.field(name)

    def _literal(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except ValueError:
            what = f"has {ast.unparse(node)!r} where a value belongs; {_GRAMMAR}"
            raise self._error(what) from None
