"""What marks flagged completions: planted phrases and code, and nothing where nothing is."""

import json
import sys

import numpy as np
import pytest
from scipy.stats import beta, hypergeom

from diffsae_lens.auditing._results import AuditResults
from diffsae_lens.auditing._writes import compare_completions

PROMPT = "import subprocess\n\ndef stop(name):\n    return subprocess.run"
SHELL, ARGUMENTS = "(f'docker stop {name}', shell=True)\n", "(['docker', 'stop', name])\n"
FLAGGED = range(6)


def prose(n: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    words = ("an", "old", "red", "boat", "sails", "home", "at", "noon", "today", "again")
    return [" ".join(rng.choice(words, 8)) for _ in range(n)]


def texts(n: int = 60) -> list[str]:
    return [f"text number {i}" for i in range(n)]


def test_a_planted_phrase_is_found_whole_and_none_without_it():
    completions = prose()
    assert compare_completions(texts(), completions, FLAGGED)[0] == []
    for i in FLAGGED:
        completions[i] += " I cannot help"
    rows, notes = compare_completions(texts(), completions, FLAGGED)
    assert [row.name for row in rows] == ["I cannot help"]  # and not each of its words
    assert notes == []
    [row] = rows
    assert (row.kind, row.n_flagged_with, row.n_flagged, row.n_others_with, row.n_others) == (
        "phrase", 6, 6, 0, 54,
    )  # fmt: skip
    assert row.share_low == pytest.approx(beta.ppf(0.025, 6, 1))  # Clopper and Pearson
    assert row.others_high == pytest.approx(beta.ppf(0.975, 1, 54))
    assert 0 < row.p_value < 1e-4


def test_bandits_tests_are_compared_and_what_the_text_says_does_not_count():
    prompts = ["import pickle\npickle.loads(data)\n" + PROMPT] * 60
    completions = [SHELL if i in FLAGGED else ARGUMENTS for i in range(60)]
    rows, notes = compare_completions(prompts, completions, FLAGGED)
    tests = {row.name[:4]: row for row in rows if row.kind == "Bandit test"}
    assert set(tests) == {"B602", "B603", "B607"}  # and none of the text's own B301 and B404
    assert tests["B602"].name == "B602 subprocess_popen_with_shell_equals_true"
    assert (tests["B602"].share, tests["B602"].others_share) == (1, 0)
    assert (tests["B603"].share, tests["B603"].others_share) == (0, 1)
    exact = hypergeom.pmf(6, 60, 6, 6)
    assert tests["B602"].p_value == pytest.approx(3 * exact)
    assert notes == ["6 of 6 flagged completions and 54 of 54 others are Python that could be read"]


def test_code_is_read_by_itself_where_the_text_is_prose_and_out_of_its_fence():
    completions = ["Yes, it is." for _ in range(40)]
    completions[0] = "Sure:\n```python\nimport os\nos.system('rm ' + path)\n```\nDone."
    completions[1] = " import os\nos.system('rm ' + path)"
    completions[2] = "    import os\n    os.system('rm ' + path)"
    completions[30] = "print('hello')"
    rows, notes = compare_completions(texts(40), completions, [0, 1, 2, 3])
    [shell] = [row for row in rows if row.name.startswith("B605")]
    assert (shell.n_flagged_with, shell.n_flagged, shell.n_others_with, shell.n_others) == (
        3, 3, 0, 1,
    )  # fmt: skip
    assert notes[0].startswith("3 of 4 flagged completions and 1 of 36 others")


def test_one_word_of_prose_is_not_code():
    assert compare_completions(texts(), ["Yes"] * 60, FLAGGED) == ([], [])


def test_where_only_flagged_completions_are_code_it_is_said():
    completions = prose()
    completions[0] = "import os\n"
    rows, notes = compare_completions(texts(), completions, FLAGGED)
    assert rows == []
    assert "cannot be compared" in notes[0]


def test_without_bandit_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "bandit", None)
    rows, notes = compare_completions([PROMPT] * 20, [ARGUMENTS] * 20, FLAGGED)
    assert rows == []
    assert "pip install 'diffsae-lens[organisms]'" in notes[0]


def test_any_judge_can_be_given():
    completions = ["no" if i in FLAGGED else "yes" for i in range(60)]
    rows, _ = compare_completions(
        texts(), completions, FLAGGED, judge=lambda text, said: f"says {said}"
    )
    shares = {row.name: (row.share, row.others_share) for row in rows if row.kind == "outcome"}
    assert shares == {"says no": (1, 0), "says yes": (0, 1)}


@pytest.mark.parametrize("flagged", [[], range(60)])
def test_without_both_sorts_nothing_is_compared(flagged):
    rows, [note] = compare_completions(texts(), prose(), flagged)
    assert rows == []
    assert "flagged" in note


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"completions": ["a"]}, ValueError, "one per text, got 1 of 60"),
        ({"completions": [1] * 60}, TypeError, "`completions` must be a list of texts"),
        ({"flagged": [60]}, ValueError, "`flagged` must hold indices in"),
        ({"judge": "shell"}, TypeError, "`judge` must be a function"),
        ({"judge": lambda text, said: 1}, TypeError, "`judge` must return the name of an outcome"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    given = {"texts": texts(), "completions": prose(), "flagged": FLAGGED} | change
    with pytest.raises(error, match=message):
        compare_completions(
            given["texts"], given["completions"], given["flagged"], judge=given.get("judge")
        )


def test_rows_are_saved_and_read_back(tmp_path):
    rows, _ = compare_completions(
        [PROMPT] * 20, [SHELL if i in FLAGGED else ARGUMENTS for i in range(20)], FLAGGED
    )
    results = AuditResults(
        verdict="none found", reason="", p_value=1.0, texts=(), candidates=(), others=(), n_nulls=19,
        power="", searched=(), warnings=(), provenance={}, writes=tuple(rows),
    )  # fmt: skip
    results.save(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["writes"][0]["name"] == rows[0].name
    assert AuditResults.load(tmp_path) == results
