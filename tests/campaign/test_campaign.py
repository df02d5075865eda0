"""Nothing public takes what it should refuse, and nothing refuses with another library's error."""

import pytest

from tests.campaign.run import Call, campaign, counts, public

SLOW = {
    "HookedModelPair", "load_pair", "finetune", "train_dictionaries", "evaluate_isolation",
    "minimal_feature_set", "sweep_years", "dose_response", "ablation_curve", "curve_area",
    "compare_interventions", "complete_under", "harvest", "greedy_order", "attribute_features",
    "describe_features", "max_activating_examples", "side_effects", "log_odds", "ablation_effects",
}  # fmt: skip
"""What makes models or many forward passes even where it refuses."""


def wrong(found: list[Call]) -> list[str]:
    return [str(call) for call in found if call.outcome in ("raw error", "silently wrong")]


@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
def test_bad_calls_are_refused_clearly():
    found = campaign([name for name in public() if name not in SLOW])
    assert not wrong(found)
    assert counts(found)["refused clearly"] > 500


@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
def test_bad_calls_of_what_is_slow_are_refused_clearly():
    found = campaign(sorted(SLOW))
    assert not wrong(found)
    assert counts(found)["refused clearly"] > 500


def test_the_campaign_sees_what_is_wrong(monkeypatch):
    """A function without checks, and one that lets another library's error through."""

    def careless(*, n_steps: int) -> int:
        return n_steps

    def raw(*, n_steps: int) -> int:
        return {}[n_steps]

    for function, outcome in ((careless, "silently wrong"), (raw, "raw error")):
        monkeypatch.setattr("tests.campaign.run.public", lambda f=function: {"f": f})
        assert outcome in counts(campaign())
