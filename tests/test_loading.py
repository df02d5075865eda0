import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.pair._embedded import ModelUnavailableError
from diffsae_lens.pair._loading import load_pair
from diffsae_lens.pair._options import LoadOptions
from tests.conftest import HOOKS, plant, tiny_llama, with_lora, write_tiny_model


def test_a_full_fine_tune_is_two_models(folders, tokens):
    pair = load_pair(folders / "base", folders / "full", hook_names=HOOKS)
    assert_close(pair(tokens), plant(tiny_llama())(tokens).logits)
    with pair.base_model() as base:
        assert_close(base(tokens), tiny_llama()(tokens).logits)
    assert not pair.metadata.adapter


def test_an_adapter_shares_one_model(folders, tokens):
    pair = load_pair(folders / "base", folders / "lora", hook_names=HOOKS)
    expected = with_lora(tiny_llama(), scale=0.5)(tokens).logits
    assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)
    with pair.base_model() as base:
        assert base is pair.finetuned
        assert_close(base(tokens), tiny_llama()(tokens).logits, atol=1e-5, rtol=1e-4)
    assert pair.metadata.adapter
    assert pair.metadata.finetuned == str(folders / "lora")


def test_a_null_pair_has_no_difference(folders, tokens):
    pair = load_pair(folders / "base", folders / "base", hook_names=HOOKS)
    _, cache = pair.run_with_cache(tokens)
    assert not cache[f"{HOOKS[0]}.diff"].any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers 3.*has 4"),
        ({"hidden_size": 32}, "hidden_size 16.*has 32"),
    ],
)
def test_models_of_two_sizes_are_refused(folders, tokenizer, overrides, message):
    write_tiny_model(folders / "other", tiny_llama(**overrides), tokenizer)
    with pytest.raises(ValueError, match=message):
        load_pair(folders / "base", folders / "other", hook_names=HOOKS)


def test_an_adapter_of_another_model_is_refused(folders, tokenizer):
    with_lora(tiny_llama(hidden_size=32), scale=0.5).save_pretrained(folders / "wide")
    with_lora(tiny_llama(num_hidden_layers=5), scale=0.5).save_pretrained(folders / "deep")
    with pytest.raises(ValueError, match="32 wide.*16 wide"):
        load_pair(folders / "base", folders / "wide", hook_names=HOOKS)
    with pytest.raises(ValueError, match="reaches layer 4.*3 layers"):
        load_pair(folders / "base", folders / "deep", hook_names=HOOKS)


def test_bad_requests_are_refused_before_weights_are_read(folders, monkeypatch):
    from diffsae_lens.pair import _sources

    monkeypatch.setattr(_sources, "load_weights", None)
    base, full = folders / "base", folders / "full"
    with pytest.raises(ValueError, match="beyond the model's 3 layers"):
        load_pair(base, full, hook_names=["blocks.3.hook_resid_post"])
    with pytest.raises(ValueError, match="no model folder"):
        load_pair(base, folders / "nowhere", hook_names=HOOKS)
    with pytest.raises(ValueError, match="unknown model 'smollm3'"):
        load_pair("smollm3", full, hook_names=HOOKS)
    with pytest.raises(ValueError, match="`device` 'warp' cannot be used"):
        load_pair(base, full, hook_names=HOOKS, device="warp")
    with pytest.raises(ValueError, match="floating point"):
        load_pair(base, full, hook_names=HOOKS, dtype=torch.int8)
    with pytest.raises(ValueError, match="either `options` or its fields"):
        load_pair(base, full, hook_names=HOOKS, options=LoadOptions(), device="cpu")


def test_a_hub_id_without_a_hub_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match="use the embedded model"):
        load_pair("nobody/nothing-here", "nobody/nothing-there", hook_names=HOOKS)


def test_a_merged_adapter_is_the_same_pair_up_to_rounding(folders, tokens):
    base, lora = folders / "base", folders / "lora"
    pair = load_pair(base, lora, hook_names=HOOKS)
    merged = load_pair(base, lora, hook_names=HOOKS, merged=True)
    for ours, theirs in zip(
        merged.logits_of_both(tokens), pair.logits_of_both(tokens), strict=True
    ):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    hook = f"{HOOKS[0]}.diff"
    read = merged.activations(tokens, hook)[hook]
    assert_close(read, pair.activations(tokens, hook)[hook], atol=1e-5, rtol=1e-4)
    for name in ("base_fingerprint", "finetuned_fingerprint", "base", "finetuned", "dtype"):
        assert getattr(merged.metadata, name) == getattr(pair.metadata, name)

    assert not any("lora_" in name for name, _ in merged.named_parameters())
    base_places, own_places = (
        {p.data_ptr() for n, p in bridge.original_model.named_parameters() if n.endswith("weight")}
        for bridge in merged._models
    )
    touched = [name for name, _ in pair.named_parameters() if "lora_A" in name]
    assert len(own_places - base_places) == len(touched) > 0  # all other weights are shared


def test_an_untrained_adapter_merged_makes_no_difference(tmp_path, tokenizer, tokens):
    write_tiny_model(tmp_path / "base", tiny_llama(), tokenizer)
    with_lora(tiny_llama(), scale=0.0).save_pretrained(tmp_path / "null")
    pair = load_pair(tmp_path / "base", tmp_path / "null", hook_names=HOOKS, merged=True)
    assert not pair.activations(tokens, f"{HOOKS[1]}.diff")[f"{HOOKS[1]}.diff"].any()


def test_merging_leaves_a_model_in_memory_as_it_is(tokenizer, tokens):
    peft_model = with_lora(tiny_llama(), scale=0.5)
    before = {name: tensor.clone() for name, tensor in peft_model.state_dict().items()}
    pair = load_pair(
        peft_model.get_base_model(), peft_model, hook_names=HOOKS, tokenizer=tokenizer, merged=True
    )
    assert_close(pair(tokens), peft_model(tokens).logits, atol=1e-5, rtol=1e-4)
    after = peft_model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [*after] == [*before]


def test_only_one_adapter_is_merged(folders):
    base, lora, full = (folders / name for name in ("base", "lora", "full"))
    for pair, options in (((base, full), {}), ((lora, lora), {"adapted_model": base})):
        with pytest.raises(ValueError, match="`merged` is for one LoRA adapter"):
            load_pair(*pair, hook_names=HOOKS, merged=True, **options)
