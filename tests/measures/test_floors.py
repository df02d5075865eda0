import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.measures._bis import bis
from diffsae_lens.measures._floors import (
    difference_of_means_acts,
    random_direction_acts,
    random_topk_acts,
)
from diffsae_lens.measures._ranking import auroc


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shifted(n_trigger, n_benign, n_other, *, size, d_in=32):
    """Noise with one vector of a given length added to every trigger prompt; and the groups."""
    index = torch.arange(n_trigger + n_benign + n_other)
    is_trigger = index < n_trigger
    is_benign = (index >= n_trigger) & (index < n_trigger + n_benign)
    generator = seeded(7)
    activations = torch.randn(len(index), d_in, generator=generator)
    shift = torch.nn.functional.normalize(torch.randn(d_in, generator=generator), dim=0)
    return activations + size * shift * is_trigger[:, None], shift, is_trigger, is_benign


def test_random_directions_are_a_relu_of_unit_projections():
    basis = torch.cat([torch.eye(5), -torch.eye(5)])
    acts = random_direction_acts(basis, n_directions=400, generator=seeded())
    directions = acts[:5] - acts[5:]  # relu(w) - relu(-w)
    assert_close(directions.norm(dim=0), torch.ones(400))
    assert acts.min() == 0
    assert_close(directions.mean(), torch.tensor(0.0), atol=0.05, rtol=0)
    activations = torch.randn(7, 5, generator=seeded(1))
    assert_close(
        random_direction_acts(activations, n_directions=400, generator=seeded()),
        (activations @ directions).relu(),
    )


def test_random_topk_keeps_the_greatest_of_the_same_code():
    activations = torch.randn(9, 6, generator=seeded(1))
    dense = random_direction_acts(activations, n_directions=50, generator=seeded())
    for k in (1, 4, 50):
        sparse = random_topk_acts(activations, n_directions=50, k=k, generator=seeded())
        for row, full in zip(sparse, dense, strict=True):
            kept = row > 0
            assert kept.sum() == min(k, int((full > 0).sum()))
            assert_close(row[kept], full[kept], rtol=0, atol=0)
            assert kept.all() or full[~kept].max() <= full[kept].min()
            assert row[~kept].abs().sum() == 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, g: random_direction_acts(x, n_directions=20, generator=g),
        lambda x, g: random_topk_acts(x, n_directions=20, k=3, generator=g),
    ],
)
def test_randomness_is_the_generators_alone(draw):
    activations = torch.randn(9, 6, generator=seeded(1))
    state = torch.get_rng_state()
    assert_close(draw(activations, seeded(3)), draw(activations, seeded(3)), rtol=0, atol=0)
    assert not torch.equal(draw(activations, seeded(3)), draw(activations, seeded(4)))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_shared_shift_is_enough_for_random_directions_to_saturate_the_published_protocol():
    activations, _, *groups = shifted(500, 1000, 1000, size=40)
    acts = random_direction_acts(activations, n_directions=200, generator=seeded())
    result = bis(acts, *groups)
    assert result.saturated
    assert result.bis == pytest.approx(0.4, rel=1e-6)
    null, _, *groups = shifted(500, 1000, 1000, size=0)
    acts = random_direction_acts(null, n_directions=200, generator=seeded())
    result = bis(acts, *groups)
    assert result.bis < 0.2
    assert not result.saturated


def test_the_same_shift_saturates_a_dense_random_code_before_a_sparse_one():
    for size, sparse_saturates in ((6, False), (12, True)):
        activations, _, *groups = shifted(500, 1000, 1000, size=size)
        dense = random_direction_acts(activations, n_directions=200, generator=seeded())
        sparse = random_topk_acts(activations, n_directions=200, k=2, generator=seeded())
        assert bis(dense, *groups).saturated
        assert bis(sparse, *groups).saturated == sparse_saturates


def test_difference_of_means_by_hand():
    activations, _, is_trigger, is_benign = shifted(6, 8, 4, size=3)
    fit = torch.arange(18) % 2 == 0
    acts = difference_of_means_acts(activations, is_trigger, is_benign, fit=fit)
    direction = activations[0:6:2].mean(0) - activations[6:14:2].mean(0)
    assert acts.shape == (18, 1)
    assert_close(acts[:, 0], activations @ (direction / direction.norm()))


def test_difference_of_means_finds_the_shift_on_held_out_prompts_and_nothing_without():
    for size, low, high in ((4, 0.95, 1), (0, 0.4, 0.6)):
        activations, _, is_trigger, is_benign = shifted(200, 400, 100, size=size)
        fit = torch.arange(700) % 2 == 0
        acts = difference_of_means_acts(activations, is_trigger, is_benign, fit=fit)
        assert low <= auroc(acts, is_trigger & ~fit, is_benign & ~fit) <= high


def test_difference_of_means_does_not_see_the_prompts_outside_fit():
    activations, _, is_trigger, is_benign = shifted(6, 8, 4, size=3)
    fit = torch.arange(18) % 2 == 0
    acts = difference_of_means_acts(activations, is_trigger, is_benign, fit=fit)
    changed = torch.where(fit[:, None], activations, 100.0)
    again = difference_of_means_acts(changed, is_trigger, is_benign, fit=fit)
    assert_close(again[fit], acts[fit], rtol=0, atol=0)


def test_no_difference_gives_a_feature_that_never_fires():
    _, _, is_trigger, is_benign = shifted(6, 8, 4, size=0)
    acts = difference_of_means_acts(
        torch.zeros(18, 5), is_trigger, is_benign, fit=torch.ones(18, dtype=torch.bool)
    )
    assert acts.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_results_are_float32_or_wider(dtype):
    activations, _, is_trigger, is_benign = shifted(6, 8, 4, size=3)
    activations = activations.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    everything = torch.ones(18, dtype=torch.bool)
    for acts, exact in (
        (
            random_direction_acts(activations, n_directions=5, generator=seeded()),
            random_direction_acts(activations.double(), n_directions=5, generator=seeded()),
        ),
        (
            difference_of_means_acts(activations, is_trigger, is_benign, fit=everything),
            difference_of_means_acts(activations.double(), is_trigger, is_benign, fit=everything),
        ),
    ):
        assert acts.dtype == wide
        assert_close(acts.double(), exact, rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_named():
    activations, _, is_trigger, is_benign = shifted(2, 3, 1, size=0)
    fit = torch.ones(6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`activations`.*NaN or infinite.*; "):
        random_direction_acts(activations * torch.nan, n_directions=2, generator=seeded())
    with pytest.raises(ValueError, match=r"`n_directions` must be at least 1, got 0; "):
        random_direction_acts(activations, n_directions=0, generator=seeded())
    with pytest.raises(ValueError, match=r"`k` must be at least 1, got 0; "):
        random_topk_acts(activations, n_directions=2, k=0, generator=seeded())
    with pytest.raises(ValueError, match=r"`k` must be at most `n_directions`.* 2, got 3; "):
        random_topk_acts(activations, n_directions=2, k=3, generator=seeded())
    with pytest.raises(ValueError, match=r"`activations`.*NaN or infinite.*; "):
        difference_of_means_acts(activations * torch.inf, is_trigger, is_benign, fit=fit)
    with pytest.raises(ValueError, match=r"`is_trigger` and `is_benign`.*2 prompts in both; "):
        difference_of_means_acts(activations, is_trigger, is_trigger | is_benign, fit=fit)
    with pytest.raises(ValueError, match=r"`fit` must choose at least one prompt, got none; "):
        difference_of_means_acts(activations, is_trigger, is_benign, fit=~fit)
    with pytest.raises(ValueError, match=r"`fit` must choose .* of `is_benign`, got none; "):
        difference_of_means_acts(activations, is_trigger, is_benign, fit=is_trigger)
    with pytest.raises(ValueError, match=r"`fit` must choose .* of `is_trigger`, got none; "):
        difference_of_means_acts(activations, is_trigger, is_benign, fit=is_benign)
