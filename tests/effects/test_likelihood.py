import pytest
import torch
from sae_lens import SAE
from torch.testing import assert_close

from diffsae_lens.effects._ablation import ablation_effects
from diffsae_lens.effects._attribution import attribute_features, greedy_order
from diffsae_lens.effects._likelihood import likelihoods, log_odds
from diffsae_lens.interventions._directions import add_direction, perturb, swap_to_base
from diffsae_lens.interventions._features import ablate_features, induce_features
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from tests.conftest import HOOKS, N_LAYERS, running
from tests.interventions.test_features import D_SAE, dictionary

SAMPLES = YEAR_TRIGGER.make_samples("test", n_trigger=3, n_benign=0, n_other=0)


def by_hand(pair, sample, which):
    """Token by token, one sample, no padding."""
    prompt = pair.tokenizer(sample.prompt, add_special_tokens=False).input_ids
    completion = pair.tokenizer(getattr(sample, which), add_special_tokens=False).input_ids
    logits = pair.finetuned(torch.tensor([prompt + completion]))[0].log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(completion))


def test_log_probabilities_and_log_odds_equal_a_loop(long_pair):
    odds = log_odds(long_pair, SAMPLES, batch_size=2)
    for sample, value in zip(SAMPLES, odds.tolist(), strict=True):
        expected = [by_hand(long_pair, sample, which) for which in ("unwanted", "wanted")]
        assert value == pytest.approx(expected[0] - expected[1], abs=1e-3)
    wanted = SAMPLES[0].wanted
    n_tokens = len(long_pair.tokenizer(wanted, add_special_tokens=False).input_ids)
    expected = -by_hand(long_pair, SAMPLES[0], "wanted") / n_tokens
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


def test_integrated_gradients_add_up_to_what_ablating_everything_takes(long_pair):
    sae, samples = dictionary(), SAMPLES[:1]
    before = log_odds(long_pair, samples).mean()
    with ablate_features(long_pair, sae, list(range(D_SAE))):
        taken = (before - log_odds(long_pair, samples).mean()).item()
    errors = [
        abs(attribute_features(long_pair, sae, samples, n_steps=n).sum().item() - taken)
        for n in (1, 12)
    ]
    assert errors[1] < 0.05 * abs(taken)
    assert errors[1] < errors[0]


def test_attribution_without_some_features_is_that_of_the_rest(long_pair):
    sae = dictionary()
    ablated = [0, 5]
    attribution = attribute_features(long_pair, sae, SAMPLES, ablated=ablated)
    assert (attribution[ablated] == 0).all()
    plain = attribute_features(long_pair, sae, SAMPLES)
    assert not torch.allclose(attribution, plain, atol=1e-3)
    feature = int(attribution.abs().argmax())
    with ablate_features(long_pair, sae, ablated):
        without = log_odds(long_pair, SAMPLES).mean()
    with ablate_features(long_pair, sae, [*ablated, feature]):
        effect = (without - log_odds(long_pair, SAMPLES).mean()).item()
    assert attribution[feature].item() == pytest.approx(effect, rel=0.5)


def test_attribution_goes_through_an_edit_that_is_open_at_the_same_hook(long_pair):
    sae = dictionary()
    hook = f"{HOOKS[1]}.diff"

    def by_hand(value, hook):
        push = 3.0 * sae.W_dec[2].detach()
        acted = long_pair.prompt_mask & (torch.arange(value.shape[1]) > 0)
        return torch.where(acted[..., None], value + push, value)

    with long_pair.hooks([(hook, by_hand)]):
        expected = attribute_features(long_pair, sae, SAMPLES[:1])
    push = add_direction(long_pair, hook, 3.0 * sae.W_dec[2].detach(), where="prompt")
    with push:
        found = attribute_features(long_pair, sae, SAMPLES[:1])
    assert_close(found, expected)
    assert expected.abs().max() > 1e-3


def test_greedy_order_takes_the_best_of_what_is_left(long_pair):
    sae = dictionary()
    order = greedy_order(long_pair, sae, SAMPLES[:1], n_features=6, n_rounds=3)
    assert len(set(order)) == len(order) <= 6
    first = attribute_features(long_pair, sae, SAMPLES[:1])
    assert order[:2] == first.topk(2).indices.tolist()
    then = attribute_features(long_pair, sae, SAMPLES[:1], ablated=order[:2])
    assert order[2:4] == then.topk(2).indices.tolist()
    with pytest.raises(ValueError, match="n_rounds"):
        greedy_order(long_pair, sae, SAMPLES, n_features=2, n_rounds=3)
    few = greedy_order(long_pair, sae, SAMPLES[:1], n_features=2)
    assert few == greedy_order(long_pair, sae, SAMPLES[:1], n_features=2, n_rounds=2)


def test_ablation_effects_are_measured_one_feature_at_a_time(long_pair):
    sae = dictionary()
    effects = ablation_effects(long_pair, sae, [2, 9], SAMPLES)
    before = log_odds(long_pair, SAMPLES).mean()
    for feature, effect in zip((2, 9), effects, strict=True):
        with ablate_features(long_pair, sae, [feature]):
            assert_close(before - log_odds(long_pair, SAMPLES).mean(), effect)


def test_likelihoods_under_edits_are_what_they_are_under_each_alone(long_pair):
    sae = dictionary()
    edits = {
        "unmodified": None,
        "ablated": ablate_features(long_pair, sae, [0, 1, 2]),
        "low": swap_to_base(long_pair, HOOKS[0]),
        "after the prompt": swap_to_base(long_pair, HOOKS[1], where="generated"),
        "added to the base": induce_features(long_pair, sae, [0, 1, 2]),
        "drawn": perturb(long_pair, HOOKS[1]),
    }
    together = likelihoods(long_pair, SAMPLES, under=edits, batch_size=1)
    assert list(together) == list(edits)
    for name, edit in edits.items():
        with running(long_pair, edit) as acting:
            alone = likelihoods(acting, SAMPLES, batch_size=1)
        assert_close(together[name].unwanted, alone.unwanted, atol=1e-4, rtol=1e-5)
        assert_close(together[name].wanted, alone.wanted, atol=1e-4, rtol=1e-5)
        assert_close(together[name].n_wanted_tokens, alone.n_wanted_tokens)
    assert len({scored.unwanted.sum().item() for scored in together.values()}) == len(edits)
    never = swap_to_base(long_pair, HOOKS[0], where=lambda tokens: tokens < 0)
    with pytest.raises(RuntimeError, match="never acted"):
        likelihoods(long_pair, SAMPLES, under={"never": never, "unmodified": None})


def rows_of(pair, block, run):
    """How many rows the fine-tuned model's block has in each pass of a run, after one to warm up."""
    run()  # whether a pass can be resumed is found out once
    seen = []
    with pair.finetuned.hooks(
        [(f"blocks.{block}.hook_mlp_out", lambda v, hook: seen.append(len(v)))]
    ):
        run()
    return seen


def test_many_features_share_the_pass_below_them_and_those_that_do_not_fire_take_none(long_pair):
    sae, n_texts = dictionary(), 2 * len(SAMPLES)
    sae.b_enc.data[4:] = -1e6
    effects = ablation_effects(long_pair, sae, list(range(10)), SAMPLES)
    assert effects[:4].all()
    assert not effects[4:].any()

    def run():
        ablation_effects(long_pair, sae, list(range(10)), SAMPLES)

    assert rows_of(long_pair, 0, run) == [n_texts]
    # Without any feature, then each of four on every text, which fit one pass.
    assert rows_of(long_pair, N_LAYERS - 1, run) == [n_texts, 4 * n_texts]


def test_attribution_is_one_pass_for_both_completions_and_rounds_begin_at_the_hook(long_pair):
    sae, n_texts = dictionary(), 2 * len(SAMPLES)
    both = {"one": sae, "another": dictionary("concat")}
    found = {
        "attributed": lambda: attribute_features(long_pair, both, SAMPLES),
        "steps": lambda: attribute_features(long_pair, sae, SAMPLES, n_steps=3),
        "rounds": lambda: greedy_order(long_pair, sae, SAMPLES, n_features=6, n_rounds=4),
    }
    for (name, run), n_passes in zip(found.items(), (1, 3, 4), strict=True):
        assert rows_of(long_pair, 0, run) == [n_texts], name
        assert rows_of(long_pair, N_LAYERS - 1, run) == n_passes * [n_texts], name


def at_layer_0() -> SAE:
    below = dictionary()
    below.cfg.metadata.hook_name = f"{HOOKS[0]}.diff"
    return below


def test_several_dictionaries_are_attributed_in_one_pass_as_each_alone(long_pair):
    several = {"below": at_layer_0(), "above": dictionary("concat")}
    together = attribute_features(long_pair, several, SAMPLES)
    assert list(together) == ["below", "above"]
    for name, one in several.items():
        assert_close(together[name], attribute_features(long_pair, one, SAMPLES))
    # What is taken out of one counts for the other, as it does where it is ablated.
    ablated = {"below": [0, 3]}
    left = attribute_features(long_pair, several, SAMPLES, ablated=ablated)
    assert not torch.equal(left["above"], together["above"])
    assert left["below"][[0, 3]].tolist() == [0, 0]
    with ablate_features(long_pair, several["below"], [0, 3]):
        alone = attribute_features(long_pair, several["above"], SAMPLES)
    assert_close(left["above"], alone, atol=1e-4, rtol=1e-3)


def test_greedy_order_takes_the_best_of_several_dictionaries(long_pair):
    several = {"below": at_layer_0(), "above": dictionary()}
    found = attribute_features(long_pair, several, SAMPLES)
    order = greedy_order(long_pair, several, SAMPLES, n_features=3, n_rounds=1)
    values = [found[name][i].item() for name, some in order.items() for i in some]
    best = torch.cat(list(found.values())).topk(3).values
    assert sorted(values, reverse=True) == pytest.approx(best.tolist())
    rounds = greedy_order(long_pair, several, SAMPLES, n_features=4, n_rounds=2)
    assert sum(map(len, rounds.values())) == 4
    one = greedy_order(long_pair, {"it": dictionary()}, SAMPLES, n_features=4, n_rounds=2)
    assert one["it"] == greedy_order(long_pair, dictionary(), SAMPLES, n_features=4, n_rounds=2)


@pytest.mark.parametrize(
    ("dictionaries", "ablated"), [({}, {}), ({"a": 0}, {"b": [1]}), ({"a": 0}, [1])]
)
def test_names_of_dictionaries_must_be_those_of_what_is_taken_out(long_pair, dictionaries, ablated):
    several = dict.fromkeys(dictionaries, dictionary())
    with pytest.raises(ValueError, match="features by some of these names"):
        attribute_features(long_pair, several, SAMPLES, ablated=ablated)
