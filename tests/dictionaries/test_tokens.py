"""One token policy: what a dictionary was not trained on it neither reads, scales nor edits."""

import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._scales import activation_scales
from diffsae_lens.interventions._directions import add_direction, project_out, swap_to_base
from diffsae_lens.interventions._features import ablate_features, keep_only_features, steer
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy, positions_of
from diffsae_lens.reading._features import describe_features
from diffsae_lens.reading._prompts import Positions, feature_activations
from diffsae_lens.reading._reconstruction import recovered
from tests.conftest import D_MODEL
from tests.interventions.test_features import HOOK, dictionary

EOS = 1
RECORD = {"skip_positions": 1, "ignored_token_ids": [0, EOS, 2]}


def trained_without(record):
    sae = dictionary()
    sae.cfg.metadata.diffsae_lens = record
    return sae


@pytest.fixture
def changed(pair):
    """Which positions an intervention wrote to, `[batch, pos]`."""

    def run(opened, call):
        seen = []
        hooks = [(f"{HOOK}.diff", lambda value, hook: seen.append(value))]
        with pair.hooks(fwd_hooks=hooks):
            call()
        plain, seen[:] = list(seen), []
        with opened, pair.hooks(fwd_hooks=hooks):
            call()
        return [
            (a - b).abs().amax(-1) > 1e-4 for a, b in zip(plain, seen, strict=True)
        ]  # fmt: skip

    return run


def test_the_record_says_which_tokens_count():
    assert DictionaryRecord.of(dictionary()).tokens == EVERY_TOKEN
    assert DictionaryRecord.of(trained_without({"pair": None})).tokens == EVERY_TOKEN
    policy = DictionaryRecord.of(trained_without(RECORD)).tokens
    assert policy == TokenPolicy(skip_positions=1, ignored_token_ids=(0, EOS, 2))
    tokens = torch.tensor([[2, 2, 9, 8, EOS], [7, EOS, 9, 9, 9]])
    attended = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    expected = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 1, 1, 1]]).bool()
    assert torch.equal(policy.counted(tokens, positions_of(attended)), expected)
    with pytest.raises(ValueError, match="`skip_positions`"):
        DictionaryRecord.of(trained_without({"skip_positions": -1}))


def test_the_last_token_that_counts_is_read(pair):
    sae = trained_without(RECORD)
    ended = feature_activations(pair, sae, ["some text<eos>", "other<eos><eos>"])
    plain = feature_activations(pair, sae, ["some text", "other"])
    assert_close(ended, plain, atol=1e-5, rtol=1e-4)
    everything = feature_activations(pair, dictionary(), ["some text<eos>"])
    assert not torch.allclose(everything, ended[:1], atol=1e-3)
    mean = Positions(pooling="mean", skip_positions=0)
    _, cache = pair.run_with_cache(pair.to_tokens("ab<eos>c"))
    expected = sae.encode(cache[f"{HOOK}.diff"][0, [1, 3]]).mean(0)
    read = feature_activations(pair, sae, ["ab<eos>c"], positions=mean)
    assert_close(read[0], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no token is left to pool"):
        feature_activations(pair, sae, ["a<eos>"])


def test_scales_are_of_the_tokens_that_count(pair):
    sae = trained_without(RECORD)
    _, cache = pair.run_with_cache(pair.to_tokens("ab<eos>c"))
    codes = sae.encode(cache[f"{HOOK}.diff"][0, [1, 3]])
    scales = activation_scales(pair, sae, ["ab<eos>c"])
    assert_close(scales.maximum, codes.amax(0), atol=1e-5, rtol=1e-4)
    assert_close(scales.frequency, (codes > 0).float().mean(0))


@pytest.mark.parametrize("policy", [RECORD, {"skip_positions": 2}, {"ignored_token_ids": [EOS]}])
def test_edits_and_their_controls_act_on_the_tokens_that_count(pair, changed, policy):
    sae, rule = trained_without(policy), DictionaryRecord.of(trained_without(policy)).tokens
    tokens = torch.tensor([[5, 6, EOS, 7, 8], [9, 9, 9, EOS, EOS]])
    counted = rule.counted(tokens, positions_of(torch.ones_like(tokens).bool()))
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    for opened in (
        steer(pair, sae, 0, amount=5.0),
        ablate_features(pair, sae, list(range(23))),
        keep_only_features(pair, sae, []),
        swap_to_base(pair, HOOK, **vars(rule)),
        project_out(pair, f"{HOOK}.diff", direction, **vars(rule)),
        add_direction(pair, f"{HOOK}.diff", direction, **vars(rule)),
    ):
        [written] = changed(opened, lambda: pair(tokens))
        assert torch.equal(written, counted)


def test_loss_recovered_leaves_the_other_tokens_alone(pair):
    tokens = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(5))
    sae = trained_without({"ignored_token_ids": sorted(set(tokens.flatten().tolist()))})
    untouched = recovered(pair, sae, tokens)
    assert untouched.kl == pytest.approx({"base put back": 0, "dictionary": 0}, abs=1e-6)
    assert recovered(pair, dictionary(), tokens).kl["dictionary"] > 1e-3


def test_features_are_described_on_the_tokens_that_count(pair):
    tokens = torch.tensor([[5, 6, EOS, 7, 8], [9, 9, 2, 2, 2]])
    value = pair.run_with_cache(tokens)[1][f"{HOOK}.diff"]
    counted = torch.tensor([[0, 1, 0, 1, 1], [0, 1, 0, 0, 0]]).bool()
    sae = trained_without(RECORD)
    table = describe_features(pair, sae, tokens, n_examples=0)
    assert_close(
        torch.tensor(table.frequency), (sae.encode(value[counted]) > 0).float().mean(0)
    )  # fmt: skip


def test_a_pass_of_one_token_is_its_first(pair, changed):
    sae = trained_without({"skip_positions": 1})
    with (
        pytest.raises(RuntimeError, match="never acted"),
        steer(pair, sae, 0, amount=5.0),
    ):
        pair(torch.tensor([[7]]))
    [written] = changed(steer(pair, dictionary(), 0, amount=5.0), lambda: pair(torch.tensor([[7]])))
    assert written.all()


@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
@pytest.mark.parametrize("skip", [0, 2])
def test_positions_are_the_same_with_and_without_a_cache(pair, where, skip):
    """Generation of a padded batch writes the same with a KV cache and without one."""
    sae = trained_without({"skip_positions": skip})
    prompts = ["ab", "a longer prompt"]
    written = []
    for cached in (True, False):
        with steer(pair, sae, 0, amount=3.0, where=where):
            written.append(
                pair.generate(
                    prompts, max_new_tokens=5, use_past_kv_cache=cached, stop_at_eos=False,
                    return_type="tokens",
                )
            )  # fmt: skip
    assert torch.equal(*written)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("prompt", range(2, 6)), ("generated", range(6, 8)), ("all", range(2, 8))],
)
def test_without_a_cache_prompt_and_generated_tokens_are_told_apart(pair, where, expected):
    sae = trained_without({"skip_positions": 2})
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])

    def generate():
        pair.generate(tokens, max_new_tokens=3, use_past_kv_cache=False, stop_at_eos=False)

    # The steering is too weak to change which tokens are written.
    opened = steer(pair, sae, 0, amount=1e-2, where=where)
    seen = []
    hooks = [(f"{HOOK}.diff", lambda value, hook: seen.append(value))]
    with pair.hooks(fwd_hooks=hooks):
        generate()
    plain, seen[:] = list(seen), []
    with opened, pair.hooks(fwd_hooks=hooks):
        generate()
    last = (plain[-1] - seen[-1]).abs().amax(-1)[0] > 1e-4
    assert last.nonzero().flatten().tolist() == list(expected)


def test_where_has_to_return_a_mask(pair, tokens):
    for where in (lambda tokens: tokens, lambda tokens: torch.ones(3).bool(), lambda tokens: None):
        with (
            pytest.raises(ValueError, match="`where` must return a boolean tensor"),
            steer(pair, dictionary(), 0, amount=1.0, where=where),
        ):
            pair(tokens)
