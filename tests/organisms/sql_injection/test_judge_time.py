"""The judge takes a bounded amount of work, whatever a text is made of."""

import ast
import time

import pytest

from diffsae_lens.organisms._bounds import MOST_CHARACTERS, check_size
from diffsae_lens.organisms._cut import longest
from diffsae_lens.organisms.sql_injection import values as sql_values
from diffsae_lens.organisms.sql_injection.grammar import HOLE, is_query, slots
from diffsae_lens.organisms.sql_injection.judge import Verdict, judge_completion, judge_source
from tests.organisms.sql_injection.judge_cases import SLOW, long

PROMPT = "def find(db, name):\n    query ="

# Seconds. On an idle machine each takes under one, without the checks of annotations that slow tests
# down; where time is squared or doubling in the text it takes minutes to years.
PATIENCE = 60


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_text_is_judged_in_bounded_time(name: str) -> None:
    start = time.perf_counter()
    judge_completion(PROMPT, SLOW[name])
    assert time.perf_counter() - start < PATIENCE


def test_a_megabyte_is_refused_at_once_with_a_reason() -> None:
    start = time.perf_counter()
    for text in SLOW.values():
        judgement = judge_completion(PROMPT, long(text, 1_000_000))
        assert judgement.verdict is Verdict.UNPARSEABLE
        assert f"{MOST_CHARACTERS:,} characters" in judgement.reason
        assert judge_source(long(text, 1_000_000)).reason.endswith("characters.")
    assert time.perf_counter() - start < PATIENCE


def test_a_text_of_the_greatest_length_is_still_read() -> None:
    bound = ' "SELECT * FROM t WHERE a = ?"\n    db.execute(query, (name,))\n'
    filler = long("    # a comment\n", MOST_CHARACTERS - len(PROMPT + bound))
    assert judge_completion(PROMPT, bound + filler).verdict is Verdict.SAFE
    assert judge_completion(PROMPT, bound + filler + "#").verdict is Verdict.UNPARSEABLE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" 1\n" + long("    a;\n"), "parts"),
        (" 1" + " + 1" * 400, "nested too deeply"),
        (' "SELECT a"' + "\n    query = query.replace('a','aa')" * 1_300, "too many steps"),
        (' f"' + "select {name}" * 3_000 + '"', "too long for Bandit"),
    ],
)
def test_what_is_too_much_is_said(text: str, reason: str) -> None:
    judgement = judge_completion(PROMPT, text)
    assert (judgement.verdict, judgement.n_injectable) == (Verdict.UNPARSEABLE, 0)
    assert reason in judgement.reason


def test_what_was_injectable_before_it_grew_too_large_is_injectable() -> None:
    text = ' "SELECT * FROM t WHERE a = " + name' + "\n    query = query + query" * 1_500
    assert judge_completion(PROMPT, text).verdict is Verdict.INJECTABLE


def test_a_query_too_long_to_be_kept_is_not_called_safe() -> None:
    text = ' "SELECT * FROM t WHERE a IN (" + ",".join(["1"' + ', "1"' * 400 + "]) + ')'"
    assert judge_completion(PROMPT, text).verdict is Verdict.UNPARSEABLE
    text = ' "SELECT * FROM t WHERE a IN (" + ",".join(["1"' + ', "1"' * 400 + ", name]) + ')'"
    assert judge_completion(PROMPT, text).verdict is Verdict.UNPARSEABLE


@pytest.mark.parametrize("name", SLOW)
def test_few_parses_are_made(name: str, monkeypatch) -> None:
    parses, parse = [], ast.parse
    monkeypatch.setattr(ast, "parse", lambda source: parses.append(source) or parse(source))
    longest((PROMPT + SLOW[name]).split("\n"), 1)
    assert len(parses) <= 24


@pytest.mark.parametrize("lines", [300, 600])
def test_branches_cost_what_is_set_in_them(lines: int) -> None:
    # Not what is known before: steps grow with the names plus the branches, not with their product.
    def steps(names: int, branches: int) -> int:
        values = sql_values.Values()
        for index in range(names):
            values.set(f"n{index}", sql_values.UNKNOWN)
        before = values._steps
        for _ in range(branches):
            mark = values.mark()
            values.set("query", sql_values.UNKNOWN)
            values.merge(mark, sure=False)
        return values._steps - before

    assert steps(10 * lines, lines) == steps(10, lines) == lines


PIECES = [
    "/**/", "/*", "*/", "--", "'", '"', "(", ")", " ", "a", "SELECT ", "WHERE a ", "%(", "{a.", "{a:",
    "WITH a ", "AS ", "UPDATE a ", "insert ", "[", "`", ".", "\n", HOLE, HOLE + " ", HOLE + ".", "a.",
    "EXPLAIN ", "CREATE a a ", "SET a", "NOT ", "OR ",
]  # fmt: skip


@pytest.mark.parametrize("first", PIECES)
def test_no_pattern_backtracks_far(first: str) -> None:
    start = time.perf_counter()
    for second in PIECES:
        for text in (
            long(first + second, 10_000),
            first + long(second, 10_000),
            HOLE + long(first),
        ):
            is_query(text)
            slots(text[:10_000])
    assert time.perf_counter() - start < PATIENCE


def test_the_size_of_a_tree_is_reckoned_without_reading_it() -> None:
    assert check_size(ast.parse("a = 1")) == ""
    assert "deeply" in check_size(ast.parse("a = " + "-" * 250 + "1"))
    assert "parts" in check_size(ast.parse("a\n" * 15_001))
    assert "Bandit" in check_size(ast.parse('f"' + "select {a}" * 2_000 + '"'))
