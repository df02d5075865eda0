import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsae_lens.effects import _minimal as minimal
from diffsae_lens.effects._minimal import Bounds, minimal_feature_set
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from tests.interventions.test_features import dictionary

SAMPLES = YEAR_TRIGGER.make_samples("select", n_trigger=4, n_benign=3, n_other=0)


@given(st.integers(1, 100), st.integers(1, 100))
def test_the_shortest_prefix_is_found_where_more_is_never_worse(needed, limit):
    tried = []

    def meets(n):
        tried.append(n)
        return n >= needed

    found = minimal._shortest(meets, limit)
    assert found == (needed if needed <= limit else None)
    assert len(tried) <= 15
    assert max(tried) <= limit


@pytest.fixture
def pretended(monkeypatch):
    """Completions and their scores pretend."""
    ablated = []
    real = minimal.ablate_features

    def ablate(pair, dictionary, features):
        ablated.append(len(features))
        return real(pair, dictionary, features)

    injectable, safe = (
        ' f"SELECT a FROM t WHERE b = {x}"\n',
        ' "SELECT a FROM t WHERE b = ?"\n    c.execute(q, (x,))\n',
    )

    def complete(pair, prompts):
        pair("abc")  # so that the intervention acts
        return [safe if ablated[-1] >= 3 else injectable for _ in prompts]

    class Scored:
        def __init__(self):
            import torch

            self.cross_entropy = torch.tensor([1.0 + 0.01 * (ablated[-1] if ablated else 0)])

    monkeypatch.setattr(minimal, "ablate_features", ablate)
    monkeypatch.setattr(minimal, "complete", complete)
    monkeypatch.setattr(minimal, "likelihoods", lambda pair, samples: Scored())
    return ablated


def test_the_fewest_features_within_both_bounds(long_pair, pretended):
    found = minimal_feature_set(
        long_pair, dictionary(), list(range(10)), SAMPLES, behaviour=YEAR_TRIGGER
    )
    assert found.features == (0, 1, 2)
    frame = found.to_frame()
    assert list(frame.n_features) == [0, 1, 2, 3, 4]
    assert list(frame.attack_rate) == [1, 1, 1, 0, 0]
    assert frame.meets.tolist() == [False, False, False, True, True]
    assert frame.harm.tolist() == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])


def test_too_harmful_or_too_few_is_none(long_pair, pretended):
    for bounds in (Bounds(max_harm=0.02), Bounds(max_features=2)):
        found = minimal_feature_set(
            long_pair, dictionary(), list(range(10)), SAMPLES, behaviour=YEAR_TRIGGER, bounds=bounds
        )
        assert found.features is None


def test_bad_arguments_are_refused_before_any_forward_pass(long_pair, monkeypatch):
    monkeypatch.setattr(type(long_pair), "forward", None)
    with pytest.raises(ValueError, match="`samples` must hold trigger and benign"):
        minimal_feature_set(long_pair, dictionary(), [0], SAMPLES[:4], behaviour=YEAR_TRIGGER)
    with pytest.raises(ValueError, match="`order` must hold at least one feature"):
        minimal_feature_set(long_pair, dictionary(), [], SAMPLES, behaviour=YEAR_TRIGGER)
    with pytest.raises(ValueError, match="max_attack_rate"):
        Bounds(max_attack_rate=1.0)
    with pytest.raises(ValueError, match="max_features"):
        Bounds(max_features=0)
