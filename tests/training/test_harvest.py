import datasets
import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.training.harvest import HarvestConfig, harvest, open_harvest
from tests.conftest import HOOKS

NAMES = [f"{HOOKS[0]}.diff", f"{HOOKS[1]}.concat"]
CONFIG = HarvestConfig(batch_size=2, sequences_per_shard=3)


@pytest.fixture
def sequences(tokenizer):
    """Eight sequences of 6 tokens; the last two positions of every other one are padding."""
    tokens = torch.randint(3, 259, (8, 6), generator=torch.Generator().manual_seed(0))
    tokens[::2, 4:] = tokenizer.pad_token_id
    return tokens


def test_a_harvest_holds_what_the_pair_computes(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    _, cache = pair.run_with_cache(sequences, names_filter=NAMES)
    kept = sequences[:, 1:] != pair.tokenizer.pad_token_id
    for name in NAMES:
        assert_close(stored.rows(0, 8)[name], cache[name][:, 1:][kept], atol=1e-5, rtol=1e-4)
    assert stored.context_size == 5


def test_saelens_reads_it(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    dataset = datasets.load_from_disk(str(stored.path))
    assert set(dataset.column_names) == {*NAMES, "token_ids"}
    assert dataset.features[NAMES[1]].shape == (5, pair.d_in(NAMES[1]))


def test_batches_cover_an_epoch_once_aligned_and_repeatably(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    everything = stored.rows(0, 8)
    n_tokens = len(everything[NAMES[0]])  # 4 * 5 + 4 * 3
    assert n_tokens == 32

    def epoch(seed, **kwargs):
        batches = stored.batches(8, seed=seed, **kwargs)
        parts = [next(batches) for _ in range(4)]
        return {name: torch.cat([part[name] for part in parts]) for name in NAMES}

    shuffled = epoch(0, sequences_in_memory=3)
    for name in NAMES:
        ours, theirs = shuffled[name].tolist(), everything[name].tolist()
        assert sorted(ours) == sorted(theirs)
        assert ours != theirs
    # Aligned: the rows of the two hook points still belong together.
    lookup = {tuple(a): b for a, b in zip(*(everything[n].tolist() for n in NAMES), strict=True)}
    for first, second in zip(*(shuffled[n].tolist() for n in NAMES), strict=True):
        assert lookup[tuple(first)] == second
    assert_close(epoch(0)[NAMES[0]], epoch(0)[NAMES[0]])
    assert not torch.equal(epoch(0)[NAMES[0]], epoch(1)[NAMES[0]])


def test_a_batch_larger_than_the_harvest_is_an_error(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    with pytest.raises(ValueError, match="more than the tokens"):
        next(stored.batches(33, seed=0))


def test_an_interrupted_harvest_goes_on_where_it_was(pair, sequences, tmp_path, monkeypatch):
    expected = harvest(pair, sequences, tmp_path / "whole", hook_names=NAMES, config=CONFIG)
    run, n_runs = pair.run_with_cache, []

    def run_until_the_power_fails(*args, **kwargs):
        n_runs.append(1)
        if len(n_runs) == 3:  # in the second shard
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(pair, "run_with_cache", run_until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert not (tmp_path / "h").exists()
    n_runs.clear()
    n_runs.extend([1, 1, 1])
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert len(n_runs) - 3 == 3  # the first shard's two batches were not run again
    for name in NAMES:
        assert torch.equal(stored.rows(0, 8)[name], expected.rows(0, 8)[name])


def test_a_finished_harvest_is_opened_and_another_one_refused(
    pair, sequences, tmp_path, monkeypatch
):
    harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    monkeypatch.setattr(pair, "run_with_cache", None)
    harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    with pytest.raises(ValueError, match="holds another harvest"):
        harvest(pair, sequences + 0 * 1 + (sequences > 200), tmp_path / "h", hook_names=NAMES)


def test_a_damaged_harvest_is_refused(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    file = next(stored.path.glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        open_harvest(stored.path)


def test_bad_input_is_refused_before_a_model_runs(pair, sequences, tmp_path, monkeypatch):
    monkeypatch.setattr(pair, "run_with_cache", None)
    with pytest.raises(ValueError, match="no hook point"):
        harvest(pair, sequences, tmp_path / "h", hook_names=[HOOKS[0]])
    with pytest.raises(ValueError, match="nothing to harvest"):
        harvest(pair, sequences, tmp_path / "h", hook_names=[])
    with pytest.raises(ValueError, match="nothing to harvest"):
        harvest(pair, sequences[:, :1], tmp_path / "h", hook_names=NAMES)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        HarvestConfig(batch_size=0)
