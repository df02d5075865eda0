from dataclasses import replace

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from diffsae_lens.isolation._pooled import PooledTexts, evaluate_pooled
from diffsae_lens.measures._resampling import Resampling

D_MODEL, N_TRIGGER, N_BENIGN, N_OTHER = 6, 20, 40, 40


def texts(*, planted: bool) -> PooledTexts:
    """Trigger texts differ from the others in one direction of the difference, or in none."""
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([0] * N_TRIGGER + [1] * N_BENIGN + [2] * N_OTHER)
    base = torch.randn(len(group), D_MODEL, generator=generator)
    diff = 0.1 * torch.randn(len(group), D_MODEL, generator=generator)
    if planted:
        diff[group == 0, 0] += 5.0
    order = torch.arange(len(group))
    return PooledTexts(
        site="blocks.1.hook_resid_post",
        base=base,
        finetuned=base + diff,
        group=group,
        template=order % 5,
        scene=order % 20,
    )


def diff_sae() -> StandardSAE:
    """One feature a coordinate of the difference."""
    cfg = StandardSAEConfig(d_in=D_MODEL, d_sae=D_MODEL)
    cfg.metadata.hook_name = "blocks.1.hook_resid_post.diff"
    sae = StandardSAE(cfg)
    state = {
        "W_enc": torch.eye(D_MODEL), "W_dec": torch.eye(D_MODEL),
        "b_enc": torch.zeros(D_MODEL), "b_dec": torch.zeros(D_MODEL),
    }  # fmt: skip
    sae.load_state_dict(state)
    return sae


def scored(planted):
    resampling = Resampling(n_resamples=100)
    table = evaluate_pooled({"Diff-SAE": diff_sae()}, texts(planted=planted), resampling=resampling)
    assert table.resampled.shape == (len(table), 100)
    return {row.name: row for row in table}


def test_a_planted_difference_reaches_the_ceiling_and_the_base_does_not():
    row = scored(planted=True)["Diff-SAE"]
    assert row.bis == pytest.approx(row.ceiling)
    assert row.base_bis < row.bis
    assert row.pvalue < 0.05
    assert row.low <= row.bis <= row.high
    assert row.template_low <= row.bis <= row.template_high


def test_without_one_the_labels_could_be_any():
    assert scored(planted=False)["Diff-SAE"].pvalue > 0.05


def test_what_was_fitted_on_the_labels_has_no_interval_and_no_p_value():
    rows = scored(planted=False)
    fitted = {name for name, row in rows.items() if row.is_fitted}
    assert fitted == {"difference of means", "linear probe"}
    for row in rows.values():
        assert (row.low is None) == (row.pvalue is None) == row.is_fitted
        assert row.protocol == "paper"
        assert row.layer == 1
    assert rows["random directions"].is_floor


def test_what_cannot_be_scored_is_refused(no_shape_checks):
    given = texts(planted=True)
    with pytest.raises(ValueError, match="`dictionaries` is empty"):
        evaluate_pooled({}, given)
    with pytest.raises(TypeError, match="`texts` must be a PooledTexts, got a Tensor"):
        evaluate_pooled({"Diff-SAE": diff_sae()}, given.base)
    elsewhere = replace(given, site="blocks.2.hook_resid_post")
    with pytest.raises(ValueError, match="must read a view of blocks.2.hook_resid_post"):
        evaluate_pooled({"Diff-SAE": diff_sae()}, elsewhere)
    narrow = replace(given, base=given.base[:, :4], finetuned=given.finetuned[:, :4])
    with pytest.raises(ValueError, match="reads 6 wide activations, but .*diff of `texts` is 4"):
        evaluate_pooled({"Diff-SAE": diff_sae()}, narrow)
    with pytest.raises(ValueError, match=r"one row per text, got .*group \[3\]"):
        replace(given, group=given.group[:3])


def test_the_variance_ratio_is_numpys():
    given = texts(planted=True)
    base, finetuned = given.base.double().numpy(), given.finetuned.double().numpy()
    expected = np.var(finetuned - base, ddof=1) / np.var(base, ddof=1)
    assert given.variance_ratio == pytest.approx(expected, rel=1e-5)
