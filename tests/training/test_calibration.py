"""Calibration of thresholds: what it is asked for, and a dictionary untouched by what it refuses."""

import pytest
import torch
from sae_lens import SAE

from diffsae_lens.training._calibration import calibrate_threshold
from tests.interventions.test_features import D_SAE, dictionary

pytestmark = pytest.mark.usefixtures("no_shape_checks")

WIDTH = 16
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def sae() -> SAE:
    sae = dictionary()
    sae.threshold.data.fill_(0.7)
    return sae


@pytest.fixture
def activations() -> torch.Tensor:
    return torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [1, 2.5, 6])
def test_as_many_features_fire_as_asked_for(sae, activations, k):
    l0 = calibrate_threshold(sae, activations, k=k)
    fired = (sae.encode(activations) > 0).sum().item() / len(activations)
    assert l0 == fired == pytest.approx(k, abs=1 / len(activations))


def spoilt(activations, value):
    activations = activations.clone()
    activations[3, 4] = value
    return activations


BAD = [
    ({"activations": lambda a: spoilt(a, NAN)}, ValueError, "`activations` must be finite, got 1"),
    ({"activations": lambda a: spoilt(a, INF)}, ValueError, "`activations` must be finite"),
    (
        {"activations": lambda a: a[:, :-1]},
        ValueError,
        r"\[token, 16\], got torch.float32 of \[200, 15\]",
    ),
    ({"activations": lambda a: a[0]}, ValueError, r"\[token, 16\], got torch.float32 of \[16\]"),
    ({"activations": lambda a: a.view(2, 100, WIDTH)}, ValueError, r"\[token, 16\]"),
    ({"activations": lambda a: a[:0]}, ValueError, "no tokens"),
    ({"k": 0}, ValueError, "`k` must be greater than 0"),
    ({"k": D_SAE + 1}, ValueError, "at most 24, got 25"),
    ({"k": NAN}, ValueError, "`k`"),
    ({"k": True}, TypeError, "`k` must be a number"),
    ({"chunk_size": -1}, ValueError, "`chunk_size`"),
    ({"chunk_size": 1.5}, TypeError, "`chunk_size`"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_what_is_refused_leaves_the_dictionary_as_it_was(sae, activations, change, error, message):
    change = {**change}
    given = change.pop("activations", lambda a: a)(activations)
    with pytest.raises(error, match=message):
        calibrate_threshold(sae, given, **{"k": 2, **change})
    assert (sae.threshold == 0.7).all()


def test_a_failure_on_the_way_leaves_the_dictionary_as_it_was(sae, activations, monkeypatch):
    def fail(x):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sae, "encode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate_threshold(sae, activations, k=2)
    assert (sae.threshold == 0.7).all()


def test_a_diverged_dictionary_is_refused(sae, activations):
    sae.W_enc.data[0, 0] = NAN
    with pytest.raises(ValueError, match=r"`dictionary.W_enc` must be finite, got 1"):
        calibrate_threshold(sae, activations, k=2)


def test_some_features_may_share_a_budget(sae, activations):
    calibrate_threshold(sae, activations, k=1, features=slice(0, 8))
    assert (sae.threshold[8:] == 0.7).all()
    fired = (sae.encode(activations) > 0)[:, :8].sum().item() / len(activations)
    assert fired == pytest.approx(1, abs=1 / len(activations))
