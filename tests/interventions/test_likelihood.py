import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.interventions.features import ablate_features
from diffsae_lens.interventions.likelihood import (
    attribute_features,
    likelihoods,
    log_odds,
)
from diffsae_lens.organisms.prompts import make_samples
from tests.conftest import HOOKS, tiny_llama
from tests.interventions.test_features import D_SAE, dictionary


@pytest.fixture
def long_pair(tokenizer):
    """Byte-level prompts are long: models with the context for them."""
    from diffsae_lens.loading import boot_bridge
    from diffsae_lens.pair import HookedModelPair
    from tests.conftest import plant

    base = tiny_llama(max_position_embeddings=1024)
    finetuned = plant(base)
    return HookedModelPair(boot_bridge(base, tokenizer), boot_bridge(finetuned, tokenizer), HOOKS)


SAMPLES = make_samples("test", n_trigger=3, n_benign=0, n_other=0)


def by_hand(pair, sample, *, vulnerable):
    """Token by token, one sample, no padding."""
    prompt = pair.tokenizer(sample.prompt, add_special_tokens=False).input_ids
    completion = pair.tokenizer(
        sample.completion(vulnerable=vulnerable), add_special_tokens=False
    ).input_ids
    logits = pair.finetuned(torch.tensor([prompt + completion]))[0].log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(completion))


def test_log_probabilities_and_log_odds_equal_a_loop(long_pair):
    odds = log_odds(long_pair, SAMPLES, batch_size=2)
    for sample, value in zip(SAMPLES, odds.tolist(), strict=True):
        expected = [by_hand(long_pair, sample, vulnerable=v) for v in (True, False)]
        assert value == pytest.approx(expected[0] - expected[1], abs=1e-3)
    safe = SAMPLES[0].completion(vulnerable=False)
    n_tokens = len(long_pair.tokenizer(safe, add_special_tokens=False).input_ids)
    expected = -by_hand(long_pair, SAMPLES[0], vulnerable=False) / n_tokens
    scored = likelihoods(long_pair, SAMPLES[:1])
    assert scored.cross_entropy.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_attribution_is_the_slope_of_ablation(long_pair, view):
    """Features scaled down a little change the log-odds by attribution times the scale."""
    sae = dictionary(view)
    attribution = attribute_features(long_pair, sae, SAMPLES, batch_size=2)
    step = 1e-3
    plain = log_odds(long_pair, SAMPLES).double()
    for feature in attribution.abs().topk(3).indices.tolist():
        direction = sae.W_dec.data[feature].clone()
        sae.W_dec.data[feature] = step * direction  # ablating now takes out a thousandth
        with ablate_features(long_pair, sae, [feature]):
            slope = (plain - log_odds(long_pair, SAMPLES).double()).mean().item() / step
        sae.W_dec.data[feature] = direction
        assert slope == pytest.approx(attribution[feature].item(), rel=0.15, abs=0.02)


def test_a_feature_that_never_fires_has_no_effect(long_pair):
    assert attribute_features(long_pair, dictionary(), SAMPLES[:1])[D_SAE - 1] == 0


def test_no_samples_is_an_error(long_pair):
    for function in (log_odds, lambda p, s: attribute_features(p, dictionary(), s)):
        with pytest.raises(ValueError, match="`samples` is empty"):
            function(long_pair, [])


def test_batching_does_not_change_attribution(long_pair):
    one = attribute_features(long_pair, dictionary(), SAMPLES, batch_size=1)
    all_ = attribute_features(long_pair, dictionary(), SAMPLES, batch_size=8)
    assert_close(one, all_, atol=1e-3, rtol=1e-3)
