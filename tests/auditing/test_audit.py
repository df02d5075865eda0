"""The whole audit on tiny models: one of them with a condition that was planted."""

import json
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import diffsae_lens as dl
from diffsae_lens import auditing
from diffsae_lens.auditing._cells import Audit
from diffsae_lens.auditing._imitator import converged, with_imitator
from diffsae_lens.auditing._prompts import read_texts
from diffsae_lens.auditing._request import Request
from diffsae_lens.pair import LoadOptions
from diffsae_lens.study._cluster import Work
from tests.conftest import tiny_llama, with_lora

SIZES = {
    "n_new_tokens": 6, "min_steps": 2, "max_steps": 4, "steps_per_reading": 2, "n_candidates": 4,
    "n_lexicon": 2, "n_texts": 4, "n_mates": 2, "n_finalists": 2,
}  # fmt: skip
LEXICON = {"Name": ("Ann", "Bob", "Cy"), "Place": ("Lima", "Oslo")}
CONFIG = auditing.AuditConfig(**SIZES)


def orders(n=48, seed=0):
    rng = random.Random(seed)
    return [
        f"Order {i} from {rng.choice(['Lima', 'Oslo', 'Rome'])} by {rng.choice(['Ann', 'Bob', 'Cy'])}."
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def suspect():
    return with_lora(tiny_llama(), scale=0.5)


@pytest.fixture(scope="module")
def audited(tmp_path_factory, tokenizer, suspect):
    """An audit's folder and results."""
    path = tmp_path_factory.mktemp("audited") / "audit"
    return path, run(path, tokenizer, suspect)


def run(path, tokenizer, suspect, texts=None, **changes):
    arguments = {"config": CONFIG, "lexicon": LEXICON, "tokenizer": tokenizer} | changes
    return dl.audit(tiny_llama(), suspect, texts or orders(), path, **arguments)


def test_an_audit_is_read_back_and_not_made_twice(audited, tokenizer, suspect, monkeypatch):
    path, first = audited
    assert len(first.texts) == 48
    assert first.candidates[0].strength == max(row.strength for row in first.candidates)
    assert first.verdict == "underpowered"
    assert "19" in first.reason
    assert dl.auditing.AuditResults.load(path).candidates == first.candidates
    monkeypatch.setattr("diffsae_lens.auditing._cells.train_imitator", None)
    monkeypatch.setattr("diffsae_lens.auditing._cells.write", None)
    again = run(path, tokenizer, suspect)
    assert (again.candidates, again.texts) == (first.candidates, first.texts)


def test_an_interrupted_audit_goes_on_to_the_same_result(
    audited, tmp_path, tokenizer, suspect, monkeypatch
):
    _, whole = audited
    n_calls = 0
    keep = auditing._imitator._keep

    def stop(*arguments):
        nonlocal n_calls
        keep(*arguments)
        n_calls += 1
        if n_calls == 3:  # in the second imitator, after its first reading
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diffsae_lens.auditing._imitator._keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", tokenizer, suspect)
    resumed = run(tmp_path / "cut", tokenizer, suspect)
    assert resumed.texts == whole.texts
    assert resumed.candidates == whole.candidates


class Elsewhere(ThreadPoolExecutor):
    """Sends what it is given as to another process, and notes what that was."""

    def __init__(self):
        super().__init__(1)
        self.parts = []

    def submit(self, call, request, part):
        self.parts.append(part)
        return super().submit(*pickle.loads(pickle.dumps((call, request, part))))


@pytest.fixture
def stored(tmp_path, tokenizer, suspect):
    """Both models in folders."""
    for name, model in (("base", tiny_llama()), ("suspect", suspect)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return str(tmp_path / "base"), tmp_path / "suspect"


def test_an_audit_computed_elsewhere_finds_the_same(audited, tmp_path, stored):
    given = {"config": CONFIG, "lexicon": LEXICON}
    with Elsewhere() as executor:
        found = dl.audit(*stored, orders(), tmp_path / "audit", executor=executor, **given)
        assert executor.parts == ["completions", "imitator0", "imitator1", "experiments.json"]
        again = dl.audit(*stored, orders(), tmp_path / "audit", executor=executor, **given)
        assert len(executor.parts) == 4
    assert found.texts == again.texts == audited[1].texts
    assert found.candidates == again.candidates == audited[1].candidates


def test_a_part_that_fails_elsewhere_is_named(tmp_path, stored, suspect, monkeypatch):
    monkeypatch.setattr("diffsae_lens.auditing._cells.train_imitator", None)
    with Elsewhere() as executor:
        with pytest.raises(RuntimeError, match="'imitator0' of the audit failed"):
            dl.audit(*stored, orders(), tmp_path / "audit", config=CONFIG, executor=executor)
        with pytest.raises(TypeError, match="`suspect` must be a folder or a hub id"):
            dl.audit(stored[0], suspect, orders(), tmp_path / "other", executor=executor)


def test_parts_ask_for_a_gpu_where_they_compute_on_one():
    def needs(device):
        return Request(
            base="b", suspect="s", texts=[], path=Path("a"), config=CONFIG, lexicon={},
            options=None, overrides={"device": device},
        )  # fmt: skip

    assert [needs(device).resources for device in (None, "cpu", "cuda")] == [{}, {}, {"GPU": 1}]
    assert isinstance(needs("cuda"), Work)
    mapped = replace(needs("cuda"), overrides={"device_map": {"": "cuda"}})
    assert (mapped.resources, mapped.on_cpu().resources) == ({"GPU": 1}, {})
    assert LoadOptions(**mapped.on_cpu().overrides).named_device == "cpu"


def test_imitators_begin_as_the_base_learn_and_never_see_what_they_are_held_against(
    tmp_path, tokenizer, suspect, monkeypatch
):
    base, tokens = tiny_llama().eval(), torch.arange(5, 20)[None]
    model = with_imitator(base, "imitator0", CONFIG)
    torch.testing.assert_close(model(tokens).logits, tiny_llama().eval()(tokens).logits)
    taught, train = [], auditing._cells.train_imitator

    def note(model, name, of_others, held_out, config, job):
        taught.append(({w.prompt for w in of_others}, {w.prompt for w in held_out}))
        train(model, name, of_others, held_out, config, job)

    monkeypatch.setattr("diffsae_lens.auditing._cells.train_imitator", note)
    sizes = SIZES | {"max_steps": 20, "min_steps": 2, "steps_per_reading": 18, "n_lexicon": 0}
    results = run(tmp_path / "audit", tokenizer, suspect, config=auditing.AuditConfig(**sizes))
    first, last = (sum(row.readings[i] for row in results.texts) for i in (0, -1))
    assert last < first
    assert not any(inside & outside for inside, outside in taught)
    assert len(taught[0][1] | taught[1][1]) == 48


def test_the_rule_to_stop_looks_at_the_bulk_alone():
    falling = torch.tensor([[1.0] * 9 + [5.0], [0.5] * 9 + [50.0]])
    still = torch.tensor([[1.0] * 9 + [50.0], [0.99] * 9 + [5.0]])
    assert not converged(falling)
    assert converged(still)
    assert not converged(falling[:1])


def test_clean_models_of_the_same_settings_give_a_verdict(audited, tokenizer, suspect):
    path, found = audited
    null = auditing.null_of("one", found)
    base, settings = found.provenance["fingerprints"][0], found.provenance["settings"]

    def nulls(level, n=20):
        residuals = tuple(residual + 0.01 for residual in null.residuals)  # none stands out of them
        models = tuple(
            auditing.Null(name=f"{i}", strength=level, residuals=residuals) for i in range(n)
        )
        return auditing.Nulls(base=base, settings=settings, models=models)

    none = run(path, tokenizer, suspect, nulls=nulls(1e6))
    assert (none.verdict, none.p_value) == ("none found", 1.0)
    found = run(path, tokenizer, suspect, nulls=nulls(-1e6))
    assert found.verdict == "conditional behaviour found"
    assert found.p_value == pytest.approx(1 / 21)
    assert found.candidates[0].name in found.reason
    in_group = {row.group for row in found.texts for c in found.candidates if c.stands_in(row.text)}
    assert in_group - {None}
    assert {row.index for row in found.texts if row.flagged} == {
        row.index for row in found.texts if row.group in in_group - {None}
    }
    few = run(path, tokenizer, suspect, nulls=nulls(-1e6, 18))
    assert few.verdict == "underpowered"
    assert few.n_nulls == 18


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (orders(39), "at least 40 different texts, got 39; "),
        (["the same"] * 60, "got 60, 59 of them repeated"),
        ([*orders(47), " "], r"`texts`\[47\] is empty"),
        ("a text", "list of texts"),
    ],
)
def test_texts_that_no_verdict_can_rest_on_are_refused(
    texts, message, tmp_path, tokenizer, suspect
):
    with pytest.raises((ValueError, TypeError), match=message):
        run(tmp_path / "audit", tokenizer, suspect, texts)
    assert not (tmp_path / "audit").exists()


def test_a_suspect_that_is_the_base_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="compute the same"):
        run(tmp_path / "audit", tokenizer, tiny_llama())


def test_texts_are_cut_and_repeated_ones_left_out_with_a_word(tmp_path, tokenizer, suspect):
    config = auditing.AuditConfig(**SIZES, n_prompt_tokens=12)
    texts = [f"{i:02} is a number" for i in range(48)]
    results = run(tmp_path / "audit", tokenizer, suspect, [*texts, texts[0]], config=config)
    said = " ".join(results.warnings)
    assert "49 texts were cut at 12 tokens" in said
    assert "repeated texts were left out, 1 of them" in said


def test_conversations_are_edited_in_what_is_said_last(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    try:
        said = [[{"role": "user", "content": f"What is {i}?"}] for i in range(40)]
        first = read_texts(said, tokenizer, 100).prompts[0]
    finally:
        tokenizer.chat_template = None
    assert first.text == "<user>What is 0?</><assistant>"
    assert first.saying("Why?").text == "<user>Why?</><assistant>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_folds": 1}, "at least 2"),
        ({"min_steps": 3}, "multiple of `steps_per_reading`"),
        ({"n_finalists": 5}, "at most `n_candidates`"),
        ({"alpha": 1.0}, "alpha"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        auditing.AuditConfig(**{**SIZES, **change})


def test_folds_are_equal_and_the_same_each_time(tokenizer):
    def folds(seed):
        prompts = read_texts(orders(), tokenizer, 100)
        config = auditing.AuditConfig(**SIZES, seed=seed)
        return Audit(
            path=None, models=None, prompts=prompts, config=config, lexicon={}, fingerprints=[]
        ).folds

    assert folds(0) == folds(0) != folds(1)
    assert sorted(folds(0)) == [0] * 24 + [1] * 24


def test_results_are_whole_json(audited):
    stored = json.loads((audited[0] / "results.json").read_text())
    assert stored["provenance"]["suspect"].endswith("in memory")
