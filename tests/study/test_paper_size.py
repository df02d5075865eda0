import pytest

from diffsae_lens.study._presets import paper
from tests.benchmarks.paper_size import LAYER, measure


@pytest.mark.slow
def test_the_paper_preset_runs_at_its_own_widths_in_bounded_memory(tmp_path):
    results, table = measure(tmp_path)
    widths = {row.name: row.n_features for row in results.scores if row.protocol == "paper"}
    assert widths["crosscoder 32x"] == widths["Diff-SAE 32x"] == 30_720
    assert widths["Diff-SAE 4x"] == 3_840
    assert {row.regime for row in results.effects} == set(paper().models.organisms)
    assert {row.layer for row in results.scores if row.hook_name} == {LAYER}
    assert table.gigabytes.max() < 24
