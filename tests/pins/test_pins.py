"""What the package computes is what it computed: `python -m tests.pins --write` pins it anew."""

import pytest

from tests.pins.pinned import now, read
from tests.pins.values import differences


@pytest.mark.slow
def test_results_are_those_that_were_pinned():
    lines = differences(read(), now())
    assert not lines, f"{len(lines)} values differ:\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"a": [1.0, "x"], "b": 2}, None),
        ({"a": [1.0 + 1e-8, "x"], "b": 2}, None),
        ({"a": [1.0 + 1e-5, "x"], "b": 2}, "changed: a > 0: 1.0 -> 1.00001"),
        ({"a": [1.0, "y"], "b": 2}, "changed: a > 1: 'x' -> 'y'"),
        ({"a": [1.0, "x"], "b": 3}, "changed: b: 2 -> 3"),
        ({"a": [1.0, "x"]}, "missing: b (was 2)"),
        ({"a": [1.0, "x"], "b": 2, "c": {}}, "new: c = {}"),
    ],
)
def test_a_difference_is_named(changed, line):
    found = differences({"a": [1.0, "x"], "b": 2}, changed)
    assert found == ([] if line is None else [line])
