"""Bandit's tests on a syntax tree: what a model wrote is never written to a file, imported or run."""

import ast
import functools
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import PurePosixPath

from diffsae_lens._extras import require

__all__ = ["Finding", "familiar", "findings", "name_of_test"]

_SHELLS = ("sh", "bash", "dash", "ksh", "zsh")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that one of Bandit's tests objects to."""

    test: str
    """Id of the test, such as `B602`."""
    severity: str
    """`LOW`, `MEDIUM` or `HIGH`."""
    place: tuple[int, int]
    """Line, counted from one, and column that it points at."""
    begins: int
    """Line on which the whole expression begins."""


@functools.cache
def _bandit(tests: tuple[str, ...]) -> tuple[type, object, object]:
    require("bandit", "the judge of generated code")
    # Loading Bandit takes a while and replaces `warnings.formatwarning` for the whole process.
    formatter = warnings.formatwarning
    loader = logging.getLogger("stevedore.extension")
    level = loader.level
    loader.setLevel(logging.CRITICAL)  # it complains about an output format that nobody asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Bandit's own warnings
        from bandit.core import config, metrics, node_visitor, test_set

    loader.setLevel(level)
    warnings.formatwarning = formatter
    chosen = test_set.BanditTestSet(config.BanditConfig(), {"include": list(tests)})
    return node_visitor.BanditNodeVisitor, chosen, metrics.Metrics()


def findings(tree: ast.Module, tests: tuple[str, ...], *, first_line: int = 1) -> list[Finding]:
    r"""Run some of Bandit's tests.

    Args:
        tree: a syntax tree of a size that `check_size` passes.
        tests: ids of the tests; empty for all of Bandit's.
        first_line: code that ends above this line is read only to know what names mean.

    Examples:
        >>> call = "import os\nos.system('rm ' + path)"
        >>> [f.severity for f in findings(ast.parse(call), ("B605",))]
        ['HIGH']
    """
    visitor_type, chosen, metrics = _bandit(tests)
    # No file of this name is opened. `# nosec` is ignored: a model may write that, too.
    visitor = visitor_type("/completion.py", None, None, chosen, False, {}, metrics)
    visitor.generic_visit(tree)
    return [
        Finding(
            test=issue.test_id,
            severity=issue.severity,
            place=(issue.lineno, issue.col_offset),
            begins=min(issue.linerange),
        )
        for issue in visitor.tester.results
        if max(issue.linerange) >= first_line
    ]


def name_of_test(test: str) -> str:
    """Return Bandit's name for a test.

    Examples:
        >>> name_of_test("B608")
        'hardcoded_sql_expressions'
    """
    _bandit(())  # loaded without its side effects
    from bandit.core.extension_loader import MANAGER

    if test in MANAGER.plugins_by_id:
        return MANAGER.plugins_by_id[test].name
    return MANAGER.blacklist_by_id.get(test, {}).get("name", test)


def familiar(tree: ast.Module) -> ast.Module:
    """Rewrite calls and texts into the forms that Bandit knows; changes the tree.

    `["sh", "-c", text]` becomes `text, shell=True`; `args=` the first argument; `**{"a": b}` the keyword
    `a=b`; `getattr(a, "b")` the attribute; `__import__("a")` the module; a sum of literals and an
    f-string without values one literal.

    Args:
        tree: a syntax tree of a size that `check_size` passes.

    Examples:
        >>> call = familiar(ast.parse("run(['bash', '-c', 'ls ' f'{path}'], check=True)"))
        >>> ast.unparse(call)
        "run(f'ls {path}', check=True, shell=True)"
    """
    return ast.fix_missing_locations(_Familiar().visit(tree))


class _Familiar(ast.NodeTransformer):
    """Rewrites calls and texts into the forms that Bandit knows."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(
                func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name)), *_]
            ):
                return ast.copy_location(ast.Attribute(owner, name, ast.Load()), node)
            case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str(name)), *_]):
                return ast.copy_location(ast.Name(name, ast.Load()), node)
        node.keywords = [written for keyword in node.keywords for written in _written_out(keyword)]
        if not node.args:
            node.args = [keyword.value for keyword in node.keywords if keyword.arg == "args"]
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "args"]
        match node.args:
            case [
                ast.List(
                    elts=[ast.Constant(value=str(shell)), ast.Constant(value=str(option)), text, *_]
                )
                | ast.Tuple(
                    elts=[ast.Constant(value=str(shell)), ast.Constant(value=str(option)), text, *_]
                ),
                *rest,
            ] if PurePosixPath(shell).name in _SHELLS and re.fullmatch(r"-\w*c", option):
                node.args = [text, *rest]
                true = ast.copy_location(ast.Constant(True), text)
                others = [keyword for keyword in node.keywords if keyword.arg != "shell"]
                node.keywords = [*others, ast.keyword("shell", true)]
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        node.value = self.visit(node.value)  # its format has to stay an f-string
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        if len(parts) < len(node.values):
            return node
        return ast.copy_location(ast.Constant("".join(map(str, parts))), node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.BinOp(
                left=ast.Constant(value=str(left)),
                op=ast.Add(),
                right=ast.Constant(value=str(right)),
            ):
                return ast.copy_location(ast.Constant(left + right), node)
        return node


def _written_out(keyword: ast.keyword) -> list[ast.keyword]:
    """Return the keywords that `**{...}` passes; any other keyword unchanged."""
    if keyword.arg is not None or not isinstance(keyword.value, ast.Dict):
        return [keyword]
    pairs = zip(keyword.value.keys, keyword.value.values, strict=True)
    return [
        ast.copy_location(ast.keyword(key.value, value), keyword)
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
        else ast.copy_location(ast.keyword(None, value), keyword)
        for key, value in pairs
    ]
