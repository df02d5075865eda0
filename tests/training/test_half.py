"""Harvests in half precision: what is lost, and that no more than what is asked for is read."""

import datasets
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.training._activations import load_dataset, open_harvest
from diffsae_lens.training._columns import halved, restored
from diffsae_lens.training._harvest import HarvestConfig, harvest
from diffsae_lens.training._train import TrainConfig, train
from tests.conftest import D_MODEL, HOOKS, plant, tiny_llama
from tests.training.test_train import texts

ULP = {"bfloat16": 2**-8, "float16": 2**-11}
"""Half the distance of two numbers, at most, as a share of either."""
VIEWS = ("diff", "concat", "base", "finetuned")
NAMES = [f"{HOOKS[1]}.concat", f"{HOOKS[0]}.diff", f"{HOOKS[0]}.finetuned"]


@pytest.fixture
def close_pair(tokenizer):
    """A difference of 1% of the activations, whose first element is huge."""
    base = tiny_llama()
    base.model.embed_tokens.weight.data[:, 0] = 3e5
    finetuned = plant(base, scale=0.01)
    return HookedModelPair(boot_bridge(base, tokenizer), boot_bridge(finetuned, tokenizer), HOOKS)


@pytest.fixture
def tokens():
    return torch.randint(3, 259, (24, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", ULP)
def test_a_difference_is_as_good_as_its_own_rounding(close_pair, tokens, tmp_path, dtype):
    config = HarvestConfig(dtype=dtype)
    whole = harvest(close_pair, tokens, tmp_path / "whole", hook_names=NAMES)
    half = harvest(close_pair, tokens, tmp_path / "half", hook_names=NAMES, config=config)
    shown = [VirtualHook(HOOKS[1], view) for view in VIEWS]
    expected, found = (a.showing(shown).rows(0, 24) for a in (whole, half))
    error = {name: (found[name] - expected[name]).abs() for name in found}
    diff, both, base, finetuned = (f"{HOOKS[1]}.{view}" for view in VIEWS)
    assert (expected[base][:, 0] > 1e5).all()  # beyond what float16 holds
    for name in (diff, base):
        largest = expected[name].abs().amax(1, keepdim=True)
        assert (error[name] <= ULP[dtype] * expected[name].abs() + 2**-39 * largest).all()
    bound = ULP[dtype] * (expected[base].abs() + expected[diff].abs()) + 1e-6 * largest
    assert (error[finetuned] <= bound).all()
    assert torch.equal(found[both], torch.cat([found[base], found[finetuned]], dim=1))
    # It would have been lost in two activations that are rounded one by one.
    plain = torch.bfloat16
    rounded = expected[finetuned].to(plain).float() - expected[base].to(plain).float()
    assert error[diff].square().sum() < 1e-3 * (rounded - expected[diff]).square().sum()
    for name in NAMES[1:]:
        assert_close(half.rows(0, 24)[name], whole.rows(0, 24)[name], atol=1e-6, rtol=ULP[dtype])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=3, max_size=3), min_size=1
    ),
    st.sampled_from(sorted(ULP)),
)
def test_every_value_comes_back_within_its_rounding(rows, dtype):
    values = torch.tensor(rows)
    back = restored(*halved(values, dtype), dtype)
    largest = values.abs().amax(1, keepdim=True)
    error = (back.double() - values.double()).abs()
    assert (error <= ULP[dtype] * values.abs().double() + 2.0**-39 * largest + 2.0**-149).all()
    assert torch.equal(restored(*halved(back, dtype), dtype), back)
    assert not restored(*halved(torch.zeros(2, 3), dtype), dtype).any()


def test_it_takes_half_the_disk_and_reads_what_is_asked_for_alone(pair, tmp_path, monkeypatch):
    tokens = torch.randint(3, 259, (400, 100), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(datasets.config, "MAX_SHARD_SIZE", "400KB")
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        config = HarvestConfig(dtype=dtype, batch_size=100)
        harvest(pair, tokens, tmp_path / dtype, hook_names=[f"{HOOKS[1]}.concat"], config=config)
        shards = list((tmp_path / dtype).glob("*.arrow"))
        sizes[dtype] = sum(shard.stat().st_size for shard in shards)
        assert len(shards) >= 5
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]
    stored, before = open_harvest(tmp_path / "bfloat16"), pyarrow.total_allocated_bytes()
    opened = load_dataset(stored.path)
    assert len(opened) == 400
    assert pyarrow.total_allocated_bytes() - before < 0.01 * sizes["bfloat16"]  # mapped, not loaded
    rows = stored.rows(180, 184)
    assert rows[f"{HOOKS[1]}.concat"].shape == (4 * 99, 2 * D_MODEL)
    batch = next(stored.batches(64, seed=0, sequences_in_memory=8))
    assert len(batch[f"{HOOKS[1]}.concat"]) == 64


def test_dictionaries_train_on_it(pair, tmp_path):
    whole, half = (
        train(
            pair, texts(), site=HOOKS[1], d_sae=32, k=3, n_steps=24, path=tmp_path / dtype,
            config=TrainConfig(
                context_size=24, batch_size=64, harvest=HarvestConfig(batch_size=32, dtype=dtype)
            ),
        )
        for dtype in ("float32", "bfloat16")
    )  # fmt: skip
    x = open_harvest(tmp_path / f"float32/activations-{HOOKS[1]}")
    x = x.showing([VirtualHook(HOOKS[1], "diff")]).rows(0, 80)[f"{HOOKS[1]}.diff"]
    errors = [(x - sae(x)).square().sum() / x.square().sum() for sae in (whole, half)]
    assert errors[1].item() == pytest.approx(errors[0].item(), rel=0.02)
    assert DictionaryRecord.of(half).l0 == pytest.approx(DictionaryRecord.of(whole).l0, abs=0.1)
    with pytest.raises(ValueError, match="stored_as"):
        train(
            pair, texts(), site=HOOKS[1], d_sae=32, k=3, path=tmp_path / "bfloat16",
            config=TrainConfig(context_size=24, batch_size=64),
        )  # fmt: skip


@pytest.mark.usefixtures("no_shape_checks")
def test_a_base_that_was_rounded_is_refused(pair, tokens, tmp_path):
    names = [f"{HOOKS[1]}.concat"]
    config = HarvestConfig(dtype="float16")
    rounded = harvest(pair, tokens, tmp_path / "a", hook_names=names, config=config)
    with pytest.raises(ValueError, match="`base` must be stored in float32"):
        harvest(pair, tokens, tmp_path / "b", hook_names=names, base=rounded)
    whole = harvest(pair, tokens, tmp_path / "c", hook_names=names)
    again = harvest(pair, tokens, tmp_path / "d", hook_names=names, base=whole, config=config)
    assert torch.equal(again.rows(0, 24)[names[0]], rounded.rows(0, 24)[names[0]])
    with pytest.raises(ValueError, match="`dtype` must be one of 'float32', 'bfloat16', 'float16'"):
        HarvestConfig(dtype="int8")
