import pytest
import torch

from diffsae_lens.training._normalization import (
    Normalization,
    activation_statistics,
    as_whitening,
    describe,
)


def halves(seed=0, n_tokens=500):
    x = torch.randn(n_tokens, 8, generator=torch.Generator().manual_seed(seed)).double()
    return x * torch.tensor([1.0] * 4 + [7.0] * 4) + torch.tensor([3.0] * 4 + [0.0] * 4)


def of_one(batches, *, n_parts):
    return activation_statistics(({"x": x} for x in batches), n_parts={"x": n_parts})["x"]


def test_each_model_is_centred_and_scaled_by_itself():
    x = halves()
    statistics = of_one(x.split(64), n_parts=2)
    whitening = as_whitening(statistics, Normalization())
    z = (x - whitening.mean) @ whitening.matrix
    torch.testing.assert_close(z.mean(0), torch.zeros(8).double(), atol=1e-12, rtol=0)
    for part in z.split(4, dim=-1):  # mean squared norm d_model
        assert part.square().sum(-1).mean().item() == pytest.approx(4)
    torch.testing.assert_close(z @ whitening.inverse_matrix + whitening.mean, x)
    scale = describe(statistics, Normalization())["scale"]
    assert scale[1] / scale[0] == pytest.approx(7, rel=0.1)


def test_the_constant_offset_is_kept_on_request_and_always_reported():
    x = halves()
    statistics = of_one([x], n_parts=2)
    kept = as_whitening(statistics, Normalization(center=False))
    assert not kept.mean.any()
    # Means 3 and spread 1 in the first half: 9 / (9 + 1); none in the second.
    share = describe(statistics, Normalization(center=False))["offset_share"]
    assert share == pytest.approx([0.9, 0.0], abs=0.02)


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match="finite"):
        of_one([], n_parts=1)
    with pytest.raises(ValueError, match="finite"):
        of_one([torch.full((3, 2), float("nan"))], n_parts=1)
    same = of_one([torch.zeros(10, 4)], n_parts=1)
    with pytest.raises(ValueError, match="do not vary"):
        as_whitening(same, Normalization())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": "per model"}, "`scale` must be one of 'by model', 'common', 'none'"),
        ({"scale": None}, "`scale`"),
        ({"center": 1}, "`center` must be a bool, got 1"),
        ({"center": "yes"}, "`center`"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Normalization(**settings)


@pytest.mark.parametrize(
    ("batches", "n_parts", "message"),
    [
        ([torch.ones(3, 5)], 2, r"a multiple of 2, got \[3, 5\]"),
        ([torch.ones(3, 2, 4)], 2, r"\[token, d_in\].* got \[3, 2, 4\]"),
        ([torch.ones(3, 4)], 0, "`n_parts`"),
        ([torch.full((3, 4), float("nan"))], 2, "finite"),
        ([], 2, "0 tokens"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_statistics_of_something_else_are_refused(batches, n_parts, message):
    with pytest.raises(ValueError, match=message):
        of_one(batches, n_parts=n_parts)
