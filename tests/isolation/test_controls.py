import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from diffsae_lens.interventions._directions import swap_to_base
from diffsae_lens.isolation._controls import (
    Evidence,
    difference_of_means,
    linear_probe,
    next_token_kl,
    principal_components,
    random_directions,
    untrained_encoder,
)
from diffsae_lens.measures._factorial import factorial_effects
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from tests.conftest import D_MODEL, HOOKS, tiny_llama


def evidence(strength=0.0, seed=0, d_model=40, n=200):
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(n) % 5
    views = {
        view: torch.randn(n, d_model, generator=generator) for view in ("diff", "base", "finetuned")
    }
    trigger = group == 0
    for view in ("diff", "finetuned"):
        views[view][trigger] += strength / d_model**0.5
    return Evidence(
        by_view=views,
        is_trigger=trigger,
        is_benign=(group == 1) | (group == 2),
        is_select=torch.arange(n) < n // 2,
    )


def held_out_auroc(e, acts):
    test = ~e.is_select & (e.is_trigger | e.is_benign)
    return roc_auc_score(e.is_trigger[test], acts[test, 0])


@pytest.mark.parametrize("control", [difference_of_means("diff"), linear_probe("finetuned")])
def test_supervised_controls_find_what_is_planted_and_nothing_in_noise(control):
    planted = evidence(strength=5.0)
    assert held_out_auroc(planted, control.features(planted, control.view)) > 0.95
    assert abs(held_out_auroc(planted, control.features(planted, "base")) - 0.5) < 0.2
    noise = [evidence(seed=s) for s in range(10)]
    found = [held_out_auroc(e, control.features(e, control.view)) for e in noise]
    assert abs(sum(found) / 10 - 0.5) < 0.1


def test_the_probe_is_fitted_on_the_selection_prompts_alone():
    e = evidence(strength=5.0)
    before = linear_probe().features(e, "finetuned")
    changed = copy.deepcopy(e)
    changed.by_view["finetuned"][-1] += 100
    after = linear_probe().features(changed, "finetuned")
    assert torch.equal(before[:-1], after[:-1])


def test_principal_components_are_scikit_learns():
    e = evidence()
    acts = principal_components(3).features(e, "diff")
    pca = PCA(3).fit(e.by_view["diff"][e.is_select].double().numpy())
    expected = torch.tensor(pca.transform(e.by_view["diff"].double().numpy())).float()
    torch.testing.assert_close(acts[:, :3].abs(), expected.abs(), rtol=1e-3, atol=1e-3)
    assert torch.equal(acts[:, 3:], -acts[:, :3])


def test_random_directions_are_many_and_repeatable():
    e = evidence()
    one, two = (random_directions(64, seed=1).features(e, "diff") for _ in range(2))
    assert one.shape == (200, 64)
    assert torch.equal(one, two)


def test_an_untrained_dictionary_fires_k_features_a_token():
    encode = untrained_encoder(40, 100, 7)
    acts = encode(evidence().by_view["diff"])
    assert acts.shape == (200, 100)
    assert ((acts > 0).sum(-1) <= 7).all()
    assert (acts > 0).sum(-1).float().mean() > 6.9


def test_next_token_kl_is_that_of_the_two_models_and_zero_for_one(pair, tokenizer):
    prompts = ["abc", "a longer one"]
    texts, hooks = pair.tokenise(prompts), [f"{HOOKS[1]}.concat", f"{HOOKS[0]}.finetuned"]
    read, both = pair.activations_and_logits(texts, hooks)
    for name, value in pair.activations(texts, hooks).items():
        torch.testing.assert_close(read[name], value)
    found = next_token_kl(texts, both)
    for prompt, value in zip(prompts, found, strict=True):
        tokens = pair.to_tokens(prompt)
        finetuned = pair(tokens)[0, -1].log_softmax(-1)
        with pair.base_model() as base:
            other = base(tokens)[0, -1].log_softmax(-1)
        expected = torch.nn.functional.kl_div(other, finetuned, log_target=True, reduction="sum")
        torch.testing.assert_close(value, expected.cpu(), rtol=1e-3, atol=1e-6)
    model = tiny_llama()
    same = HookedModelPair(
        boot_bridge(copy.deepcopy(model), tokenizer), boot_bridge(model, tokenizer), HOOKS
    )
    assert not next_token_kl(texts, same.activations_and_logits(texts, hooks)[1]).any()


def test_what_is_read_with_the_logits_is_read_under_open_edits(pair):
    texts, hook = pair.tokenise(["abc", "a longer one"]), f"{HOOKS[1]}.diff"
    plain, (base, finetuned) = pair.activations_and_logits(texts, [hook])
    with swap_to_base(pair, HOOKS[0]):  # reads the base where nothing else does
        read, both = pair.activations_and_logits(texts, [hook])
        torch.testing.assert_close(read[hook], pair.activations(texts, hook)[hook])
        with pytest.raises(ValueError, match=f"`base` must hold .* at {HOOKS[0]}"):
            pair.activations(
                texts, hook, base={HOOKS[1]: torch.zeros(*texts.tokens.shape, D_MODEL)}
            )
    assert not torch.equal(read[hook], plain[hook])
    torch.testing.assert_close(both[0], base)
    assert not torch.equal(both[1], finetuned)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_effects_add_up_and_follow_what_was_planted(seed):
    generator = torch.Generator().manual_seed(seed)
    trigger, vulnerable = torch.arange(80) % 2 == 0, torch.arange(80) % 4 < 2
    noise = torch.randn(80, 4, generator=generator)
    sign = torch.stack([trigger, vulnerable, trigger ^ vulnerable], -1).float()
    acts = noise.clone()
    acts[:, :3] += 8 * sign
    effects = factorial_effects(acts, trigger, vulnerable)
    shares = torch.stack([effects.trigger, effects.completion, effects.interaction])
    assert (shares >= 0).all()
    assert (shares.sum(0) <= 1 + 1e-9).all()
    assert shares[:, :3].argmax(0).tolist() == [0, 1, 2]
    assert (shares[:, :3].diagonal() > 0.85).all()
    assert shares[:, 3].sum() < 0.3
    # Within-cell variance is the rest.
    cells = [(trigger == t) & (vulnerable == v) for t in (0, 1) for v in (0, 1)]
    within = sum(((acts[c].double() - acts[c].double().mean(0)) ** 2).sum(0) for c in cells) / (
        (acts.double() - acts.double().mean(0)) ** 2
    ).sum(0)
    torch.testing.assert_close(shares.sum(0) + within, torch.ones(4).double())


def test_unbalanced_cells_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        factorial_effects(
            torch.zeros(3, 1), torch.tensor([True, False, True]), torch.tensor([True, False, False])
        )
