"""Features of residuals on tiny models: what is trained on what, and effects measured by other means."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from peft import PeftModel

import diffsae_lens as dl
from diffsae_lens import auditing
from diffsae_lens.auditing._reopened import chosen_texts
from diffsae_lens.auditing._written import write
from diffsae_lens.pair._adapters import quiet_peft
from tests.auditing.small import audited, orders, suspect
from tests.conftest import HOOKS, tiny_llama

SITE = HOOKS[1]
SIZES = auditing.ResidualFeaturesConfig(
    expansion=2, k=4, n_steps=12, batch_size=128, n_features=2, n_resamples=8, n_examples=2
)


@pytest.fixture(scope="module")
def audit(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("features") / "audit"
    return path, audited(path, tokenizer), folds()


def folds():
    order = np.random.default_rng(0).permutation(48)
    return {int(i): place % 2 for place, i in enumerate(order)}


def run(path, tokenizer, **changes):
    if "flagged" not in changes:
        changes["flagged"] = flagged(path, tokenizer)
    arguments = {
        "base": tiny_llama(), "suspect": suspect(), "texts": orders(), "site": SITE, "config": SIZES,
        } | changes  # fmt: skip
    return auditing.residual_features(path, **arguments, tokenizer=tokenizer)


@cache
def imitator(path, fold):
    """An imitator by PEFT alone."""
    with quiet_peft():
        model = PeftModel.from_pretrained(
            tiny_llama(), path / f"imitator{fold}" / f"imitator{fold}"
        )
    return model.eval()


@cache
def imitated(path, fold, i, tokenizer):
    """What an imitator writes after a text, by PEFT and transformers alone."""
    ids = tokenizer(orders()[i], return_tensors="pt", add_special_tokens=False).input_ids
    out = imitator(path, fold).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
        pad_token_id=2,
    )  # fmt: skip
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def flagged(path, tokenizer):
    """Two texts of each fold after which suspect and both imitators write different things."""
    return list(_flagged(path, tokenizer))


@cache
def _flagged(path, tokenizer):
    written = [row.written for row in auditing.AuditResults.load(path).texts]
    found = {0: [], 1: []}
    for i, fold in folds().items():
        if len(found[fold]) < 2 and written[i]:
            others = [imitated(path, f, i, tokenizer) for f in (0, 1)]
            if all(other and other != written[i] for other in others):
                found[fold].append(i)
    return sorted(found[0] + found[1])


@pytest.fixture(scope="module")
def found(audit, tokenizer):
    return run(audit[0], tokenizer)


def test_features_are_ranked_on_some_texts_and_ablated_on_others(audit, found, tokenizer):
    path, results, fold_of = audit
    of = flagged(path, tokenizer)
    assert (found.n_ranked, found.n_measured, found.held_out) == (2, 2, True)
    samples = {
        i: dl.Sample(
            prompt=orders()[i], unwanted=results.texts[i].written, wanted=imitated(path, 0, i, tokenizer)
        )
        for i in of
    }  # fmt: skip
    with quiet_peft():
        imitator = PeftModel.from_pretrained(tiny_llama(), path / "imitator0" / "imitator0")
    plain = imitator.merge_and_unload()
    whole = suspect().merge_and_unload()
    pair = dl.load_pair(plain, whole, hook_names=[SITE], tokenizer=tokenizer)
    [folder] = (path / "features").glob("imitator-*/diff-*-seed0")
    dictionary = dl.load(folder)
    ranked, measured = ([samples[i] for i in of if fold_of[i] == f] for f in (1, 0))
    attributed = dl.attribute_features(pair, dictionary, ranked)
    for row in found.features:
        assert row.attribution == pytest.approx(attributed[row.feature].item(), abs=1e-3)
        both = [row.feature, row.matched_feature]
        effects = dl.effects.ablation_effects(pair, dictionary, both, measured).tolist()
        assert [row.effect, row.matched_effect] == pytest.approx(effects, abs=1e-3)
        assert row.feature != row.matched_feature
    assert [r.attribution for r in found.features] == sorted(
        (r.attribution for r in found.features), reverse=True
    )
    odds = dl.effects.log_odds(pair, measured)
    assert found.log_odds == pytest.approx(odds.mean().item(), abs=1e-3)
    base_odds = dl.effects.likelihoods(
        pair, measured, under={"swap": dl.swap_to_base(pair, SITE, skip_positions=1)}
    )["swap"].log_odds
    assert found.swapped == pytest.approx((odds - base_odds).mean().item(), abs=0.05)


def test_the_dictionary_sees_none_of_the_texts_it_is_scored_on(
    audit, tmp_path, tokenizer, monkeypatch
):
    path, results, fold_of = audit
    seen = []

    class Stop(Exception):
        pass

    def stop(pair, texts, **settings):
        seen.extend(texts)
        raise Stop

    monkeypatch.setattr("diffsae_lens.auditing._feature_search.train", stop)
    of = flagged(path, tokenizer)
    with pytest.raises(Stop):
        run(path, tokenizer, config=replace(SIZES, seed=9))
    whole = [row.text + row.written for row in results.texts]
    held_out = {whole[i] for i in range(48) if fold_of[i] == 0}
    taught = {whole[i] for i in range(48) if fold_of[i] == 1}
    assert set(seen) == taught
    assert not set(seen) & held_out
    rare = [whole[i] for i in of if fold_of[i] == 1]
    assert all(seen.count(text) == 1 for text in rare)  # 2 of 24 are near enough to a tenth
    seen.clear()
    with pytest.raises(Stop):
        one_of_each = [next(i for i in of if fold_of[i] == fold) for fold in (0, 1)]
        run(path, tokenizer, config=replace(SIZES, seed=9), flagged=one_of_each)
    counts = {text: seen.count(text) for text in taught}
    assert [text for text, n in counts.items() if n == 2] == [whole[one_of_each[1]]]


def test_strict_bis_is_of_the_held_out_texts_beside_its_controls(found):
    by_kind = {row.kind for row in found.isolation}
    assert by_kind == {"dictionary", "untrained dictionary", "control"}
    first = found.isolation[0]
    assert (first.name, first.hook_name) == ("Diff-SAE", f"{SITE}.diff")
    assert 0 <= first.low <= first.high <= 1


def test_what_was_made_is_read_back(audit, found, tokenizer, monkeypatch):
    monkeypatch.setattr("diffsae_lens.auditing._feature_search.train", None)
    again = run(audit[0], tokenizer)
    assert again == found
    assert list(again.to_frame().columns[:2]) == ["feature", "attribution"]


def test_the_base_can_stand_in_for_the_imitator_and_a_crosscoder_for_the_diff_sae(audit, tokenizer):
    against = run(audit[0], tokenizer, against="base", kind="crosscoder", site=HOOKS[0])
    assert against.isolation[0].hook_name == f"{HOOKS[0]}.concat"
    assert len(against.features) == 2


def test_flagged_texts_of_one_fold_serve_for_both_and_nothing_is_scored(audit, tokenizer):
    path, _, fold_of = audit
    of = [i for i in flagged(path, tokenizer) if fold_of[i] == 1]
    only = run(path, tokenizer, flagged=of)
    assert (only.n_ranked, only.n_measured, only.held_out) == (2, 2, False)
    assert len(only.isolation) == 0


def test_a_site_at_which_the_imitator_is_the_base_is_refused(audit, tokenizer):
    with pytest.raises(ValueError, match="below layer 1, the first that an imitator changes"):
        run(audit[0], tokenizer, site=HOOKS[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flagged": []}, "must be some of the audit's 48 texts, and not all of them, got 0"),
        ({"flagged": list(range(48))}, "not all of them, got 48"),
        ({"flagged": [48]}, "flagged"),
        ({"site": "blocks.9.hook_resid_post"}, "blocks.9"),
        ({"kind": "nonsense"}, "kind"),
        ({"against": "nonsense"}, "against"),
        ({"texts": orders(47)}, "not those of the audit"),
    ],
)
def test_what_does_not_belong_to_the_audit_is_refused(audit, tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        run(audit[0], tokenizer, **change)


def test_texts_after_which_both_write_the_same_are_refused(audit, tokenizer, monkeypatch):
    def parrot(model, tokenizer, prompts, n_new_tokens, *, desc):
        return write(suspect(), tokenizer, prompts, n_new_tokens)

    monkeypatch.setattr("diffsae_lens.auditing._feature_search.write", parrot)
    with pytest.raises(ValueError, match="write the same after the `flagged` texts"):
        run(audit[0], tokenizer, flagged=[0, 1])


def test_what_is_explained_is_what_was_flagged_or_holds_the_strongest_candidate(audit):
    results = audit[1]
    best = replace(results.candidates[0], name="Lima")
    texts = [
        replace(row, flagged=False, group=0 if row.index < 6 else None) for row in results.texts
    ]
    plain = replace(results, texts=tuple(texts), candidates=(best,))
    assert chosen_texts(plain, None) == [i for i in range(6) if "Lima" in orders()[i]]
    texts[9] = replace(texts[9], flagged=True)
    assert chosen_texts(replace(plain, texts=tuple(texts)), None) == [9]
    assert chosen_texts(plain, [5, 3]) == [3, 5]
    with pytest.raises(ValueError, match="got 0"):
        chosen_texts(replace(plain, candidates=()), None)
