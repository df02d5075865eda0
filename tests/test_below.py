"""Passes over the same texts go on from what an earlier one computed below a hook, with equal results."""

import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.effects._ablation import ablation_effects
from diffsae_lens.effects._attribution import attribute_features
from diffsae_lens.interventions._directions import swap_to_base
from diffsae_lens.organisms._behaviour import Sample
from diffsae_lens.pair import _below
from diffsae_lens.pair._below import read_below
from tests.conftest import HOOKS
from tests.test_shared import PAIRS, made

LOW, HIGH = HOOKS
ROWS = torch.tensor([2, 0, 0, 1])
SAMPLES = [Sample(prompt="in 2024", unwanted=" yes", wanted=" no")]


def some_tokens(pair):
    return torch.randint(3, 259, (3, 9), generator=torch.Generator().manual_seed(4))


def turned(value, hook):
    return value.roll(1, dims=-1)


@pytest.mark.parametrize(("family", "kind"), [*PAIRS, ("llama", "merged")])
def test_a_pass_goes_on_from_below_as_a_whole_one(family, kind, tokenizer):
    pair = made(family, kind, tokenizer)
    tokens = some_tokens(pair)
    for hook in (f"{LOW}.diff", f"{HIGH}.concat", f"{HIGH}.finetuned"):
        below = read_below(pair, tokens, [hook])
        assert below.n_blocks == 1 + HOOKS.index(hook.rpartition(".")[0])
        with pair.hooks(fwd_hooks=[(hook, turned)]):
            whole = pair(tokens[ROWS])
            seen = []
            with (
                below.resumed(ROWS),
                pair.finetuned.hooks([("blocks.0.hook_mlp_out", seen.append)]),
            ):
                found = pair(tokens[ROWS])
        assert not seen
        assert_close(found, whole, atol=1e-5, rtol=1e-5)
        # Afterwards all is as it was.
        assert torch.equal(pair(tokens), pair.finetuned(tokens))


def test_edits_that_are_open_act_in_every_pass(pair):
    tokens = some_tokens(pair)
    plain = pair(tokens[ROWS])
    for site in HOOKS:
        with swap_to_base(pair, site):
            below = read_below(pair, tokens, [f"{HIGH}.diff"])
            assert below.n_blocks == 1 + HOOKS.index(site)  # up to the lowest that acts
            with pair.hooks(fwd_hooks=[(f"{HIGH}.diff", turned)]):
                whole = pair(tokens[ROWS])
                with below.resumed(ROWS):
                    found = pair(tokens[ROWS])
        assert_close(found, whole, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(found, plain, atol=1e-3)


def test_an_error_leaves_the_models_as_they_were(pair):
    tokens = some_tokens(pair)
    below = read_below(pair, tokens, [f"{HIGH}.diff"])
    with pytest.raises(KeyError), below.resumed():
        raise KeyError
    assert torch.equal(pair(tokens), pair.finetuned(tokens))
    assert all("forward" not in vars(module) for module in pair.finetuned.modules())
    assert pair._given is None


def test_where_no_block_can_be_entered_all_is_computed_from_the_beginning(pair, monkeypatch):
    from tests.interventions.test_features import dictionary

    sae = dictionary("concat")
    monkeypatch.setattr(pair, "_resumes", None)
    expected = (
        ablation_effects(pair, sae, [0, 3], SAMPLES),
        attribute_features(pair, sae, SAMPLES),
    )
    assert pair._resumes
    # A block whose output is not what the next one reads.
    real = _below.narrowed
    monkeypatch.setattr(
        _below, "narrowed", lambda given, n, rows: 2 * real(given, n, rows)
        if isinstance(given, torch.Tensor) else real(given, n, rows)
    )  # fmt: skip
    monkeypatch.setattr(pair, "_resumes", None)
    found = ablation_effects(pair, sae, [0, 3], SAMPLES), attribute_features(pair, sae, SAMPLES)
    assert pair._resumes is False
    assert read_below(pair, some_tokens(pair), [f"{HIGH}.diff"]).n_blocks == 0
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected[0].all()
