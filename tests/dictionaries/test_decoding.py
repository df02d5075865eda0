"""What features write, where `W_dec` alone does not say it: against formulas written out here."""

import pytest
import torch
from sae_lens import SAE
from torch.testing import assert_close

from diffsae_lens.dictionaries._decoding import decoder_rows, decodes_linearly
from diffsae_lens.effects._attribution import attribute_features
from diffsae_lens.effects._curves import steering_pair
from diffsae_lens.effects._likelihood import log_odds
from diffsae_lens.effects._scales import activation_scales
from diffsae_lens.interventions._features import (
    ablate_features,
    clamp_features,
    induce_features,
    keep_only_features,
    steer,
)
from diffsae_lens.organisms._behaviour import Sample
from tests.conftest import D_MODEL
from tests.interventions.test_features import HOOK, by_hand
from tests.interventions.test_features import dictionary as plain_dictionary

D_SAE, FEATURES = 24, [0, 3, 7]
KINDS = {
    "rescaled": {"architecture": "topk", "k": 12, "rescale_acts_by_decoder_norm": True},
    "constant norm": {
        "architecture": "jumprelu", "normalize_activations": "constant_norm_rescale",
    },
    "layer norm": {"architecture": "standard", "normalize_activations": "layer_norm"},
}  # fmt: skip
KINDS_AND_VIEWS = [(kind, view) for kind in KINDS for view in ("diff", "concat")]


def dictionary(kind, view="diff"):
    d_in = 2 * D_MODEL if view == "concat" else D_MODEL
    sae = SAE.from_dict({
        "d_in": d_in, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "metadata": {"hook_name": f"{HOOK}.{view}"}, **KINDS[kind],
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("W_enc", (d_in, D_SAE)), ("W_dec", (D_SAE, d_in)), ("b_dec", (d_in,))):
        getattr(sae, name).data = torch.randn(*shape, generator=generator)
    return sae.requires_grad_(False)


def written(sae, kind, value, codes):
    """What codes write beyond the bias, `[..., d_in]`, by the formula of each kind."""
    if kind == "rescaled":
        return (codes / sae.W_dec.norm(dim=-1)) @ sae.W_dec
    if kind == "constant norm":
        return codes @ sae.W_dec * value.norm(dim=-1, keepdim=True) / value.shape[-1] ** 0.5
    return codes @ sae.W_dec * (value - value.mean(-1, keepdim=True)).std(-1, keepdim=True)


@pytest.mark.parametrize(("kind", "view"), KINDS_AND_VIEWS)
def test_ablation_clamping_and_steering_have_the_size_of_what_is_decoded(pair, tokens, kind, view):
    sae = dictionary(kind, view)
    only = torch.zeros(D_SAE)
    only[FEATURES] = 1

    def edited(change):
        def edit(value, finetuned):
            return finetuned + written(sae, kind, value, change(sae.encode(value)))[..., -D_MODEL:]

        return by_hand(pair, tokens, view, edit)

    def by_rows(value, finetuned):
        return finetuned + (3 * only @ sae.W_dec)[-D_MODEL:]

    for opened, change in (
        (ablate_features(pair, sae, FEATURES), lambda codes: -codes * only),
        (clamp_features(pair, sae, FEATURES, amount=2), lambda codes: (2 - codes) * only),
        (steer(pair, sae, FEATURES, amount=3), lambda codes: 3 * only.expand_as(codes)),
    ):
        expected = edited(change)
        with opened:
            assert_close(pair(tokens), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(expected, by_hand(pair, tokens, view, by_rows), atol=1e-2)


@pytest.mark.parametrize(("kind", "view"), KINDS_AND_VIEWS)
def test_what_is_added_to_the_base_has_the_size_of_what_is_decoded(pair, tokens, kind, view):
    sae = dictionary(kind, view)
    _, cache = pair.run_with_cache(tokens)
    value, base = cache[f"{HOOK}.{view}"], cache[f"{HOOK}.base"]
    codes = torch.zeros(*value.shape[:-1], D_SAE)
    codes[..., FEATURES] = sae.encode(value)[..., FEATURES]
    added = written(sae, kind, value, codes)
    if view == "concat":
        added = added[..., D_MODEL:] - added[..., :D_MODEL]
    new = base + added
    expected = by_hand(pair, tokens, "base", lambda base, _: new)
    with keep_only_features(pair, sae, FEATURES):
        assert_close(pair(tokens), expected, atol=1e-4, rtol=1e-4)
    with pair.base_model() as model:
        expected = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: new)])
    induced = induce_features(pair, sae, FEATURES)
    with induced:
        assert_close(induced.pair(tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_add_up_to_what_ablating_everything_takes(pair, kind):
    sae = dictionary(kind)
    samples = [Sample(prompt="a prompt", unwanted=" yes", wanted=" no")]
    before = log_odds(pair, samples).mean()
    with ablate_features(pair, sae, range(D_SAE)):
        taken = (before - log_odds(pair, samples).mean()).item()
    # Which features are the k largest changes on the way.
    n_steps = 48 if kind == "rescaled" else 16
    attribution = attribute_features(pair, sae, samples, n_steps=n_steps)
    assert abs(taken) > 0.05
    assert attribution.sum().item() == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_changing_nothing_changes_nothing(pair, tokens, kind):
    sae = dictionary(kind)
    plain = pair(tokens)
    with ablate_features(pair, sae, []), steer(pair, sae, FEATURES, amount=0):
        assert torch.equal(pair(tokens), plain)


def test_decoding_by_the_rows_alone_is_told_from_the_rest(pair, tokens):
    assert not any(decodes_linearly(dictionary(kind)) for kind in KINDS)
    for view in ("diff", "concat"):
        sae = plain_dictionary(view)
        sae.b_dec.data.normal_(std=100)
        assert decodes_linearly(sae)
        assert torch.equal(decoder_rows(sae), sae.W_dec)
        assert decodes_linearly(sae.to(torch.bfloat16))
    unit = dictionary("rescaled")
    unit.W_dec.data /= unit.W_dec.norm(dim=-1, keepdim=True)
    assert decodes_linearly(unit)


def test_rows_are_what_a_feature_writes_at_activation_one(pair):
    sae = dictionary("rescaled")
    assert_close(decoder_rows(sae), sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True))
    scales = activation_scales(pair, sae, ["def f(x):", "return y"])
    assert_close(scales.decoder_norm, torch.ones(D_SAE))
    assert torch.equal(decoder_rows(dictionary("constant norm")), dictionary("constant norm").W_dec)


def test_steering_at_a_dose_writes_the_maximum(pair, tokens):
    sae = dictionary("rescaled")
    scales = activation_scales(pair, sae, ["def f(x):", "return y"])
    features = scales.live[:2]
    with steer(pair, sae, features, amount=(2 * scales.maximum[features]).tolist()):
        expected = pair(tokens)
    with steering_pair(pair, features, scales, dose=2)["features"]:
        assert_close(pair(tokens), expected, atol=1e-4, rtol=1e-4)
    token_sized = dictionary("constant norm")
    scales = activation_scales(pair, token_sized, ["def f(x):"])
    with pytest.raises(ValueError, match="constant_norm_rescale"):
        steering_pair(pair, scales.live[:1], scales)
