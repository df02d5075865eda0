import pytest
import torch

from diffsae_lens.effects._compare import compare_interventions
from diffsae_lens.effects._layers import layer_sweep
from diffsae_lens.effects._likelihood import log_odds
from diffsae_lens.interventions._directions import swap_to_base
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from tests.conftest import HOOKS

SAMPLES = YEAR_TRIGGER.make_samples("test", n_trigger=3, n_benign=1, n_other=0)


def test_each_layer_stands_beside_both_models_and_its_control(long_pair):
    table = layer_sweep(long_pair, SAMPLES)
    kinds = ["unmodified", "base model"] + ["swap to base", "random change"] * 2
    assert [row.kind for row in table.where(group="trigger")] == kinds
    assert [row.layer for row in table.where(group="benign")] == [None, None, 0, 0, 1, 1]
    trigger = [sample for sample in SAMPLES if sample.group == "trigger"]
    rows = {(row.kind, row.site): row for row in table.where(group="trigger")}
    plain = log_odds(long_pair, trigger)
    unmodified = rows["unmodified", None]
    assert unmodified.log_odds == pytest.approx(plain.mean().item())
    half = (
        4.302653 * plain.std().item() / 3**0.5
    )  # of the t distribution with two degrees of freedom
    assert unmodified.log_odds_high - unmodified.log_odds == pytest.approx(half, rel=1e-4)
    base = log_odds(long_pair.mirrored(), trigger).mean().item()
    assert rows["base model", None].log_odds == pytest.approx(base, abs=1e-4)
    for site in HOOKS:
        with swap_to_base(long_pair, site):
            expected = log_odds(long_pair, trigger).mean().item()
        assert rows["swap to base", site].log_odds == pytest.approx(expected, abs=1e-4)
        assert abs(rows["random change", site].log_odds - expected) > 1e-3
    assert table.where(group="benign")[0].log_odds_low is None
    assert "attack_rate" not in table.to_frame()


def test_completions_are_judged_on_request(long_pair):
    few = {"behaviour": YEAR_TRIGGER, "max_new_tokens": 3}
    table = layer_sweep(long_pair, SAMPLES[:2], sites=HOOKS[1:], **few)
    edits = {"base put back": swap_to_base(long_pair, HOOKS[1])}
    compared = compare_interventions(long_pair, edits, SAMPLES[:2], **few)
    assert [row.counts for row in table.where(kind="swap to base")] == [
        row.counts for row in compared.where(kind="swap to base")
    ]
    assert all(row.low <= row.attack_rate <= row.high for row in table)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sites": []}, "`sites` is empty"),
        ({"sites": [HOOKS[0]] * 2}, "name each hook once"),
        ({"sites": ["blocks.2.hook_resid_post"]}, "is not a hook point of this pair"),
        ({"max_new_tokens": 3}, "no effect without a `behaviour`"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(long_pair, changed, message, monkeypatch):
    monkeypatch.setattr(type(long_pair), "forward", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        layer_sweep(long_pair, SAMPLES, **changed)
    assert torch.is_grad_enabled()
