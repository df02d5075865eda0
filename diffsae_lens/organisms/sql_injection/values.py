"""The text value of a Python expression, without running the program.

`Values` knows the names in scope. It follows strings through operators, containers and known calls;
anything unknown is a run-time value, and a query that goes into it is marked as in doubt.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from diffsae_lens.organisms.sql_injection.grammar import DOUBT, HOLE
from diffsae_lens.organisms.sql_injection.methods import Call, call, last_name
from diffsae_lens.organisms.sql_injection.text import (
    LITERAL_NUMBER,
    NUMBER,
    PERCENT,
    UNKNOWN,
    Place,
    Value,
    concatenate,
    doubtful,
    fill,
    is_number_format,
    mapping,
    sequence,
    worst,
)

__all__ = ["TooMuchWorkError", "Values", "dotted"]

_MOST_STEPS = 60_000
_CHARACTERS_PER_STEP = 64

Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


class TooMuchWorkError(Exception):
    """The program takes more steps to read than the reader is allowed."""


def dotted(node: ast.AST) -> str:
    """Return a dotted name like ``self.sql``; ``""`` for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@dataclass
class Values:
    """The values of names and expressions.

    Assignments are logged, so that those of a branch or an inner scope can be undone, or merged with the
    earlier values, in time proportional to their number.

    Examples:
        >>> values = Values()
        >>> values.bind(ast.Name("a"), NUMBER)
        >>> values.value(ast.parse("'a = ' + str(a)", mode="eval").body).text
        'a = 0'
    """

    _names: dict[str, Value] = field(default_factory=dict)
    _log: list[tuple[str, Value | None]] = field(default_factory=list)
    _known: dict[ast.expr, Value] = field(default_factory=dict)
    _steps: int = 0

    def spend(self, characters: int, places: int = 0) -> None:
        """Count the work of a step on a text, so that every reading is bounded.

        Raises:
            TooMuchWorkError: If the work exceeds that of any program of ordinary size.
        """
        self._steps += 1 + (characters + 8 * places) // _CHARACTERS_PER_STEP
        if self._steps > _MOST_STEPS:
            raise TooMuchWorkError

    def mark(self) -> int:
        """Return a mark of the current state, for `undo`, `merge` and `changed`."""
        return len(self._log)

    def changed(self, mark: int) -> dict[str, Value]:
        """Return the names that were set since a mark, with their current values."""
        return {name: self._names[name] for name, _ in self._log[mark:]}

    def undo(self, mark: int) -> None:
        """Undo what was set since a mark."""
        while len(self._log) > mark:
            name, old = self._log.pop()
            if old is None:
                del self._names[name]
            else:
                self._names[name] = old
            self._known.clear()

    def merge(self, mark: int, *, sure: bool) -> None:
        """Keep the worse of the values at the mark and now, unless the code since then is `sure` to run."""
        before: dict[str, Value | None] = {}
        for name, old in self._log[mark:]:
            before.setdefault(name, old)
        del self._log[mark:]
        self._log += before.items()
        for name, old in before.items():
            self.spend(len(self._names[name].text))
            if old is not None and not sure:
                self._names[name] = worst([self._names[name], old])
        self._known.clear()

    def set(self, name: str, value: Value) -> None:
        """Set a name."""
        self._log.append((name, self._names.get(name)))
        self._names[name] = value
        self._known.clear()

    def bind(self, target: ast.expr, value: Value) -> None:
        """Set the left-hand side of an assignment."""
        if isinstance(target, ast.Starred):
            self.bind(target.value, sequence([value]))
        elif isinstance(target, ast.Tuple | ast.List):
            items = value.items or ()
            if len(items) == 1:  # all of them, as `str.split` gives
                items *= len(target.elts)
            pairs = items if len(items) == len(target.elts) else [UNKNOWN] * len(target.elts)
            for element, item in zip(target.elts, pairs, strict=True):
                self.bind(element, item)
        elif isinstance(target, ast.Subscript):
            self._bind_item(target, value)
        elif name := dotted(target):
            self.set(name, value)

    def _bind_item(self, target: ast.Subscript, value: Value) -> None:
        known, key = self.value(target.value), target.slice
        self.spend(0, len(known.items or ()))
        if known.pairs is not None and isinstance(key, ast.Constant) and isinstance(key.value, str):
            self.bind(target.value, mapping({**known.pairs, key.value: value}))
        elif known.items is not None:
            self.bind(target.value, sequence([*known.items, value]))

    def extend(self, target: ast.expr, items: Sequence[Value], *, first: bool = False) -> None:
        """Add items to a known list, at its end or before all others."""
        known = self.value(target).items or ()
        self.spend(0, len(known))
        self.bind(target, sequence([*items, *known] if first else [*known, *items]))

    def bind_generators(self, node: Comprehension) -> None:
        """Set the loop names of a comprehension."""
        for generator in node.generators:
            self.bind(generator.target, self.each(generator.iter))

    def each(self, iterable: ast.expr) -> Value:
        """Return what a loop over an expression iterates over, as one value."""
        known = self.value(iterable)
        if known.pairs is not None:
            return worst([Value(key) for key in known.pairs])
        return worst(known.items or ())

    def value(self, node: ast.expr) -> Value:
        """Return an expression as text; what cannot be read is a run-time value.

        Raises:
            TooMuchWorkError: If there is too much to read.
        """
        known = self._known.get(node)
        if known is None:
            known = self._value(node)
            self.spend(len(known.text), len(known.places))
            self._known[node] = known
        return known

    def _value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=str() | bytes() as text):
                return _literal(text, (node.lineno, node.col_offset))
            case ast.Constant():
                return LITERAL_NUMBER
            case ast.Compare() | ast.UnaryOp():
                return NUMBER
            case ast.Name(id=name):
                return self._names.get(name, UNKNOWN)
            case ast.Attribute():
                return self._attribute(node)
            case ast.JoinedStr(values=pieces):
                return concatenate([self.value(piece) for piece in pieces])
            case ast.FormattedValue(value=inner, format_spec=spec):
                numeric = spec is not None and is_number_format(self.value(spec).text)
                return NUMBER if numeric else self.value(inner)
            case ast.BinOp():
                return self._operation(node)
            case ast.Call():
                return self._call(node)
        return self._container(node)

    def _attribute(self, node: ast.Attribute) -> Value:
        name = dotted(node)
        if name in self._names:
            return self._names[name]
        owner = self.value(node.value)
        if owner.number:
            return NUMBER
        # A method of a query that is passed on, as in `fill = query.format`, contains the query.
        return replace(UNKNOWN, hidden=owner.is_query)

    def _container(self, node: ast.expr) -> Value:
        match node:
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return sequence(self._row(items))
            case ast.Dict():
                return self._dict(node)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                mark = self.mark()
                self.bind_generators(node)
                item = self.value(node.value if isinstance(node, ast.DictComp) else node.elt)
                self.undo(mark)
                return sequence([item])
            case ast.IfExp(body=body, orelse=orelse):
                return worst([self.value(body), self.value(orelse)])
            case ast.BoolOp(values=values):
                return worst([self.value(value) for value in values])
            case ast.NamedExpr(value=inner) | ast.Await(value=inner) | ast.Starred(value=inner):
                return self.value(inner)
            case ast.Subscript(value=owner, slice=index):
                return self._item(self.value(owner), index)
        return UNKNOWN

    def _row(self, nodes: Sequence[ast.expr]) -> list[Value]:
        row: list[Value] = []
        for node in nodes:
            known = self.value(node)
            whole = isinstance(node, ast.Starred) and known.items is not None
            row += known.items or () if whole else [known]
        return row

    def _item(self, owner: Value, index: ast.expr) -> Value:
        if isinstance(index, ast.Slice):
            return owner  # as in ("?, " * n)[:-2]
        if owner.pairs is not None and isinstance(index, ast.Constant):
            return owner.pairs.get(str(index.value), UNKNOWN)
        match index:
            case ast.Constant(value=int(at)) if 0 <= at < len(owner.items or ()) > 1:
                return (owner.items or ())[at]
        return worst(owner.items or ())

    def _dict(self, node: ast.Dict) -> Value:
        pairs, others = {}, []
        for key, item in zip(node.keys, node.values, strict=True):
            known = self.value(item)
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                pairs[key.value] = known
            elif key is None and known.pairs is not None:
                pairs |= known.pairs
            else:
                others.append(known)
        return mapping(pairs, others)

    def _operation(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        numbers = [side for side in (left, right) if side.number]
        literal = any(side.origin or side.items is not None for side in (left, right))
        match node.op:
            case ast.Add():
                # A number and a string cannot be added, so an addition with a number is arithmetic.
                return NUMBER if numbers and not literal else left + right
            case ast.Mod() if left.origin:
                named = right.pairs or {}
                return fill(
                    left, PERCENT, right.items if right.items is not None else (right,), named
                )
            case ast.Mult() if literal:  # once is enough: "?, " * n, ["?"] * n
                return left if left.origin or left.items is not None else right
            case ast.Mult():
                # A difference is a number, hence so is its product; `name * 2` may be a repeated text.
                computed = any(side.computed for side in numbers) or len(numbers) == 2
                return NUMBER if computed else UNKNOWN
            case ast.Sub() | ast.BitAnd() if left.items is not None:
                return left  # a set, from which some items remain
            case ast.Sub() | ast.BitOr() | ast.BitAnd() | ast.BitXor() if literal:
                return _of_sets(left, right)
            case ast.Sub() | ast.FloorDiv() | ast.Pow():
                return doubtful([left, right]) if literal else NUMBER  # a TypeError on strings
            case ast.Div() if not literal:
                return NUMBER if numbers else UNKNOWN  # which may be a path
            case ast.Mod() if left.number:
                return NUMBER
        return doubtful([left, right]) if literal else NUMBER if len(numbers) == 2 else UNKNOWN

    def _call(self, node: ast.Call) -> Value:
        function = node.func
        if self.is_method_of_query(function):
            return replace(UNKNOWN, hidden=True)
        named: dict[str, Value] = {}
        for keyword in node.keywords:
            known = self.value(keyword.value)
            named |= {keyword.arg: known} if keyword.arg else known.pairs or {}
        owner, home = None, ""
        if isinstance(function, ast.Attribute):
            owner, home = self.value(function.value), last_name(function.value)
        row, apply = self._row(node.args), self._function(node)
        return call(Call(last_name(function), row, named, apply, owner, home))

    def is_method_of_query(self, function: ast.expr) -> bool:
        """Return whether a name refers to a method of a query, so that calling it changes the query."""
        known = self._names.get(dotted(function))
        return known is not None and known.hidden

    def _function(self, node: ast.Call) -> Callable[[Sequence[Value]], Value]:
        # What a function passed as an argument, as in `map(str, ids)`, returns for its arguments.
        def apply(row: Sequence[Value]) -> Value:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Lambda):
                mark = self.mark()
                for argument, item in zip(first.args.args, row, strict=False):
                    self.set(argument.arg, item)
                known = self.value(first.body)
                self.undo(mark)
                return known
            if isinstance(first, ast.Name | ast.Attribute):
                return call(Call(last_name(first), row, {}, lambda _: UNKNOWN))
            return UNKNOWN

        return apply


def _literal(text: str | bytes, place: Place) -> Value:
    text = text if isinstance(text, str) else text.decode("latin-1")
    return Value(text.replace(HOLE, " ").replace(DOUBT, " "), frozenset({place}), place)


def _of_sets(left: Value, right: Value) -> Value:
    if left.items is None and right.items is None:
        return doubtful([left, right])
    if left.items is None or right.items is None:
        return UNKNOWN
    return sequence([*left.items, *right.items])
