import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer

from diffsae_lens.pair._fingerprint import model_fingerprint, same_weights
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge, load_pair
from tests.conftest import HOOKS, plant, tiny_llama, with_lora


def of(model) -> str:
    return model_fingerprint(model.state_dict().values())


def test_names_and_order_do_not_count_and_values_do():
    tensors = [torch.randn(3, 5), torch.randn(700, 9), torch.arange(4)]
    fingerprint = model_fingerprint(tensors)
    assert model_fingerprint([t.clone() for t in reversed(tensors)]) == fingerprint
    for i, place in [(0, (2, 4)), (1, (699, 8)), (1, (0, 0)), (2, 3)]:
        changed = [t.clone() for t in tensors]
        changed[i][place] += 1
        assert not same_weights(model_fingerprint(changed), fingerprint)
    swapped = [t.clone() for t in tensors]
    swapped[0][0, :2] = tensors[0][0, :2].flip(0)
    assert not same_weights(model_fingerprint(swapped), fingerprint)
    reshaped = [tensors[0].reshape(5, 3), *tensors[1:]]
    assert not same_weights(model_fingerprint(reshaped), fingerprint)


def test_threads_change_nothing_and_a_stride_bounds_the_time(monkeypatch):
    tensors = [torch.randn(300, 700)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = model_fingerprint(tensors)
    finally:
        torch.set_num_threads(threads)
    assert model_fingerprint(tensors) == alone
    monkeypatch.setattr("diffsae_lens.pair._fingerprint.MAX_ELEMENTS", 1000)
    sampled = model_fingerprint(tensors)
    assert not same_weights(sampled, model_fingerprint([tensors[0] + 0.1]))


def test_a_model_is_known_in_another_precision():
    model = tiny_llama()
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert same_weights(of(model), of(half))
    assert of(model) != of(half)
    assert not same_weights(of(plant(model)), of(half))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_renamed_folder_is_the_same_model_and_one_made_anew_is_not(folders, kind):
    before = load_pair(folders / "base", folders / kind, hook_names=HOOKS).metadata
    (folders / kind).rename(folders / "renamed")
    after = load_pair(folders / "base", folders / "renamed", hook_names=HOOKS).metadata
    assert after.finetuned != before.finetuned
    assert after.finetuned_fingerprint == before.finetuned_fingerprint
    assert after.base_fingerprint == before.base_fingerprint != before.finetuned_fingerprint
    if kind == "full":
        plant(tiny_llama(), seed=5).save_pretrained(folders / "renamed")
    else:
        with_lora(tiny_llama(), scale=0.5, seed=5).save_pretrained(folders / "renamed")
    anew = load_pair(folders / "base", folders / "renamed", hook_names=HOOKS).metadata
    assert anew.base_fingerprint == before.base_fingerprint
    assert not same_weights(anew.finetuned_fingerprint, before.finetuned_fingerprint)


def test_a_pair_made_by_hand_has_the_fingerprints_of_one_that_was_loaded(folders, tokenizer):
    loaded = load_pair(folders / "base", folders / "full", hook_names=HOOKS).metadata
    made = HookedModelPair(
        boot_bridge(tiny_llama(), tokenizer), boot_bridge(plant(tiny_llama()), tokenizer), HOOKS
    )
    assert made.metadata.finetuned_fingerprint == loaded.finetuned_fingerprint
    assert made.metadata.dtype == loaded.dtype == "float32"
    mirrored = made.mirrored().metadata
    assert mirrored.base_fingerprint == loaded.finetuned_fingerprint


def test_the_scale_of_an_adapter_counts(tokenizer):
    pairs = []
    for alpha in (8, 16):
        peft_model = with_lora(tiny_llama(), scale=0.5)
        for module in peft_model.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] = alpha / 2
        bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
        pairs.append(HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model).metadata)
    assert pairs[0].base_fingerprint == pairs[1].base_fingerprint
    assert not same_weights(pairs[0].finetuned_fingerprint, pairs[1].finetuned_fingerprint)
