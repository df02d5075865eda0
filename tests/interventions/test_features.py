import pytest
import torch
from sae_lens import SAE
from torch.testing import assert_close

from diffsae_lens.interventions.features import ablate_features, steer, swap_to_base
from tests.conftest import D_MODEL, HOOKS

HOOK = HOOKS[1]
D_SAE = 24


def dictionary(view="diff", d_sae=D_SAE) -> SAE:
    d_in = 2 * D_MODEL if view == "concat" else D_MODEL
    sae = SAE.from_dict({
        "architecture": "jumprelu", "d_in": d_in, "d_sae": d_sae, "dtype": "float32",
        "device": "cpu", "metadata": {"hook_name": f"{HOOK}.{view}"},
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.data = torch.randn(d_in, d_sae, generator=generator)
    sae.W_dec.data = torch.nn.functional.normalize(
        torch.randn(d_sae, d_in, generator=generator), dim=1
    )
    sae.b_enc.data[-1] = -1e6  # the last feature never fires
    return sae


def by_hand(pair, tokens, view, edit):
    """The expected logits: the fine-tuned model alone, its activation edited outside the pair."""
    _, cache = pair.run_with_cache(tokens)
    new = edit(cache[f"{HOOK}.{view}"], cache[f"{HOOK}.finetuned"])
    return pair.finetuned.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: new)])


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_ablation_takes_the_features_contribution_out_of_the_finetuned_model(pair, tokens, view):
    sae, features = dictionary(view), [0, 3, 7]

    def edit(value, finetuned):
        codes = sae.encode(value)[..., features]
        return finetuned - (codes @ sae.W_dec[features])[..., -D_MODEL:]

    expected = by_hand(pair, tokens, view, edit)
    with ablate_features(pair, sae, features) as intervention:
        ablated = pair(tokens)
    assert_close(ablated, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ablated, pair(tokens), atol=1e-3)
    assert intervention.n_forward_passes == 1
    assert torch.equal(pair(tokens), pair.finetuned(tokens))


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_ablating_nothing_that_fires_is_the_exact_identity(pair, tokens, view):
    plain = pair(tokens)
    for features in ([], [D_SAE - 1]):
        with ablate_features(pair, dictionary(view), features):
            assert torch.equal(pair(tokens), plain)


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_steering_adds_the_direction(pair, tokens, view):
    sae = dictionary(view)
    expected = by_hand(
        pair, tokens, view, lambda _, finetuned: finetuned + 2.5 * sae.W_dec[4, -D_MODEL:]
    )
    with steer(pair, sae, 4, strength=2.5):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)
    with steer(pair, sae, [4, 9], strength=[2.5, 0.0]):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)


def test_zero_strength_is_the_exact_identity(pair, tokens):
    with steer(pair, dictionary(), [1, 2], strength=0.0):
        assert torch.equal(pair(tokens), pair.finetuned(tokens))


def test_swap_to_base_equals_patching_the_base_in(pair, tokens):
    expected = by_hand(pair, tokens, "base", lambda base, _: base)
    with swap_to_base(pair, HOOK):
        assert torch.equal(pair(tokens), expected)


def test_interventions_act_at_every_generated_token(pair, tokens):
    with ablate_features(pair, dictionary(), range(D_SAE - 1)) as intervention:
        pair.generate(tokens, max_new_tokens=4, stop_at_eos=False)
    assert intervention.n_forward_passes == 4


def test_interventions_nest(pair, tokens):
    sae = dictionary()
    with ablate_features(pair, sae, [0]), ablate_features(pair, sae, [3]):
        nested = pair(tokens)
    with ablate_features(pair, sae, [0]):
        outer = pair(tokens)
    assert not torch.equal(nested, outer)
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_an_intervention_that_never_acted_is_an_error(pair, tokens):
    with (
        pytest.raises(RuntimeError, match="never acted"),
        ablate_features(pair, dictionary(), [0]),
    ):
        pair.finetuned(tokens)
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_an_error_inside_keeps_its_name_and_removes_the_hooks(pair):
    with pytest.raises(KeyError, match="mine"), ablate_features(pair, dictionary(), [0]):
        raise KeyError("mine")
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


@pytest.mark.parametrize(
    ("features", "message"),
    [([D_SAE], r"\[0, 24\)"), ([-1], r"\[0, 24\)"), ([1, 1], "repeated")],
)
def test_bad_features_are_refused(pair, features, message):
    with pytest.raises(ValueError, match=message), ablate_features(pair, dictionary(), features):
        pass


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), [1.0, 2.0, 3.0]])
def test_bad_strengths_are_refused(pair, strength):
    with (
        pytest.raises(ValueError, match="`strength`"),
        steer(pair, dictionary(), [0, 1], strength=strength),
    ):
        pass


def test_a_dictionary_of_another_hook_is_refused(pair):
    sae = dictionary()
    sae.cfg.metadata.hook_name = "blocks.7.hook_resid_post.diff"
    with (
        pytest.raises(ValueError, match="no hook point of this pair"),
        steer(pair, sae, 0, strength=1.0),
    ):
        pass
    with (
        pytest.raises(ValueError, match="no hook point of this pair"),
        swap_to_base(pair, "blocks.7"),
    ):
        pass
