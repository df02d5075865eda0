"""Read a Python program for the SQL that it writes, without running it.

The reader follows strings through local names, branches, lists and ``+=`` (`sql_values`), writes
every query out as text with a mark for each run-time value (`sql_text`), and records at which places
of the SQL the marks are (`sql_grammar`). A name that is set in a branch keeps the worse of its
values. Type annotations are not enforced, hence not trusted.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffsae_lens.organisms.sql_injection.grammar import slots
from diffsae_lens.organisms.sql_injection.methods import last_name, makes_clause, runs_query
from diffsae_lens.organisms.sql_injection.text import UNKNOWN, Place, Value
from diffsae_lens.organisms.sql_injection.values import TooMuchWorkError, Values, dotted

__all__ = ["Reader", "TooMuchWorkError"]

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp

# Functions that tell people something: a database never reads their arguments.
_TELLS = {"print", "pprint", "warn", "echo", "secho", "flash", "abort", "jsonify", "exit", "fail"}
_LEVELS = {"debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log"}
_LOGS = re.compile(r"_?(?:\w*log\w*|messages|warnings|console|sentry\w*|parser)", re.IGNORECASE)
_MESSAGE = re.compile(
    r"\w*_?(?:msg|message|error|err|reason|warning|note|detail|label|title|prompt|description|help"
    r"|subject)s?",
    re.IGNORECASE,
)
_QUERY_NAME = re.compile(r"(?:\w*_)?(?:sql|query|stmt|statement|q|cmd|command)\d*", re.IGNORECASE)
_CONDITION = re.compile(r"[\w\"`\])]\s?(?:[=<>]|\b(?:LIKE|IN|BETWEEN|IS)\b)", re.IGNORECASE)
_GROWS = {"append", "insert", "extend", "add", "write"}
_TEXT_CALLS = {"format", "format_map", "join", "str", "repr", "ascii", "replace", "strip", "dedent"}


@dataclass
class Reader:
    """Follows strings through a program, statement by statement, and records the queries.

    Attributes:
        first_line: The line from which queries are recorded.
        queries: The place at which each query begins, and whether the query is injectable.
        doubts: The lines on which a query goes through something that is not followed.
        decided: Places of the literals whose use was read and needs no second opinion.
        identifier: Whether a table, column or the like is filled in at run time in any query.

    Examples:
        >>> reader = Reader(first_line=1)
        >>> reader.run(ast.parse("q = 'SELECT * FROM t'; q += f' WHERE a = {a}'").body)
        >>> reader.queries
        {(1, 4): True}
    """

    first_line: int
    queries: dict[Place, bool] = field(default_factory=dict)
    doubts: set[int] = field(default_factory=set)
    decided: set[Place] = field(default_factory=set)
    identifier: bool = False
    _values: Values = field(default_factory=Values)
    _looping: bool = False

    def run(self, body: Sequence[ast.stmt]) -> None:
        """Read statements in order.

        Raises:
            TooMuchWorkError: If there is too much to read; what was recorded before is kept.
        """
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
                case ast.Raise(exc=ast.Call() as error):
                    for part in ast.iter_child_nodes(error):
                        self._scan(part, told=True)
                case _:
                    self._other(statement)

    def _scope(self, scope: Scope) -> None:
        for decorator in scope.decorator_list:
            self._scan(decorator)
        mark, looping, self._looping = self._values.mark(), self._looping, False
        if isinstance(scope, ast.ClassDef):
            for part in [*scope.bases, *scope.keywords]:
                self._scan(part)
            self._class_body(scope)
            kept = f"{scope.name}."
        else:
            self._scan(scope.args)
            self._bind_arguments(scope.args)
            self.run(scope.body)
            kept = "self."
        members = {
            name: value
            for name, value in self._values.changed(mark).items()
            if name.startswith(kept)
        }
        self._values.undo(mark)
        self._looping = looping
        for name, value in members.items():
            self._values.set(name, value)

    def _class_body(self, scope: ast.ClassDef) -> None:
        for statement in scope.body:
            self.run([statement])
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Name):
                    value = self._values.value(target)
                    for owner in ("self", "cls", scope.name):
                        self._values.set(f"{owner}.{target.id}", value)

    def _bind_arguments(self, arguments: ast.arguments) -> None:
        for argument in ast.walk(arguments):
            if isinstance(argument, ast.arg):
                self._values.set(argument.arg, UNKNOWN)

    def _other(self, statement: ast.stmt) -> None:
        loop = isinstance(statement, ast.For | ast.AsyncFor | ast.While)
        if isinstance(statement, ast.For | ast.AsyncFor):
            self._values.bind(statement.target, self._values.each(statement.iter))
        always = isinstance(statement, ast.With | ast.AsyncWith | ast.Try | ast.TryStar)
        for name, found in ast.iter_fields(statement):
            for piece in found if isinstance(found, list) else [found]:
                if isinstance(piece, ast.withitem) and piece.optional_vars:
                    self._values.bind(piece.optional_vars, UNKNOWN)
                if isinstance(piece, ast.ExceptHandler | ast.match_case):
                    self._branch(piece.body)
                elif isinstance(piece, ast.AST) and not isinstance(piece, ast.stmt):
                    self._scan(piece, told=name == "msg")  # of an `assert`
            if isinstance(found, list) and found and isinstance(found[0], ast.stmt):
                sure = always and name in ("body", "finalbody")
                self._branch(found, sure=sure, loop=loop and name == "body")

    def _branch(self, body: Sequence[ast.stmt], *, sure: bool = False, loop: bool = False) -> None:
        # The branch may not be taken, unless it is `sure`. A round of a loop sees what the previous
        # round left, so loops are read twice; inner loops are covered by that.
        twice = loop and not self._looping
        self._looping |= loop
        for _ in range(2 if twice else 1):
            mark = self._values.mark()
            self.run(body)
            self._values.merge(mark, sure=sure)
        if twice:
            self._looping = False

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        names = [last_name(target) for target in targets]
        known = self._values.value(value)
        told = any(map(_MESSAGE.fullmatch, names)) and not known.text.lstrip()[:6].isupper()
        self._scan(value, told=told)
        if known.hidden and isinstance(value, ast.Call):
            given = {last_name(argument) for argument in value.args}
            if any(name in given or _QUERY_NAME.fullmatch(name) for name in names):
                self._doubt(value)
        for target in targets:
            self._values.bind(target, self._values.value(value))

    def _scan(
        self, node: ast.AST, covered: frozenset[Place] = frozenset(), *, told: bool = False
    ) -> None:
        # Record the largest string expressions in a node. What one of them covers is part of it.
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp | ast.Call):
            value = self._values.value(node)
            if not value.places <= covered:
                self._note(value, node, told=told)
            covered |= value.places
        self._values.spend(0, len(covered))
        if isinstance(node, ast.Call):
            self._scan_call(node, covered, told)
            return
        mark = self._values.mark()
        if isinstance(node, _Comprehension):
            self._values.bind_generators(node)
        elif isinstance(node, ast.Lambda):
            self._bind_arguments(node.args)
        elif isinstance(node, ast.NamedExpr):
            self._values.bind(node.target, self._values.value(node.value))
        for child in ast.iter_child_nodes(node):
            self._scan(child, covered, told=told)
        if isinstance(node, _Comprehension | ast.Lambda):
            self._values.undo(mark)

    def _scan_call(self, node: ast.Call, covered: frozenset[Place], told: bool) -> None:
        name = last_name(node.func)
        told = _tells(node.func) or (told and name in _TEXT_CALLS)
        if runs_query(name):
            self._note_run(node)
        if self._values.is_method_of_query(node.func):
            self._doubt(node)
        self._scan(node.func, covered, told=told)
        for child in [*node.args, *node.keywords]:
            self._scan(child, covered, told=told or _is_labelled(child))
        if isinstance(node.func, ast.Attribute) and node.args:
            known, more = (self._values.value(part) for part in (node.func.value, node.args[-1]))
            if known.items is not None and name in _GROWS:
                row = more.items if name == "extend" and more.items is not None else (more,)
                self._values.extend(node.func.value, row, first=name == "insert")

    def _note_run(self, node: ast.Call) -> None:
        # What is run is a query, whatever its name, unless it was built in the prompt.
        for argument in node.args[:2]:
            value = self._values.value(argument)
            if value.hidden:
                self._doubt(argument)
            elif dotted(argument) and any(line >= self.first_line for line, _ in value.places):
                self._note(value, node)

    def _doubt(self, node: ast.expr) -> None:
        if (node.end_lineno or 0) >= self.first_line:
            self.doubts.add(node.lineno)

    def _note(self, value: Value, node: ast.expr, *, told: bool = False) -> None:
        if (node.end_lineno or 0) < self.first_line:
            return
        if told:
            self.decided |= value.places
            return
        self._values.spend(4 * len(value.text))
        kinds = slots(value.text)
        clause = isinstance(node, ast.Call) and makes_clause(last_name(node.func))
        if value.origin and (value.is_query or (clause and _CONDITION.search(value.text))):
            known = self.queries.get(value.origin, False)
            self.queries[value.origin] = known or "value" in kinds
            self.identifier |= "name" in kinds
            if "doubt" in kinds:
                self._doubt(node)
        elif kinds & {"value", "doubt"}:
            return  # a second opinion is wanted
        self.decided |= value.places


def _tells(function: ast.expr) -> bool:
    name = last_name(function)
    if isinstance(function, ast.Attribute) and name in _LEVELS:
        return bool(_LOGS.fullmatch(last_name(function.value)))
    return name in _TELLS or name.endswith(("Error", "Exception"))


def _is_labelled(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and bool(_MESSAGE.fullmatch(node.arg or ""))
