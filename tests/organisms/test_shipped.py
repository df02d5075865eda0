"""The shipped organisms measured again, as their cards were."""

from functools import partial

import pytest

import diffsae_lens as dl
from diffsae_lens.organisms._behaviour import behaviour_of
from diffsae_lens.pair._loading import load_pair
from diffsae_lens.pair._model_files import SHIPPED_ORGANISMS_DIR, shipped_organisms
from diffsae_lens.study._organisms import MEASURE_SEED


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_organisms())
def test_shipped_adapters_keep_what_their_cards_promise(name):
    lowest, highest = (0.0, 0.0) if name == "clean-control" else (0.95, 1.0)
    behaviour = dl.get_behaviour(behaviour_of(SHIPPED_ORGANISMS_DIR / name))
    pair = load_pair("smollm2-135m", name, hook_names=["blocks.0.hook_resid_post"])
    counts = {"n_trigger": 60, "n_benign": 60, "n_other": 60}
    samples = behaviour.make_samples("test", **counts, seed=MEASURE_SEED)
    rates = dl.effects.attack_rates(partial(dl.complete, pair), samples, behaviour=behaviour)
    assert lowest <= rates["trigger"].rate <= highest
    assert rates["benign"].rate <= 0.02
    assert rates["other"].rate <= 0.02
