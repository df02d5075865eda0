"""A part of the campaign of `python -m tests.families`; the slow suite has all of it."""

import re
from pathlib import Path

import pytest

from diffsae_lens.pair._loading import load_pair
from tests.families import judge as judge_module
from tests.families.judge import Judge, Outcome
from tests.families.models import FAMILIES
from tests.families.page import PAGE, recorded, tables
from tests.families.variants import variants

RIGHT = [
    ("llama", "full"),
    ("llama", "LoRA, all linear"),
    ("llama", "full, generating"),
    ("llama", "PiSSA"),
    ("gpt2", "full"),
    ("gpt2", "LoRA"),
    ("gpt2", "LoRA on Conv1D"),
    ("gpt_neox", "LoRA"),
    ("gpt_neox", "dropout, saved while training"),
    ("phi3", "full"),
    ("phi3", "LoRA, all linear"),
    ("qwen3", "full"),
    ("qwen3", "LoRA"),
    ("gemma2", "full"),
    ("gemma2", "LoRA, all linear"),
    ("qwen3_moe", "full"),
    ("qwen3_moe", "LoRA on experts' matrices"),
]
NO_RIGHT_ANSWER = [
    ("llama", "names of another model"),
    ("gpt2", "made for a deeper model"),
]
BRIDGE_IS_WRONG = [("cohere", "full"), ("cohere", "LoRA")]  # of transformer-lens 3.9.0


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Judge:
    return Judge(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize(("family", "variant"), RIGHT)
def test_pairs_are_right(judge, family, variant):
    outcome = judge.judge(family, variant)
    assert outcome.kind == "right", outcome


@pytest.mark.parametrize(("family", "variant"), NO_RIGHT_ANSWER)
def test_what_does_not_fit_is_refused(judge, family, variant):
    outcome = judge.judge(family, variant)
    assert outcome.kind == "refused", outcome


@pytest.mark.parametrize(("family", "variant"), BRIDGE_IS_WRONG)
def test_a_family_that_the_bridge_gets_wrong_is_never_wrong_in_silence(judge, family, variant):
    outcome = judge.judge(family, variant)
    assert outcome.kind in ("right", "refused"), outcome


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_combination_is_what_the_documentation_says(judge, family):
    expected = recorded(PAGE.read_text(encoding="utf-8"))
    outcomes = {variant: judge.judge(family, variant) for variant in variants(family)}
    bad = {v: o for v, o in outcomes.items() if o.kind in ("WRONG", "raw error")}
    assert not bad
    assert {variant: outcome.kind for variant, outcome in outcomes.items()} == {
        variant: expected[family, variant] for variant in outcomes
    }


def test_the_page_has_every_combination():
    combinations = {(family, variant) for family in FAMILIES for variant in variants(family)}
    assert recorded(PAGE.read_text(encoding="utf-8")).keys() == combinations


def test_a_table_is_read_as_it_was_written():
    outcomes = {
        ("llama", "full"): Outcome("right"),
        ("llama", "LoRA"): Outcome("WRONG", "off"),
        ("llama", "PiSSA"): Outcome("raw error", "KeyError"),
        ("gpt2", "full"): Outcome("refused", "a reason"),
        ("gpt2", "LoRA"): Outcome("no such adapter"),
    }
    assert recorded(tables(outcomes)) == {key: o.kind for key, o in outcomes.items()}


def null_pair(base: Path, finetuned: Path, **kwargs):
    return load_pair(base, base, **kwargs)


def exchanged(base: Path, finetuned: Path, **kwargs):
    return load_pair(finetuned, base, **kwargs)


def dies(base: Path, finetuned: Path, **kwargs):
    raise ValueError("not from the package")


@pytest.mark.parametrize(
    ("wrong_load", "kind", "detail"),
    [
        (null_pair, "WRONG", r"fine-tuned logits off by \d.*\.diff off by \d"),
        (exchanged, "WRONG", r"fine-tuned logits off by \d.*base logits off by \d"),
        (dies, "raw error", "ValueError: not from the package"),
    ],
)
def test_the_judge_sees_what_is_wrong(judge, monkeypatch, wrong_load, kind, detail):
    monkeypatch.setattr(judge_module, "load_pair", wrong_load)
    outcome = judge.judge("llama", "full")
    assert outcome.kind == kind
    assert re.match(detail, outcome.detail)
