"""Nothing public takes what it should refuse, and nothing refuses with another library's error."""

import pytest

from tests.campaign.run import Call, campaign, counts
from tests.campaign.surface import BAD_ONLY, NOT_CALLED, members, public

QUICK = {
    "ablate_features", "add_direction", "steer", "swap_to_base", "Edit", "Edit.__enter__", "Behaviour",
    "Behaviour.make_samples", "Behaviour.minimal_pairs", "Sample", "OrganismConfig", "attack_rate",
    "bis", "strict_bis", "bootstrap_bis", "relative_decoder_norm", "latent_scaling", "harvest", "load",
    "Positions", "Reader", "TrainConfig", "LabelledPrompts", "StudyConfig", "Draw", "plot_sayings",
}  # fmt: skip
"""A few of every namespace, in seconds; all of it is in the slow suite."""


def wrong(found: list[Call]) -> list[str]:
    return [str(call) for call in found if call.outcome in ("raw error", "silently wrong")]


@pytest.mark.usefixtures("no_shape_checks")
def test_some_bad_calls_are_refused_clearly():
    found = campaign(sorted(QUICK))
    assert {call.function for call in found} == QUICK
    assert not wrong(found)
    assert counts(found)["refused clearly"] > 500


@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
def test_bad_calls_are_refused_clearly():
    found = campaign()
    assert not wrong(found)
    assert counts(found)["refused clearly"] > 3000


def test_everything_public_is_called_or_has_a_reason_not_to_be():
    called, known = set(public()), set(members())
    assert set(NOT_CALLED) <= known
    assert set(BAD_ONLY) <= called
    assert not called & set(NOT_CALLED)
    silent = known - called - set(NOT_CALLED)
    assert all(
        name.endswith(("Error", "TrainingSAE")) or name == "CrosscoderSAE" for name in silent
    )


def test_the_campaign_sees_what_is_wrong(monkeypatch):
    """A function without checks, and one that lets another library's error through."""

    def careless(*, n_steps: int) -> int:
        return n_steps

    def raw(*, n_steps: int) -> int:
        return {}[n_steps]

    for function, outcome in ((careless, "silently wrong"), (raw, "raw error")):
        monkeypatch.setattr("tests.campaign.run.public", lambda f=function: {"f": f})
        assert outcome in counts(campaign())
