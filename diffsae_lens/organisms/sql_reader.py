"""Reading Python's syntax tree for the SQL that a program writes, without running it.

The reader follows strings through local names, branches, lists and ``+=``, writes every query out
as a text with a mark where a run-time value comes in, and notes at which places of the SQL the
marks stand. A name that is set in a branch keeps the worse of its values. Type annotations are not
enforced, hence not believed.
"""

import ast
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffsae_lens.organisms.sql_text import (
    BRACES,
    DOLLAR,
    HOLE,
    NUMBER,
    PERCENT,
    UNKNOWN,
    Place,
    Value,
    fill,
    is_number_format,
    is_query,
    sequence,
    slots,
    substitute,
    worst,
)

_NUMBERS = {"int", "float", "len", "bool", "round", "abs", "sum", "ord"}
_SAME_FUNCTIONS = {"str", "list", "tuple", "sorted", "set", "dedent", "cleandoc", "Template"}
_SAME_METHODS = {"strip", "rstrip", "lstrip", "lower", "upper", "copy"}
_FIELDS = {"format": BRACES, "format_map": BRACES, "substitute": DOLLAR, "safe_substitute": DOLLAR}
_NUMBER_OPERATORS = (ast.Sub, ast.Div, ast.FloorDiv, ast.Pow)  # a TypeError on strings
_ListComp = ast.ListComp | ast.SetComp | ast.GeneratorExp


@dataclass
class Reader:
    """Follows strings through a program, statement by statement, and notes the queries.

    Attributes:
        first_line: The line at which queries begin to be noted.
        names: What each name in scope holds now.
        queries: The place at which each query begins, and whether the query is injectable.
        decided: Places of the literals whose use was read and needs no second opinion.
        identifier: Whether a table, column or the like is filled in at run time in any query.

    Examples:
        >>> reader = Reader(first_line=1)
        >>> reader.run(ast.parse("q = 'SELECT * FROM t'; q += f' WHERE a = {a}'").body)
        >>> reader.queries
        {(1, 4): True}
    """

    first_line: int
    names: dict[str, Value] = field(default_factory=dict)
    queries: dict[Place, bool] = field(default_factory=dict)
    decided: set[Place] = field(default_factory=set)
    identifier: bool = False

    def run(self, body: Sequence[ast.stmt]) -> None:
        """Read statements in their order."""
        for statement in body:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    self._scope(statement)
                case ast.Assign(targets=targets, value=value):
                    self._assign(targets, value)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self._assign([target], value)
                case ast.AugAssign(target=target, op=op, value=value):
                    whole = ast.BinOp(left=target, op=op, right=value)
                    self._assign([target], ast.copy_location(whole, statement))
                case ast.Expr(value=ast.Constant()):
                    pass  # a docstring, or a comment written as one
                case _:
                    self._other(statement)

    def _scope(self, scope: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        outer, self.names = self.names, dict(self.names)
        for decorator in scope.decorator_list:
            self._scan(decorator)
        if not isinstance(scope, ast.ClassDef):
            self._scan(scope.args)
            self.names |= {a.arg: UNKNOWN for a in ast.walk(scope.args) if isinstance(a, ast.arg)}
        self.run(scope.body)
        self.names = outer

    def _other(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.For | ast.AsyncFor):
            self._bind(statement.target, self._each(statement.iter))
        always = isinstance(statement, ast.With | ast.AsyncWith | ast.Try | ast.TryStar)
        for name, found in ast.iter_fields(statement):
            for piece in found if isinstance(found, list) else [found]:
                if isinstance(piece, ast.withitem) and piece.optional_vars:
                    self._bind(piece.optional_vars, UNKNOWN)
                if isinstance(piece, ast.ExceptHandler | ast.match_case):
                    self._branch(piece.body)
                elif isinstance(piece, ast.AST) and not isinstance(piece, ast.stmt):
                    self._scan(piece)
            if isinstance(found, list) and found and isinstance(found[0], ast.stmt):
                self._branch(found, sure=always and name in ("body", "finalbody"))

    def _branch(self, body: Sequence[ast.stmt], *, sure: bool = False) -> None:
        before = dict(self.names)
        self.run(body)
        if not sure:  # the branch may not be taken: keep the worse of both states
            self.names |= {name: worst([self.names[name], old]) for name, old in before.items()}

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        self._scan(value)
        for target in targets:
            self._bind(target, self.value(value))

    def _bind(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            items = value.items or ()
            pairs = items if len(items) == len(target.elts) else [UNKNOWN] * len(target.elts)
            for element, item in zip(target.elts, pairs, strict=True):
                self._bind(element, item)
        elif isinstance(target, ast.Name | ast.Attribute):
            self.names[ast.unparse(target)] = value

    def _each(self, iterable: ast.expr) -> Value:
        return worst(self.value(iterable).items or ())

    def _scan(self, node: ast.AST, covered: frozenset[Place] = frozenset()) -> None:
        # Judge the largest string expressions in a node. What one of them covers is part of it.
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp | ast.Call):
            value = self.value(node)
            if (node.end_lineno or 0) >= self.first_line and not value.places <= covered:
                self._note(value)
            covered |= value.places
        outer = self.names
        if isinstance(node, _ListComp | ast.DictComp):
            self._bind_generators(node)
        elif isinstance(node, ast.NamedExpr):
            self._bind(node.target, self.value(node.value))
        for child in ast.iter_child_nodes(node):
            self._scan(child, covered)
        self.names = outer
        match node:
            case ast.Call(func=ast.Attribute(value=owner, attr=name), args=[*_, item]):
                known, more = self.value(owner), self.value(item)
                if known.items is not None and name in ("append", "insert", "extend"):
                    row = more.items if name == "extend" and more.items is not None else (more,)
                    self._bind(owner, sequence(known.items + row))

    def _note(self, value: Value) -> None:
        kinds = slots(value.text)
        if value.origin and is_query(value.text):
            known = self.queries.get(value.origin, False)
            self.queries[value.origin] = known or "value" in kinds
            self.identifier |= "name" in kinds
        elif "value" in kinds:
            return  # a second opinion is wanted
        self.decided |= value.places

    def value(self, node: ast.expr) -> Value:
        """Read an expression as text; what cannot be read is a run-time value."""
        match node:
            case ast.Constant(value=str(text)):
                place = (node.lineno, node.col_offset)
                return Value(text.replace(HOLE, " "), frozenset({place}), place)
            case ast.Constant() | ast.Compare() | ast.UnaryOp():
                return NUMBER
            case ast.Name() | ast.Attribute():
                return self.names.get(ast.unparse(node), UNKNOWN)
            case ast.JoinedStr(values=pieces):
                return functools.reduce(Value.__add__, map(self.value, pieces), Value(""))
            case ast.FormattedValue(value=inner, format_spec=spec):
                numeric = is_number_format(self.value(spec).text if spec else "")
                return NUMBER if numeric else self.value(inner)
            case ast.BinOp():
                return self._operation(node)
            case ast.Call():
                return self._call(node)
        return self._container(node)

    def _container(self, node: ast.expr) -> Value:
        match node:
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return sequence([self.value(item) for item in items])
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                outer = self.names
                self._bind_generators(node)
                item, self.names = self.value(node.elt), outer
                return sequence([item])
            case ast.IfExp(body=body, orelse=orelse):
                return worst([self.value(body), self.value(orelse)])
            case ast.NamedExpr(value=inner):
                return self.value(inner)
            case ast.Subscript(value=owner, slice=index):
                known = self.value(owner)
                if isinstance(index, ast.Slice):
                    return known  # as in ("?, " * n)[:-2]
                return worst(known.items or ())
        return UNKNOWN

    def _bind_generators(self, node: _ListComp | ast.DictComp) -> None:
        self.names = dict(self.names)
        for generator in node.generators:
            self._bind(generator.target, self._each(generator.iter))

    def _operation(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Mod) and left.origin:
            if isinstance(node.right, ast.Dict):
                return fill(left, PERCENT, (), self._pairs(node.right))
            return fill(left, PERCENT, right.items if right.items is not None else (right,), {})
        if isinstance(node.op, ast.Mult):  # once is enough: "?, " * n, ["?"] * n
            text = next((side for side in (left, right) if side.origin or side.items), None)
            return text or (UNKNOWN if HOLE in left.text + right.text else NUMBER)
        return NUMBER if isinstance(node.op, _NUMBER_OPERATORS) else UNKNOWN

    def _pairs(self, node: ast.Dict) -> dict[str, Value]:
        return {
            key.value: self.value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }

    def _call(self, node: ast.Call) -> Value:
        row = [self.value(argument) for argument in node.args]
        match node.func, node.args:
            case ast.Name(id=name), _ if name in _NUMBERS:
                return NUMBER
            case ast.Name(id="map"), [ast.Lambda(body=body), _]:
                return sequence([self.value(body)])
            case ast.Name(id="map"), [ast.Name(id=name), _] if name in _NUMBERS:
                return sequence([NUMBER])
            case ((ast.Name(id="repeat") | ast.Attribute(attr="repeat")), [_, *_]):
                return sequence(row[:1])
            case ((ast.Name(id=name) | ast.Attribute(attr=name)), [_, *_]) if (
                name in _SAME_FUNCTIONS
            ):
                return row[0]
            case ast.Attribute(value=owner, attr=method), _:
                named = {k.arg: self.value(k.value) for k in node.keywords if k.arg}
                return self._method(self.value(owner), method, row, named)
        return UNKNOWN

    def _method(
        self, owner: Value, method: str, row: Sequence[Value], named: dict[str, Value]
    ) -> Value:
        if method in _SAME_METHODS:
            return owner
        if method in _FIELDS:
            return fill(owner, _FIELDS[method], row, named)
        if method == "join" and row:
            items = row[0].items
            if items is None:
                return row[0] if row[0].origin else UNKNOWN  # the letters of "?" * n
            return functools.reduce(lambda a, b: a + owner + b, items) if items else Value("")
        if method == "replace" and len(row) >= 2:
            return substitute(owner, *row[:2])
        return UNKNOWN
